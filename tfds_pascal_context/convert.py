"""Converts raw labels in parallel into a cache with one file per image, so that a stopped build can continue."""

import dataclasses
import hashlib
import io
import json
import pathlib
import zipfile
from collections.abc import Iterator, Sequence

import numpy as np

from mtlora_jax.errors import UserError
from mtlora_jax.io import image_files
from tfds_pascal_context import files, labels
from tfds_pascal_context.raw import Raw
from tfds_pascal_context.workers import in_parallel, note

FORMAT = 2  # of the cached files; increase it whenever the contents that are written change
ASPECT = 1.05  # a label whose aspect ratio differs by a larger factor cannot belong to the image

HEAD = "head.json"  # entry of a cached file, next to the labels


@dataclasses.dataclass(frozen=True)
class Converted:
    """The labels of one image, ready to be stored.

    Attributes:
      labels: {task: PNG file}.
      people: whether the image shows a person; False if human_parts is not built.
      resized: tasks whose label differed in size from the image.
    """

    labels: dict[str, bytes]
    people: bool
    resized: tuple[str, ...]


def convert(raw: Raw, image_id: str, tasks: Sequence[str]) -> Converted:
    """Makes the labels of one image. Raises UserError naming a file that is missing, damaged or does not fit."""
    size = files.check_jpeg(raw.image(image_id))
    made, resized = {}, []
    for task in tasks:
        annotated = label(raw, task, image_id, size)
        if annotated.shape[:2] != size:
            resized.append(task)
        with files.blamed(raw.files(task, image_id)[0], f"a label of {task}"):
            made[task] = files.png((labels.fit_normals if task == "normals" else labels.fit)(annotated, size))
    return Converted(made, "human_parts" in tasks and raw.has_people(image_id), tuple(resized))


def label(raw: Raw, task: str, image_id: str, size: tuple[int, int]) -> np.ndarray:
    """Returns one label in its annotated size; `size` = (H, W) is the image's.

    Raises UserError naming the file, also if its aspect ratio differs from the image's.
    """
    with files.blamed(raw.files(task, image_id)[0], f"a label of {task}"):
        annotated = raw.label(task, image_id, size)
    height, width = annotated.shape[:2]
    if not 1 / ASPECT <= (width / height) / (size[1] / size[0]) <= ASPECT:
        raise UserError(
            f"{raw.files(task, image_id)[0]}: the label is {width}x{height} but {raw.image(image_id)} is "
            f"{size[1]}x{size[0]}; expected the same aspect ratio"
        )
    return annotated


def load(path: pathlib.Path, fingerprint: str, tasks: Sequence[str]) -> Converted | None:
    """Reads a cached image with the labels of `tasks`.

    Returns None if the file is missing or invalid, or was made from other raw files.
    """
    note(path)
    try:
        with zipfile.ZipFile(path) as cached:
            entries = cached.infolist()
            ordinary = {entry.compress_type for entry in entries} <= {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
            if not ordinary or sum(entry.file_size for entry in entries) > files.LARGEST:
                return None
            # Given the stated size, `read` decompresses no more than that.
            contents = {entry.filename: cached.open(entry).read(entry.file_size) for entry in entries}
        if [len(content) for content in contents.values()] != [entry.file_size for entry in entries]:
            return None
        head = json.loads(contents.pop(HEAD))
        whole = contents.keys() == set(tasks) and len({_size(content) for content in contents.values()}) == 1
        if head["fingerprint"] != fingerprint or not whole or not set(tasks).issuperset(head["resized"]):
            return None
        return Converted({task: contents[task] for task in tasks}, bool(head["people"]), tuple(head["resized"]))
    except Exception:  # a damaged archive can raise anything
        return None


def _size(png: bytes) -> tuple[int, int]:
    """Returns (width, height) of a label. Raises UserError if it is not a PNG file."""
    with image_files.open_image(png, "a label", "a PNG file", ("PNG",)) as image:
        return image.size


def pack(fingerprint: str, converted: Converted) -> bytes:
    """Returns the contents of the cached file of one image."""
    head = {"fingerprint": fingerprint, "people": converted.people, "resized": converted.resized}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as cached:
        for name, content in {HEAD: json.dumps(head), **converted.labels}.items():
            cached.writestr(name, content)
    return buffer.getvalue()


def store(path: pathlib.Path, packed: bytes) -> None:
    """Writes one image to the cache, whole or not at all."""
    temporary = path.with_suffix(".tmp")
    try:
        temporary.write_bytes(packed)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def fingerprint(raw: Raw, image_id: str, tasks: Sequence[str]) -> str:
    """Returns a hash that changes with the raw files of the image. Raises UserError for a missing file."""
    state = [FORMAT, list(tasks)]
    for path in raw.paths(tasks, image_id):
        if not path.is_file():
            raise UserError(f"{path}: no such file")
        state.append([str(path.relative_to(raw.root)), path.stat().st_size, path.stat().st_mtime_ns])
    return hashlib.sha256(json.dumps(state).encode()).hexdigest()


def load_finished(raw: Raw, image_id: str, tasks: Sequence[str], cache: pathlib.Path) -> Converted:
    """Reads an image that `convert_all` put into the cache. Raises UserError if its raw files changed since."""
    converted = load(cache / f"{image_id}.zip", fingerprint(raw, image_id, tasks), tasks)
    if converted is None:
        raise UserError(f"{raw.image(image_id)}: the image or its labels changed during the build; start again")
    return converted


def convert_all(
    raw: Raw, ids: Sequence[str], tasks: Sequence[str], cache: pathlib.Path, workers: int
) -> Iterator[tuple[Converted, bool]]:
    """Converts many images into `cache`.

    Yields, in the order of `ids`, each image without its labels, and whether it was converted now. Raises UserError
    for the first image that cannot be converted, OSError if the disk is full.
    """
    cache.mkdir(parents=True, exist_ok=True)
    paths = [cache / f"{image_id}.zip" for image_id in ids]
    calls = [(raw, image_id, tuple(tasks), path) for image_id, path in zip(ids, paths, strict=True)]
    for path, (converted, packed) in zip(paths, in_parallel(_convert_cached, calls, workers), strict=True):
        if packed:
            store(path, packed)
        yield converted, bool(packed)


def _convert_cached(raw: Raw, image_id: str, tasks: tuple[str, ...], path: pathlib.Path) -> tuple[Converted, bytes]:
    """Returns an image without its labels, and the bytes to write to `path`; none if it is cached already."""
    mark = fingerprint(raw, image_id, tasks)
    found = load(path, mark, tasks)
    converted = found or convert(raw, image_id, tasks)
    return dataclasses.replace(converted, labels={}), b"" if found else pack(mark, converted)
