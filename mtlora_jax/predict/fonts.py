"""Words in pictures, in any script for which the machine has a font."""

import functools
from typing import Any

import PIL.ImageFont

Font = PIL.ImageFont.ImageFont | PIL.ImageFont.FreeTypeFont

# Pillow brings a font of its own, which has ASCII alone; it looks for these where the system keeps its fonts. Common ones with
# many scripts, on Linux, macOS and Windows.
FONTS = (
    *("DejaVuSans.ttf", "NotoSans-Regular.ttf", "NotoSansCJK-Regular.ttc", "wqy-microhei.ttc", "DroidSansFallbackFull.ttf"),
    *("Arial Unicode.ttf", "arial.ttf", "msyh.ttc", "malgun.ttf", "msgothic.ttc"),
)


@functools.cache
def lettered(text: str, size: int) -> tuple[str, Font]:
    """What is to be drawn for `text`, and with which font of `size` pixels.

    The first font is taken that has all letters. Where none has, it is the one that lacks fewest, and those are written as \\uXXXX.
    """
    font = min(fonts(size), key=lambda font: len(lacking(text, font)))
    missing = lacking(text, font)
    return "".join(letter.encode("ascii", "backslashreplace").decode() if letter in missing else letter for letter in text), font


@functools.cache
def fonts(size: int) -> tuple[Font, ...]:
    """Pillow's own, then those of `FONTS` that are installed."""
    found: list[Font] = [PIL.ImageFont.load_default(size)]
    for name in FONTS:
        try:
            found.append(PIL.ImageFont.truetype(name, size))
        except OSError:
            continue
    return tuple(found)


def lacking(text: str, font: Font) -> set[str]:
    """The letters that the font draws as it draws U+FFFF, which is no character: as a box."""
    return {letter for letter in text if not letter.isspace() and drawn(letter, font) == drawn("\uffff", font)}


def drawn(letter: str, font: Font) -> tuple[Any, bytes]:
    """Size and pixels of a letter."""
    mask: Any = font.getmask(letter)  # an image of Pillow's innermost kind, for which it has no types
    return mask.size, bytes(mask)
