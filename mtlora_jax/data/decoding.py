"""From the encoded files of one example to its arrays."""

import contextlib
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from mtlora_jax.errors import UserError
from mtlora_jax.io import files, pictures
from mtlora_jax.tasks.task import Task

Example = dict[str, Any]  # strings and arrays


LARGEST = 2**31  # bytes of an image or a label; a file that has more is something else


class EncodedFile(NamedTuple):
    """The contents of a file, and what messages call it."""

    data: bytes
    source: str


def read_file(path: pathlib.Path) -> EncodedFile:
    """A file as it lies on disk. Raises UserError if it cannot be read."""
    with _one_bad_file(str(path)):
        return EncodedFile(files.read_bytes(path, LARGEST), str(path))


def decode_example(image_id: str, image: EncodedFile, labels: Mapping[str, EncodedFile], tasks: Mapping[str, Task]) -> Example:
    """{"image_id": str, "image": uint8 (H, W, 3), TASK: label (H, W) or (H, W, D) as `Task.decode` gives it}.

    Raises UserError for what cannot be decoded, and for a label whose size is not the image's.
    """
    with _one_bad_file(image.source):
        example: Example = {"image_id": image_id, "image": decode_image(*image)}
    height, width = example["image"].shape[:2]
    for name, task in tasks.items():
        label = decode_label(task, labels[name])
        if label.shape[:2] != (height, width):
            raise UserError(
                f"{labels[name].source}: {label.shape[1]}x{label.shape[0]} pixels, but {image.source} is stored with {width}x{height}; "
                "a label must have the size of its image (EXIF orientation is not applied)"
            )
        example[name] = label
    return example


def decode_label(task: Task, label: EncodedFile) -> np.ndarray:
    """A label (H, W) or (H, W, D) as `Task.decode` gives it. Raises UserError, whatever a damaged file makes the task stumble over."""
    with _one_bad_file(label.source):
        return task.decode(*label)


def decode_image(data: bytes, source: str) -> np.ndarray:
    """Decodes an image to uint8 RGB (H, W, 3), as it is stored: an EXIF orientation is not applied, since labels have none.

    Raises UserError if it is damaged, cut off or has more than 8 bits per channel.
    """
    with pictures.opened(data, source, "an image of 8 bits per channel") as image:
        if image.mode[0] in "IF":
            raise UserError(f"{source}: pixel format {image.mode}; images must have 8 bits per channel")
        return pictures.pixels_of(image, data) if image.mode == "RGB" else np.asarray(image.convert("RGB"))


@contextlib.contextmanager
def _one_bad_file(source: str) -> Iterator[None]:
    """Makes a UserError of what is raised, want of memory included, so that a run counts one bad example and goes on."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{source}: cannot be decoded ({files.reason_of(error)})") from error
