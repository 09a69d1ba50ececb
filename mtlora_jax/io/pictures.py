"""Opens image files: the one place that does, for the few formats meant here, and for images of a bounded size."""

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

FORMATS = ("JPEG", "PNG", "WEBP")  # of Pillow's some forty, of which one starts a program (EPS)
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of the types of colour of a PNG
INTERLACED = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))  # first x, y; steps
LARGEST = 178_956_970  # pixels, from which on Pillow takes an image for an attack
LONGEST = 65_535  # pixels of a side, the most that JPEG has
ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}  # of whole files
FLAGS = {"RGB": cv2.IMREAD_COLOR_RGB, "L": cv2.IMREAD_GRAYSCALE}  # OpenCV's names of Pillow's modes

cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # what is wrong with an image is said in one line here


@contextlib.contextmanager
def opened(data: bytes, source: str, expected: str, formats: Sequence[str] = FORMATS) -> Iterator[PIL.Image.Image]:
    """The image whose file is `data`, for as long as the block lasts. Its pixels are not decoded yet.

    Raises UserError naming `source` and what was `expected`, for a file that is no image of the `formats`, too large, or damaged, also
    where that shows only inside the block.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # of large images, and of parts that nobody asks for, such as moving pictures
            image = PIL.Image.open(io.BytesIO(data), formats=list(formats))
        with image:
            if image.width * image.height > LARGEST:
                raise UserError(f"{source}: has {image.width}x{image.height} pixels; expected at most {LARGEST} in all")
            if max(image.size) > LONGEST:
                raise UserError(f"{source}: has {image.width}x{image.height} pixels; expected at most {LONGEST} on a side")
            if image.format == "PNG":
                _check_png(data)
            yield image
            if image.format == "PNG" and not image.tile and _is_cut(image, data):  # without tiles it was decoded
                raise ValueError(f"it has fewer rows than {image.height}")
    except UserError:
        raise
    except MemoryError as error:
        raise UserError(f"{source}: cannot be read (there is not enough memory for it); expected {expected}") from error
    except Exception as error:  # Pillow's decoders pass on whatever damaged data make them stumble over
        # The text of this error would show an address in memory.
        reason = f"no {'/'.join(formats)} image" if isinstance(error, PIL.UnidentifiedImageError) else " ".join(str(error).split())
        raise UserError(f"{source}: cannot be read ({reason or type(error).__name__}); expected {expected}") from error


def pixels_of(image: PIL.Image.Image, data: bytes) -> np.ndarray:
    """The pixels of an opened image as its file, `data`, stores them: (H, W) or (H, W, channels); an EXIF orientation is not applied.

    So grey pixels of 2 or 4 bits stay 0 to 3 or 15, which both libraries would stretch to 255. Raises whatever damaged data make Pillow
    stumble over.
    """
    # OpenCV takes half the time, but some versions make up the rest of an image that is cut off.
    if image.mode in FLAGS and data.endswith(ENDS.get(image.format or "", b"?")):
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), FLAGS[image.mode] | cv2.IMREAD_IGNORE_ORIENTATION)
        if pixels is not None:
            return _unstretched(pixels, image, data)
    return _unstretched(np.array(image), image, data)


def _is_cut(image: PIL.Image.Image, data: bytes) -> bool:
    """Whether a PNG holds less than its header says. Of rows that are missing Pillow makes black ones."""
    width, height, bits, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, 16)
    last = image.crop((0, height - 1, width, height))
    if not interlaced and np.asarray(last).any():
        return False
    passes = [(range(x, width, dx), range(y, height, dy)) for x, y, dx, dy in (INTERLACED if interlaced else ((0, 0, 1, 1),))]
    needed = sum(len(ys) * (1 + (len(xs) * bits * CHANNELS[colour] + 7) // 8) for xs, ys in passes if xs)
    return len(zlib.decompressobj().decompress(b"".join(content for kind, content in _chunks(data) if kind == b"IDAT"), needed)) < needed


def _chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """(kind, contents) of the parts of a PNG that are there. Raises ValueError where a checksum is wrong: Pillow does not look at all."""
    view, at, kind = memoryview(data), 8, b""
    while kind != b"IEND" and at + 12 <= len(data):
        kind, end = data[at + 4 : at + 8], at + 8 + int.from_bytes(view[at : at + 4])
        if end + 4 <= len(data) and zlib.crc32(view[at + 4 : end]) != int.from_bytes(view[end : end + 4]):
            raise ValueError(f"damaged: the checksum of its {kind.decode('latin-1')} is another")
        yield kind, view[at + 8 : end]
        at = end + 4


def _check_png(data: bytes) -> None:
    """Raises ValueError unless a PNG begins with its size and has the right checksums, as far as it is there."""
    if next((kind for kind, _ in _chunks(data)), b"") != b"IHDR":  # Pillow takes it anywhere; `bits_of` and OpenCV do not
        raise ValueError("it does not begin with its size, as a PNG must")
    collections.deque(_chunks(data), maxlen=0)


def bits_of(image: PIL.Image.Image, data: bytes) -> int:
    """Bits per channel of a PNG; 8 for other formats."""
    return data[24] if image.format == "PNG" else 8


def _unstretched(pixels: np.ndarray, image: PIL.Image.Image, data: bytes) -> np.ndarray:
    bits = bits_of(image, data)
    return pixels // np.uint8(255 // (2**bits - 1)) if image.mode == "L" and bits < 8 else pixels
