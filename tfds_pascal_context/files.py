"""Reads and writes single files; raises a UserError that names the file if anything is wrong with it."""

import contextlib
import io
import pathlib
import zlib
from collections.abc import Iterator, Sequence

import cv2
import numpy as np

from mtlora_jax.errors import UserError
from mtlora_jax.io import arrays, image_files
from mtlora_jax.io.files import describe_error, read_bytes
from tfds_pascal_context import matlab, workers

IGNORE = 255
LARGEST = 2**28  # bytes of one raw file; the largest published ones are arrays of normals of about 2**23


def read(path: pathlib.Path, expected: str) -> bytes:
    """Returns the bytes of a raw file. Raises UserError."""
    workers.note(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected {expected}")
    return read_bytes(path, LARGEST)


def check_jpeg(path: pathlib.Path) -> tuple[int, int]:
    """Decodes a whole JPEG file and returns its (height, width).

    Raises UserError if it is missing, damaged, truncated or not a JPEG file.
    """
    expected = "a JPEG photograph"
    with image_files.open_image(read(path, expected), str(path), expected, ("JPEG", "PNG")) as image:
        if image.format != "JPEG" or image.mode not in ("RGB", "L"):
            raise UserError(f"{path}: is {image.format} of mode {image.mode}; expected {expected}")
        image.load()
        return image.height, image.width


def read_image(path: pathlib.Path, modes: Sequence[str], expected: str) -> np.ndarray:
    """Returns the stored pixels, (H, W) or (H, W, 3), of a PNG file whose Pillow mode is in `modes`.

    Raises UserError.
    """
    with image_files.open_image(read(path, expected), str(path), expected, ("PNG",)) as image:
        if image.mode not in modes:
            raise UserError(f"{path}: is an image of mode {image.mode}; expected {expected}")
        return np.array(image)


def read_mat(path: pathlib.Path, variable: str, expected: str) -> np.ndarray:
    """Returns one variable of a MATLAB file. Raises UserError."""
    data = read(path, expected)
    with blamed(path, expected):
        return matlab.read(data, variable)


def read_npy(path: pathlib.Path, dimensions: int, expected: str) -> np.ndarray:
    """Returns an array of numbers with the given number of dimensions. Raises UserError."""
    array = arrays.read_npy(read(path, expected), str(path), expected)
    if array.ndim != dimensions or not array.size:
        raise UserError(f"{path}: holds {array.dtype} of shape {array.shape}; expected {expected}")
    return array


def check_classes(path: pathlib.Path, label: np.ndarray, classes: int) -> np.ndarray:
    """Returns `label`; raises UserError if a value is neither a class index nor 255."""
    wrong = label[(label >= classes) & (label != IGNORE)]
    if wrong.size:
        raise UserError(f"{path}: has the class {wrong[0]}; expected 0 to {classes - 1}, or {IGNORE} for ignore")
    return label


def png(pixels: np.ndarray) -> bytes:
    """Encodes pixels as an uncompressed PNG file: grey of (H, W) uint8 or uint16, RGB of (H, W, 3) uint8.

    ArrayRecord compresses its records with Zstandard, which decodes several times as fast as the deflate of PNG. Smooth
    images are stored as differences between rows, since these compress better.
    """
    smooth = pixels.ndim == 3 or pixels.dtype == np.uint16
    row_filter = cv2.IMWRITE_PNG_FILTER_UP if smooth else cv2.IMWRITE_PNG_FILTER_NONE
    bgr = pixels[..., ::-1] if pixels.ndim == 3 else pixels
    _, encoded = cv2.imencode(".png", bgr, [cv2.IMWRITE_PNG_COMPRESSION, 0, cv2.IMWRITE_PNG_FILTER, row_filter])
    return encoded.tobytes()


def compressed(content: bytes) -> bytes:
    """Compresses a PNG file, for record files that do not compress their records."""
    buffer = io.BytesIO()
    with image_files.open_image(content, "a label", "a PNG file", ("PNG",)) as image:
        # For smooth colours such as normals, run-length coding is four times as fast as the default, and the file is
        # at most 4 % larger.
        image.save(buffer, "PNG", compress_type=zlib.Z_RLE if image.mode == "RGB" else zlib.Z_DEFAULT_STRATEGY)
    return buffer.getvalue()


@contextlib.contextmanager
def blamed(path: pathlib.Path, expected: str) -> Iterator[None]:
    """Turns any exception of a reader, as a damaged file may cause, into a UserError that names the file."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        raise UserError(f"{path}: cannot be read ({describe_error(error)}); expected {expected}") from error
