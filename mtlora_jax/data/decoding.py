"""Decodes the files of one example to arrays."""

import contextlib
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from mtlora_jax.errors import UserError
from mtlora_jax.io import files, image_files
from mtlora_jax.tasks.task import Task

Example = dict[str, Any]  # strings and arrays

MAX_BYTES = 2**31  # of an image or a label


class EncodedFile(NamedTuple):
    """The bytes of a file, and its name in messages."""

    data: bytes
    source: str


def read_file(path: pathlib.Path) -> EncodedFile:
    """Read a file without decoding it. Raises UserError if it cannot be read."""
    with _raise_user_error(str(path)):
        return EncodedFile(files.read_bytes(path, MAX_BYTES), str(path))


def decode_example(
    image_id: str, image: EncodedFile, labels: Mapping[str, EncodedFile], tasks: Mapping[str, Task]
) -> Example:
    """Decode to {"image_id": str, "image": uint8 (H, W, 3), TASK: label (H, W) or (H, W, D) of `Task.decode`}.

    Raises UserError for a file that cannot be decoded, and for a label whose size differs from the image's.
    """
    with _raise_user_error(image.source):
        example: Example = {"image_id": image_id, "image": decode_image(*image)}
    height, width = example["image"].shape[:2]
    for name, task in tasks.items():
        label = decode_label(task, labels[name])
        if label.shape[:2] != (height, width):
            raise UserError(
                f"{labels[name].source}: {label.shape[1]}x{label.shape[0]} pixels, "
                f"but {image.source} is stored with {width}x{height}; "
                "a label must have the size of its image (EXIF orientation is not applied)"
            )
        example[name] = label
    return example


def decode_label(task: Task, label: EncodedFile) -> np.ndarray:
    """Decode a label with `Task.decode` to (H, W) or (H, W, D). Raises UserError for any error of a damaged file."""
    with _raise_user_error(label.source):
        return task.decode(*label)


def decode_image(data: bytes, source: str) -> np.ndarray:
    """Decode an image to uint8 RGB (H, W, 3), without applying an EXIF orientation, since labels have none.

    Raises UserError if it is damaged, truncated or has more than 8 bits per channel.
    """
    with image_files.open_image(data, source, "an image of 8 bits per channel") as image:
        if image.mode[0] in "IF":
            raise UserError(f"{source}: pixel format {image.mode}; images must have 8 bits per channel")
        return image_files.read_pixels(image, data) if image.mode == "RGB" else np.asarray(image.convert("RGB"))


@contextlib.contextmanager
def _raise_user_error(source: str) -> Iterator[None]:
    """Turn any error, MemoryError included, into a UserError, so that a run counts one bad example and continues."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{source}: cannot be decoded ({files.describe_error(error)})") from error
