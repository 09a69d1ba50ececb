"""Decoding and colouring of label images."""

from collections.abc import Sequence

import cv2
import numpy as np

from mtlora_jax.errors import UserError
from mtlora_jax.io import image_files
from mtlora_jax.tasks.label_values import ENCODING_OF_ONE_FILE, ENCODINGS, format_values, kinds_of_values

IGNORED_COLOUR = (224, 224, 192)  # the void colour of PASCAL VOC


def decode_image(data: bytes, source: str, modes: Sequence[str], expected: str) -> np.ndarray:
    """Decode an image whose Pillow mode is one of `modes` to its stored values.

    Palette images give indices; grey of 2 or 4 bits gives 0 to 3 or 0 to 15. Raises UserError naming `source` and what
    was `expected` if it cannot be decoded or has another mode.
    """
    return _decode(data, source, modes, expected)[0]


def decode_binary(data: bytes, source: str, encoding: str = "") -> np.ndarray:
    """Decode a grey image to (H, W) uint8: 1 positive, 0 negative, `IGNORE` unknown.

    `encoding`, a key of `ENCODINGS`, is that of its data set; without it, it is inferred from this file alone.
    Raises UserError as `decode_image`, and for values that do not fit the encoding.
    """
    pixels, one_bit = decode_grey(data, source)
    if one_bit:
        return pixels
    held = kinds_of_values(pixels, one_bit)
    expected = ENCODINGS[encoding or ENCODING_OF_ONE_FILE.get(held, "0/255")]
    if held not in expected.accepts:
        meaning = expected.description.format(no="no", yes="yes")
        raise UserError(
            f"{source}: has the values {format_values(pixels)}; expected {meaning}, as in all the data set "
            "(labels.json of the data set can say something else)"
        )
    return cv2.LUT(pixels, expected.label)


def decode_grey(data: bytes, source: str) -> tuple[np.ndarray, bool]:
    """Return a grey image (H, W) uint8, and whether it has one bit per pixel.

    White is 255, or 1 if there is one bit per pixel. Raises UserError as `decode_image`.
    """
    pixels, bits = _decode(data, source, ("L", "1"), "a grey PNG of 8 bits, white where the label is positive")
    if bits in (2, 4):  # black, white and 1 keep their meaning; other levels are stretched
        table = np.arange(256) * 255 // (2**bits - 1)
        table[1] = 1
        pixels = table.astype(np.uint8)[pixels]
    return pixels, bits == 1


def _decode(data: bytes, source: str, modes: Sequence[str], expected: str) -> tuple[np.ndarray, int]:
    """Return the stored pixels, and the file's bits per channel."""
    with image_files.open_image(data, source, expected) as image:
        if image.mode not in modes:
            raise UserError(f"{source}: is an image of mode {image.mode}; expected {expected}")
        pixels = image_files.read_pixels(image, data)
        bits = 1 if image.mode == "1" else image_files.bits_per_channel(image, data)
    if pixels.dtype == bool:  # from Pillow, whose True may be any byte except 0
        pixels = (pixels.view(np.uint8) > 0).view(np.uint8)
    return pixels, bits


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Compute the logistic function without overflow, in float32."""
    return 0.5 + 0.5 * np.tanh(0.5 * np.asarray(logits, np.float32))


def class_palette() -> np.ndarray:
    """Return the 256 colours of PASCAL VOC, (256, 3) uint8.

    The bits of the index go to red, green and blue in turn, the lowest three to the highest bit of each.
    """
    index = np.arange(256)[:, None]
    bits = [((index >> (3 * place + np.arange(3))) & 1) << (7 - place) for place in range(3)]
    return np.sum(bits, axis=0).astype(np.uint8)


def grey_image(values: np.ndarray, ignored: np.ndarray) -> np.ndarray:
    """Render values (H, W) in [0, 1] as RGB uint8 (H, W, 3), black to white."""
    return _paint(np.repeat(_bytes(values)[..., None], 3, axis=-1), ignored)


def heatmap(values: np.ndarray, ignored: np.ndarray) -> np.ndarray:
    """Render values (H, W) in [0, 1] as RGB uint8 (H, W, 3), from black through red to pale yellow."""
    return _paint(cv2.applyColorMap(_bytes(values), cv2.COLORMAP_INFERNO)[..., ::-1], ignored)


def vector_image(vectors: np.ndarray, ignored: np.ndarray) -> np.ndarray:
    """Render vectors (H, W, 3) with components in [-1, 1] as RGB uint8 (H, W, 3)."""
    return _paint(_bytes((vectors + 1) / 2), ignored)


def _bytes(values: np.ndarray) -> np.ndarray:
    return np.round(255 * np.clip(np.nan_to_num(values), 0, 1)).astype(np.uint8)  # a diverged model returns NaN


def _paint(image: np.ndarray, ignored: np.ndarray) -> np.ndarray:
    return np.where(ignored[..., None], np.array(IGNORED_COLOUR, np.uint8), image)
