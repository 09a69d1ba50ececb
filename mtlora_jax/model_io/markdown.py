"""Untrusted text in Markdown: it is shown as it is, and never becomes markup, a link or a row of a table."""

import json
import re
from typing import Any

# Markdown never takes character references for markup. Text that GitHub would turn into links is split, too.
REFERENCES = str.maketrans(
    {character: f"&#{ord(character)};" for character in "\\`*[]|~$!#"} | {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
)
LINKS = {"://": "&#58;//", "www.": "www&#46;", "WWW.": "WWW&#46;", "@": "&#64;"}
IN_JSON = str.maketrans({character: f"\\u{ord(character):04x}" for character in "<>&"})  # no other is markup in JSON


class Markdown(str):
    """Text that is Markdown already."""


def one_line(value: Any) -> str:
    """A value as one line of printable characters."""
    return " ".join("".join(character if character.isprintable() else " " for character in str(value)).split())


def escaped(value: Any) -> Markdown:
    """A value as text in a paragraph, a heading or a cell of a table."""
    if isinstance(value, Markdown):
        return value
    text = one_line(value).translate(REFERENCES)
    for link, split in LINKS.items():
        text = text.replace(link, split)
    return Markdown(re.sub(r"(?<![^\W_])_|_(?![^\W_])", "&#95;", text))  # inside words they are no emphasis


def code(value: Any) -> Markdown:
    """A value as inline code."""
    text = one_line(value)
    return Markdown(f"<code>{escaped(text)}</code>" if not text or set(text) & set("`<&|") else f"`{text}`")


def block(value: Any) -> Markdown:
    """A value as an indented line of code, or as HTML if some readers would take it for HTML."""
    text = one_line(value)
    return Markdown(f"<pre><code>{escaped(text)}</code></pre>" if set(text) & set("<&") else f"    {text}")


def as_json(value: Any, indent: int | None = None) -> Markdown:
    """A value as JSON, which is also YAML, for a block of code or the metadata."""
    return Markdown(json.dumps(value, indent=indent).translate(IN_JSON))
