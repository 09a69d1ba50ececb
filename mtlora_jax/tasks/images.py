"""Label images: files decoded for the computer, and colours for people."""

from collections.abc import Sequence

import cv2
import numpy as np

from mtlora_jax import pictures
from mtlora_jax.errors import UserError

IGNORED_COLOUR = (224, 224, 192)  # the void colour of PASCAL VOC


def decode_image(data: bytes, origin: str, modes: Sequence[str], expected: str) -> np.ndarray:
    """Decodes an image whose Pillow mode is one of `modes`, as stored: palette images keep their indices.

    Raises UserError naming `origin` and what was `expected` if it cannot be decoded or has another mode.
    """
    with pictures.opened(data, origin, expected) as image:
        mode, pixels = image.mode, pictures.pixels_of(image, data)
    if mode not in modes:
        raise UserError(f"{origin}: is an image of mode {mode}; expected {expected}")
    return pixels


def decode_binary(data: bytes, origin: str) -> np.ndarray:
    """Decodes a grey image to (H, W) uint8 of 0 and 1; 1 where a pixel is brighter than half of white.

    An image that holds nothing above 1 is taken to be 0 and 1 already. Raises UserError as `decode_image`.
    """
    pixels = decode_image(data, origin, ("L", "1"), "a grey PNG of 8 bits, white where the label is positive")
    return (pixels > (0 if pixels.max() <= 1 else 127)).view(np.uint8)


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
    return np.round(255 * np.clip(values, 0, 1)).astype(np.uint8)


def _paint(picture: np.ndarray, ignored: np.ndarray) -> np.ndarray:
    return np.where(ignored[..., None], np.array(IGNORED_COLOUR, np.uint8), picture)
