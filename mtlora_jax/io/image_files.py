"""Opens image files of few formats and of bounded size."""

import collections
import contextlib
import io
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence

import cv2
import numpy as np
import PIL.Image

from mtlora_jax.errors import UserError

FORMATS = ("JPEG", "PNG", "WEBP")  # of Pillow's forty or so, one of which starts a program (EPS)
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by PNG colour type
# Of the seven passes of an interlaced PNG: first x and y, steps.
INTERLACED = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
MAX_PIXELS = 178_956_970  # above it, Pillow takes an image for an attack
MAX_SIDE = 65_535  # pixels, the largest side of a JPEG
ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}  # of complete files
FLAGS = {"RGB": cv2.IMREAD_COLOR_RGB, "L": cv2.IMREAD_GRAYSCALE}  # OpenCV's names of Pillow's modes

cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # errors are reported here, in one line


@contextlib.contextmanager
def open_image(data: bytes, source: str, expected: str, formats: Sequence[str] = FORMATS) -> Iterator[PIL.Image.Image]:
    """Open the image file with bytes `data` for the block, without decoding its pixels.

    Raises UserError naming `source` and what was `expected` for a file that is not an image of the `formats`, too
    large, or damaged, even if that is noticed only inside the block.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # about large images, and about unused parts such as animations
            image = PIL.Image.open(io.BytesIO(data), formats=list(formats))
        with image:
            if image.width * image.height > MAX_PIXELS:
                raise UserError(
                    f"{source}: has {image.width}x{image.height} pixels; expected at most {MAX_PIXELS} in all"
                )
            if max(image.size) > MAX_SIDE:
                raise UserError(
                    f"{source}: has {image.width}x{image.height} pixels; expected at most {MAX_SIDE} on a side"
                )
            if image.format == "PNG":
                _check_png(data)
            yield image
            if image.format == "PNG" and not image.tile and _is_truncated(image, data):  # without tiles it was decoded
                raise ValueError(f"it has fewer rows than {image.height}")
    except UserError:
        raise
    except MemoryError as error:
        raise UserError(f"{source}: cannot be read (there is not enough memory for it); expected {expected}") from error
    except Exception as error:  # Pillow's decoders can fail in any way on damaged data
        # The text of UnidentifiedImageError holds a memory address.
        unidentified = isinstance(error, PIL.UnidentifiedImageError)
        reason = f"no {'/'.join(formats)} image" if unidentified else " ".join(str(error).split())
        raise UserError(f"{source}: cannot be read ({reason or type(error).__name__}); expected {expected}") from error


def read_pixels(image: PIL.Image.Image, data: bytes) -> np.ndarray:
    """Read the stored pixels of an opened image with bytes `data`, (H, W) or (H, W, channels).

    An EXIF orientation is not applied. Grey pixels of 2 or 4 bits stay 0 to 3 or 0 to 15, which both libraries would
    stretch to 255. Raises any error of Pillow for damaged data.
    """
    # OpenCV takes half the time, but some versions invent the rest of a truncated image.
    if image.mode in FLAGS and data.endswith(ENDS.get(image.format or "", b"?")):
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), FLAGS[image.mode] | cv2.IMREAD_IGNORE_ORIENTATION)
        if pixels is not None:
            return _unstretched(pixels, image, data)
    return _unstretched(np.array(image), image, data)


def _is_truncated(image: PIL.Image.Image, data: bytes) -> bool:
    """Whether a PNG holds fewer rows than its header says. Pillow makes missing rows black."""
    width, height, bits, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, 16)
    last = image.crop((0, height - 1, width, height))
    if not interlaced and np.asarray(last).any():
        return False
    passes = [
        (range(x, width, dx), range(y, height, dy)) for x, y, dx, dy in (INTERLACED if interlaced else ((0, 0, 1, 1),))
    ]
    needed = sum(len(ys) * (1 + (len(xs) * bits * CHANNELS[colour] + 7) // 8) for xs, ys in passes if xs)
    compressed = b"".join(content for kind, content in _chunks(data) if kind == b"IDAT")
    return len(zlib.decompressobj().decompress(compressed, needed)) < needed


def _chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Yield (kind, contents) of the chunks of a PNG. Raises ValueError for a wrong checksum, which Pillow may miss."""
    view, at, kind = memoryview(data), 8, b""
    while kind != b"IEND" and at + 12 <= len(data):
        kind, end = data[at + 4 : at + 8], at + 8 + int.from_bytes(view[at : at + 4])
        if end + 4 <= len(data) and zlib.crc32(view[at + 4 : end]) != int.from_bytes(view[end : end + 4]):
            raise ValueError(f"damaged: the checksum of its {kind.decode('latin-1')} is wrong")
        yield kind, view[at + 8 : end]
        at = end + 4


def _check_png(data: bytes) -> None:
    """Check that a PNG begins with its size and that all its checksums are right; otherwise raise ValueError."""
    first = next((kind for kind, _ in _chunks(data)), b"")
    if first != b"IHDR":  # Pillow takes it anywhere; `bits_per_channel` and OpenCV do not
        raise ValueError("it does not begin with its size, as a PNG must")
    collections.deque(_chunks(data), maxlen=0)


def bits_per_channel(image: PIL.Image.Image, data: bytes) -> int:
    """Return the bits per channel of a PNG, or 8 for other formats."""
    return data[24] if image.format == "PNG" else 8


def _unstretched(pixels: np.ndarray, image: PIL.Image.Image, data: bytes) -> np.ndarray:
    bits = bits_per_channel(image, data)
    return pixels // np.uint8(255 // (2**bits - 1)) if image.mode == "L" and bits < 8 else pixels
