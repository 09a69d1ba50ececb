"""Reading and writing of single files; whatever is wrong with one is a UserError that names it."""

import contextlib
import io
import pathlib
import zlib
from collections.abc import Iterator, Sequence

import cv2
import numpy as np
import PIL.Image
import scipy.io

from mtlora_jax.errors import UserError

IGNORE = 255


def check_jpeg(path: pathlib.Path) -> tuple[int, int]:
    """(height, width) of a JPEG file, after decoding all of it. Raises UserError if it is missing, damaged, cut off or no JPEG."""
    with _blamed(path, "a JPEG photograph"), PIL.Image.open(path) as image:
        if image.format != "JPEG" or image.mode not in ("RGB", "L"):
            raise UserError(f"{path}: is {image.format} of mode {image.mode}; expected a JPEG photograph")
        image.load()
        return image.height, image.width


def read_image(path: pathlib.Path, modes: Sequence[str], expected: str) -> np.ndarray:
    """Pixels of an image whose Pillow mode is one of `modes`, as stored: (H, W) or (H, W, 3). Raises UserError."""
    with _blamed(path, expected), PIL.Image.open(path) as image:
        if image.mode not in modes:
            raise UserError(f"{path}: is an image of mode {image.mode}; expected {expected}")
        return np.array(image)


def read_mat(path: pathlib.Path, variable: str, expected: str) -> np.ndarray:
    """One variable of a MATLAB file. Raises UserError."""
    with _blamed(path, expected):
        return scipy.io.loadmat(path, variable_names=[variable])[variable]


def read_npy(path: pathlib.Path, dimensions: int, expected: str) -> np.ndarray:
    """An array of numbers with so many `dimensions`. Raises UserError."""
    with _blamed(path, expected):
        array = np.load(path, allow_pickle=False)
        if array.ndim != dimensions or not array.size or array.dtype.kind not in "fiub":
            raise UserError(f"{path}: holds {array.dtype} of shape {array.shape}; expected {expected}")
        return array


def check_classes(path: pathlib.Path, label: np.ndarray, classes: int) -> np.ndarray:
    """`label`, whose values are class indices or 255. Raises UserError for any other value."""
    wrong = label[(label >= classes) & (label != IGNORE)]
    if wrong.size:
        raise UserError(f"{path}: has the class {wrong[0]}; expected 0 to {classes - 1}, or {IGNORE} for ignore")
    return label


def png(pixels: np.ndarray) -> bytes:
    """A PNG file that is not compressed: grey of (H, W) uint8 or uint16, RGB of (H, W, 3) uint8.

    ArrayRecord compresses its records by Zstandard, which is read several times as fast as the deflate of PNG. Rows of what is smooth are
    differences from the row above, since these compress better.
    """
    smooth = pixels.ndim == 3 or pixels.dtype == np.uint16
    row_filter = cv2.IMWRITE_PNG_FILTER_UP if smooth else cv2.IMWRITE_PNG_FILTER_NONE
    bgr = pixels[..., ::-1] if pixels.ndim == 3 else pixels
    _, encoded = cv2.imencode(".png", bgr, [cv2.IMWRITE_PNG_COMPRESSION, 0, cv2.IMWRITE_PNG_FILTER, row_filter])
    return encoded.tobytes()


def compressed(content: bytes) -> bytes:
    """A PNG file of the same pixels for record files that are not compressed themselves."""
    buffer = io.BytesIO()
    with PIL.Image.open(io.BytesIO(content)) as image:
        # For smooth colours such as normals, Huffman coding of runs is four times as fast as the default and within 4 % of its size.
        image.save(buffer, "PNG", compress_type=zlib.Z_RLE if image.mode == "RGB" else zlib.Z_DEFAULT_STRATEGY)
    return buffer.getvalue()


@contextlib.contextmanager
def _blamed(path: pathlib.Path, expected: str) -> Iterator[None]:
    """Turns whatever a damaged file makes a decoder stumble over into a UserError that names the file."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected {expected}")
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: cannot be read ({reason}); expected {expected}") from error
