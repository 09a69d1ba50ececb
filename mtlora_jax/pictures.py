"""Opens image files: the one place that does, for the few formats meant here, and for images of a bounded size."""

import contextlib
import io
import warnings
from collections.abc import Iterator, Sequence

import cv2
import numpy as np
import PIL.Image

from mtlora_jax.errors import UserError

FORMATS = ("JPEG", "PNG", "WEBP")  # of Pillow's some forty, of which one starts a program (EPS)
LARGEST = 178_956_970  # pixels, from which on Pillow takes an image for an attack
LONGEST = 65_535  # pixels of a side, the most that JPEG has
ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}  # of whole files
FLAGS = {"RGB": cv2.IMREAD_COLOR_RGB, "L": cv2.IMREAD_GRAYSCALE}  # OpenCV's names of Pillow's modes


@contextlib.contextmanager
def opened(data: bytes, origin: str, expected: str, formats: Sequence[str] = FORMATS) -> Iterator[PIL.Image.Image]:
    """The image whose file is `data`, for as long as the block lasts. Its pixels are not decoded yet.

    Raises UserError naming `origin` and what was `expected`, for a file that is no image of the `formats`, too large, or damaged, also
    where that shows only inside the block.
    """
    try:
        with warnings.catch_warnings(action="ignore", category=PIL.Image.DecompressionBombWarning):
            image = PIL.Image.open(io.BytesIO(data), formats=list(formats))
        with image:
            if image.width * image.height > LARGEST:
                raise UserError(f"{origin}: has {image.width}x{image.height} pixels; expected at most {LARGEST} in all")
            if max(image.size) > LONGEST:
                raise UserError(f"{origin}: has {image.width}x{image.height} pixels; expected at most {LONGEST} on a side")
            yield image
    except UserError:
        raise
    except MemoryError as error:
        raise UserError(f"{origin}: cannot be read (there is not enough memory for it); expected {expected}") from error
    except Exception as error:  # Pillow's decoders pass on whatever damaged data make them stumble over
        # The text of this error would show an address in memory.
        reason = f"no {'/'.join(formats)} image" if isinstance(error, PIL.UnidentifiedImageError) else " ".join(str(error).split())
        raise UserError(f"{origin}: cannot be read ({reason or type(error).__name__}); expected {expected}") from error


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


def bits_of(image: PIL.Image.Image, data: bytes) -> int:
    """Bits per channel of a PNG; 8 for other formats."""
    return data[24] if image.format == "PNG" and data[12:16] == b"IHDR" else 8


def _unstretched(pixels: np.ndarray, image: PIL.Image.Image, data: bytes) -> np.ndarray:
    bits = bits_of(image, data)
    return pixels // np.uint8(255 // (2**bits - 1)) if image.mode == "L" and bits < 8 else pixels
