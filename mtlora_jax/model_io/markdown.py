"""Texts of strangers inside of Markdown: they show as they are, and are no markup, no link, no row of a table."""

import json
import re
from typing import Any

# References to characters, which Markdown never takes for markup. What GitHub makes links of by itself is split, too.
REFERENCES = str.maketrans(
    {character: f"&#{ord(character)};" for character in "\\`*[]|~$!#"} | {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
)
LINKS = {"://": "&#58;//", "www.": "www&#46;", "WWW.": "WWW&#46;", "@": "&#64;"}
IN_JSON = str.maketrans(
    {character: f"\\u{ord(character):04x}" for character in "<>&"}
)  # which are markup nowhere else in it


class Markdown(str):
    """A text that is markup already."""


def one_line(value: Any) -> str:
    """A value as a text of one line, of characters that can be seen."""
    return " ".join("".join(character if character.isprintable() else " " for character in str(value)).split())


def escaped(value: Any) -> Markdown:
    """A value as it shows in a paragraph, a heading or a cell of a table."""
    if isinstance(value, Markdown):
        return value
    text = one_line(value).translate(REFERENCES)
    for link, split in LINKS.items():
        text = text.replace(link, split)
    return Markdown(re.sub(r"(?<![^\W_])_|_(?![^\W_])", "&#95;", text))  # those inside of words stress nothing


def code(value: Any) -> Markdown:
    """A value as code inside of a line."""
    text = one_line(value)
    return Markdown(f"<code>{escaped(text)}</code>" if not text or set(text) & set("`<&|") else f"`{text}`")


def block(value: Any) -> Markdown:
    """A value as an indented line of code, or the same where it holds what some readers take for HTML."""
    text = one_line(value)
    return Markdown(f"<pre><code>{escaped(text)}</code></pre>" if set(text) & set("<&") else f"    {text}")


def as_json(value: Any, indent: int | None = None) -> Markdown:
    """A value as JSON, which is YAML too, for a block of code or the metadata."""
    return Markdown(json.dumps(value, indent=indent).translate(IN_JSON))
