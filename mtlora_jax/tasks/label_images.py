"""Label images: files decoded for the computer, and colours for people."""

from collections.abc import Sequence

import cv2
import numpy as np

from mtlora_jax.errors import UserError
from mtlora_jax.io import pictures
from mtlora_jax.tasks.label_values import ALONE, MEANINGS, holds, values_of

IGNORED_COLOUR = (224, 224, 192)  # the void colour of PASCAL VOC


def decode_image(data: bytes, origin: str, modes: Sequence[str], expected: str) -> np.ndarray:
    """Decodes an image whose Pillow mode is one of `modes`, as stored: indices of a palette, grey of 2 or 4 bits as 0 to 3 or 15.

    Raises UserError naming `origin` and what was `expected` if it cannot be decoded or has another mode.
    """
    return _decode(data, origin, modes, expected)[0]


def decode_binary(data: bytes, origin: str, meaning: str = "") -> np.ndarray:
    """Decodes a grey image to (H, W) uint8: 1 for yes, 0 for no, `IGNORE` for what is not known.

    `meaning` is what the values mean in its data set, a key of `MEANINGS`; without one, what they mean if this file is all there is.
    Raises UserError as `decode_image`, and for values that mean something else.
    """
    pixels, one_bit = decode_grey(data, origin)
    if one_bit:
        return pixels
    held = holds(pixels, one_bit)
    meant = MEANINGS[meaning or ALONE.get(held, "0/255")]
    if held not in meant.fits:
        raise UserError(
            f"{origin}: has the values {values_of(pixels)}; expected {meant.told.format(no='no', yes='yes')}, as in all the data set "
            "(labels.json of the data set can say something else)"
        )
    return cv2.LUT(pixels, meant.label)


def decode_grey(data: bytes, origin: str) -> tuple[np.ndarray, bool]:
    """A grey image (H, W) uint8 whose white is 255, and whether it has one bit per pixel; then white is 1.

    Raises UserError as `decode_image`.
    """
    pixels, bits = _decode(data, origin, ("L", "1"), "a grey PNG of 8 bits, white where the label is positive")
    if bits in (2, 4):  # black, white and 1 keep their meaning, what lies between is stretched
        table = np.arange(256) * 255 // (2**bits - 1)
        table[1] = 1
        pixels = table.astype(np.uint8)[pixels]
    return pixels, bits == 1


def _decode(data: bytes, origin: str, modes: Sequence[str], expected: str) -> tuple[np.ndarray, int]:
    """Pixels as stored, and bits per channel of the file."""
    with pictures.opened(data, origin, expected) as image:
        if image.mode not in modes:
            raise UserError(f"{origin}: is an image of mode {image.mode}; expected {expected}")
        pixels = pictures.pixels_of(image, data)
        bits = 1 if image.mode == "1" else pictures.bits_of(image, data)
    if pixels.dtype == bool:  # of Pillow, where True may be any number but 0
        pixels = (pixels.view(np.uint8) > 0).view(np.uint8)
    return pixels, bits


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Logistic function without overflow."""
    return 0.5 + 0.5 * np.tanh(0.5 * np.asarray(logits, np.float32))


def class_palette() -> np.ndarray:
    """The 256 colours of PASCAL VOC, (256, 3) uint8.

    The bits of the index are dealt out to red, green and blue in turn, the lowest three to the highest bits of the colour.
    """
    index = np.arange(256)[:, None]
    bits = [((index >> (3 * place + np.arange(3))) & 1) << (7 - place) for place in range(3)]
    return np.sum(bits, axis=0).astype(np.uint8)


def grey_picture(values: np.ndarray, ignored: np.ndarray) -> np.ndarray:
    """RGB uint8 (H, W, 3) of values in [0, 1], black to white."""
    return _paint(np.repeat(_bytes(values)[..., None], 3, axis=-1), ignored)


def heat_picture(values: np.ndarray, ignored: np.ndarray) -> np.ndarray:
    """RGB uint8 (H, W, 3) of values in [0, 1], from black over red to pale yellow."""
    return _paint(cv2.applyColorMap(_bytes(values), cv2.COLORMAP_INFERNO)[..., ::-1], ignored)


def vector_picture(vectors: np.ndarray, ignored: np.ndarray) -> np.ndarray:
    """RGB uint8 (H, W, 3) of components in [-1, 1]."""
    return _paint(_bytes((vectors + 1) / 2), ignored)


def _bytes(values: np.ndarray) -> np.ndarray:
    return np.round(255 * np.clip(np.nan_to_num(values), 0, 1)).astype(np.uint8)  # a model that diverged says anything


def _paint(picture: np.ndarray, ignored: np.ndarray) -> np.ndarray:
    return np.where(ignored[..., None], np.array(IGNORED_COLOUR, np.uint8), picture)
