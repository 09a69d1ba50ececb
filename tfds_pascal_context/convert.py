"""Converts raw labels in parallel into a cache of finished files, one per image, so that a build that was stopped goes on where it was."""

import concurrent.futures
import concurrent.futures.process
import contextlib
import dataclasses
import hashlib
import io
import json
import multiprocessing
import os
import pathlib
import signal
import sys
import threading
import types
import zipfile
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from mtlora_jax.errors import UserError
from tfds_pascal_context import files, labels
from tfds_pascal_context.raw import Raw

FORMAT = 2  # of the cached files; to be raised whenever their contents come out differently
ASPECT = 1.05  # a label whose sides are in a ratio that differs by more cannot belong to the image

HEAD = "head.json"  # in a cached file, beside the labels


@dataclasses.dataclass(frozen=True)
class Converted:
    """One image, ready to be stored.

    Attributes:
      labels: {task: PNG file}. people: whether there is a person (False where human_parts was not asked for).
      resized: tasks whose label had another size than the image.
    """

    labels: dict[str, bytes]
    people: bool
    resized: tuple[str, ...]


def convert(raw: Raw, image_id: str, tasks: Sequence[str]) -> Converted:
    """Makes the labels of one image. Raises UserError naming the file that is missing, damaged or does not fit."""
    size = files.check_jpeg(raw.image(image_id))
    made, resized = {}, []
    for task in tasks:
        annotated = label(raw, task, image_id, size)
        if annotated.shape[:2] != size:
            resized.append(task)
        made[task] = files.png((labels.fit_normals if task == "normals" else labels.fit)(annotated, size))
    return Converted(made, "human_parts" in tasks and raw.has_people(image_id), tuple(resized))


def label(raw: Raw, task: str, image_id: str, size: tuple[int, int]) -> np.ndarray:
    """One label in the size it was annotated in; `size` = (H, W) is the image's. Raises UserError naming a file, if only for its shape."""
    annotated = raw.label(task, image_id, size)
    height, width = annotated.shape[:2]
    if not 1 / ASPECT <= (width / height) / (size[1] / size[0]) <= ASPECT:
        raise UserError(
            f"{raw.files(task, image_id)[0]}: a label of another size, {width}x{height}, than {raw.image(image_id)}, "
            f"{size[1]}x{size[0]}; expected the same shape"
        )
    return annotated


def load(path: pathlib.Path, fingerprint: str) -> Converted | None:
    """A cached image; None if there is none, if it is damaged, or if it was made from other files."""
    try:
        with zipfile.ZipFile(path) as cached:
            head = json.loads(cached.read(HEAD))
            if head["fingerprint"] != fingerprint:
                return None
            return Converted({task: cached.read(task) for task in head["tasks"]}, head["people"], tuple(head["resized"]))
    except Exception:  # a damaged archive can raise anything
        return None


def store(path: pathlib.Path, fingerprint: str, converted: Converted) -> None:
    """Writes one image to the cache, whole or not at all."""
    head = {
        "fingerprint": fingerprint,
        "tasks": list(converted.labels),
        "people": converted.people,
        "resized": converted.resized,
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as cached:
        for name, content in {HEAD: json.dumps(head), **converted.labels}.items():
            cached.writestr(name, content)
    temporary = path.with_suffix(".tmp")
    try:
        temporary.write_bytes(buffer.getbuffer())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def fingerprint(raw: Raw, image_id: str, tasks: Sequence[str]) -> str:
    """Changes whenever a file that the image is made from does. Raises UserError for a file that is missing."""
    state = [FORMAT, list(tasks)]
    for path in raw.paths(tasks, image_id):
        if not path.is_file():
            raise UserError(f"{path}: no such file")
        state.append([str(path.relative_to(raw.root)), path.stat().st_size, path.stat().st_mtime_ns])
    return hashlib.sha256(json.dumps(state).encode()).hexdigest()


def load_finished(raw: Raw, image_id: str, tasks: Sequence[str], cache: pathlib.Path) -> Converted:
    """An image that `convert_all` has put into the cache. Raises UserError if its files have changed since."""
    converted = load(cache / f"{image_id}.zip", fingerprint(raw, image_id, tasks))
    if converted is None:
        raise UserError(f"{raw.image(image_id)}: this image or its labels changed while they were read; start again")
    return converted


def convert_all(raw: Raw, ids: Sequence[str], tasks: Sequence[str], cache: pathlib.Path, workers: int) -> Iterator[tuple[Converted, bool]]:
    """Converts many images into `cache`; yields, in the order of `ids`, each without its labels, and whether it had to be converted.

    Raises UserError for the first image that cannot be converted, OSError if the disk is full.
    """
    cache.mkdir(parents=True, exist_ok=True)
    yield from in_parallel(_convert_cached, [(raw, image_id, tuple(tasks), cache / f"{image_id}.zip") for image_id in ids], workers)


def in_parallel(function: Callable, calls: Sequence[tuple], workers: int) -> Iterator:
    """`function(*call)` of every call, in order, over `workers` processes; with one worker, in this process.

    Raises what the function raises, and UserError if a worker is killed.
    """
    if workers == 1:
        yield from (function(*call) for call in calls)
        return
    # Neither fork, which can hang where libraries have threads, nor spawn, which imports everything anew for every worker.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tfds_pascal_context.convert"])
    pool = concurrent.futures.ProcessPoolExecutor(workers, context, initializer=_start_worker)
    try:
        with _main_left_out():
            results = pool.map(function, *zip(*calls, strict=True), chunksize=4)  # starts the workers
        yield from results
    except concurrent.futures.process.BrokenProcessPool as error:
        raise UserError(f"a worker of {workers} was killed, perhaps for want of memory; start again, with fewer --workers") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _convert_cached(raw: Raw, image_id: str, tasks: tuple[str, ...], path: pathlib.Path) -> tuple[Converted, bool]:
    mark = fingerprint(raw, image_id, tasks)
    there = load(path, mark)
    converted = there or convert(raw, image_id, tasks)
    if not there:
        store(path, mark, converted)
    return dataclasses.replace(converted, labels={}), not there


@contextlib.contextmanager
def _main_left_out() -> Iterator[None]:
    """Workers would run the main script anew, and a script that calls `tfds.load` need not be written for that."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _start_worker() -> None:
    import cv2  # the other libraries are there already

    cv2.setNumThreads(1)  # there is one worker per core already
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process, which ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A main process that is killed cannot end its workers."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
