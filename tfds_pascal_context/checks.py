"""Checks of one image of the raw data, or of one example of a built data set."""

import functools
import pathlib
from typing import Any

from mtlora_jax.errors import UserError
from mtlora_jax.io import image_files
from mtlora_jax.io.files import describe_error
from tfds_pascal_context import convert, files, workers


def raw_problems(raw: Any, image_id: str, tasks: tuple[str, ...]) -> dict[str, str]:
    """Checks one image: returns {task: error message or ""}, or {"image": error message} if it is unusable."""
    try:
        size = files.check_jpeg(raw.image(image_id))
    except UserError as error:
        return {"image": str(error)}
    return {task: _problem(functools.partial(convert.label, raw, task, image_id, size)) for task in tasks}


def built_problems(
    folder: pathlib.Path, split: str, index: int, image_id: str, tasks: tuple[str, ...]
) -> dict[str, str]:
    """Checks one example of a built data set; returns the same as `raw_problems`."""
    origin = f"{folder}: {split} example {index} ({image_id})"
    workers.note(origin)
    try:
        example = _source(folder, split)[index]
        if example["image_id"].decode() != image_id:
            return {"image": f"{origin}: has the id {example['image_id'].decode()}"}
        size = _size(example["image"], origin, "JPEG")
    except UserError as error:
        return {"image": str(error)}
    except Exception as error:  # a damaged record can raise anything
        return {"image": f"{origin}: cannot be read ({describe_error(error)})"}
    return {task: _problem(functools.partial(_check_size, f"{origin}: {task}", example[task], size)) for task in tasks}


def _problem(check: Any) -> str:
    try:
        check()
    except UserError as error:
        return str(error)
    return ""


def _check_size(origin: str, content: bytes, expected: tuple[int, int]) -> None:
    size = _size(content, origin, "PNG")
    if size != expected:
        raise UserError(f"{origin} is {size[0]}x{size[1]}, its image {expected[0]}x{expected[1]}")


def _size(content: bytes, origin: str, format: str) -> tuple[int, int]:
    with image_files.open_image(content, origin, f"a {format} image", (format,)) as image:
        image.load()
        return image.size


@functools.cache
def _source(folder: pathlib.Path, split: str) -> Any:
    """The examples, with encoded images."""
    import tensorflow_datasets as tfds

    builder: Any = tfds.builder_from_directory(str(folder))
    undecoded: Any = tfds.decode.SkipDecoding()
    return builder.as_data_source(
        split, decoders={name: undecoded for name in builder.info.features if name != "image_id"}
    )
