"""Chooses fonts to draw text in any script for which the machine has one."""

import functools
from typing import Any

import PIL.ImageFont

Font = PIL.ImageFont.ImageFont | PIL.ImageFont.FreeTypeFont

# Pillow's own font has ASCII only. It looks for these in the system's font folders: common ones with many scripts, on
# Linux, macOS and Windows.
FONTS = (
    *("DejaVuSans.ttf", "NotoSans-Regular.ttf", "NotoSansCJK-Regular.ttc"),
    *("wqy-microhei.ttc", "DroidSansFallbackFull.ttf"),
    *("Arial Unicode.ttf", "arial.ttf", "msyh.ttc", "malgun.ttf", "msgothic.ttc"),
)


@functools.cache
def choose_font(text: str, size: int) -> tuple[str, Font]:
    """Chooses the font of `size` pixels that lacks the fewest letters of `text`; returns text to draw and font.

    Missing letters are written as \\uXXXX.
    """
    font = min(installed_fonts(size), key=lambda font: len(missing_letters(text, font)))
    codes = {letter: letter.encode("ascii", "backslashreplace").decode() for letter in missing_letters(text, font)}
    return "".join(codes.get(letter, letter) for letter in text), font


@functools.cache
def installed_fonts(size: int) -> tuple[Font, ...]:
    """Loads Pillow's own font, then those of `FONTS` that are installed."""
    found: list[Font] = [PIL.ImageFont.load_default(size)]
    for name in FONTS:
        try:
            found.append(PIL.ImageFont.truetype(name, size))
        except OSError:
            continue
    return tuple(found)


def missing_letters(text: str, font: Font) -> set[str]:
    """Returns the letters that the font draws as a box, as it draws U+FFFF, which is not a character."""
    box = draw_letter("\uffff", font)
    return {letter for letter in text if not letter.isspace() and draw_letter(letter, font) == box}


def draw_letter(letter: str, font: Font) -> tuple[Any, bytes]:
    """Returns size and pixels of a letter."""
    mask: Any = font.getmask(letter)  # Pillow's internal image, which is not typed
    return mask.size, bytes(mask)
