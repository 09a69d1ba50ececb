"""Writes a data set completely or not at all, with the same bytes every time."""

import contextlib
import os
import pathlib
from collections.abc import Iterator

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader  # pyright: ignore[reportAttributeAccessIssue]
from tensorflow_datasets.proto import tf_example_pb2  # pyright: ignore[reportAttributeAccessIssue]

from mtlora_jax.errors import UserError
from mtlora_jax.io import locks
from mtlora_jax.io.files import is_disk_full


class ReproducibleWriter(tfds.core.ExampleWriter):
    """Writes the same bytes for the same examples; protobuf alone does not fix the order of the features."""

    def write(self, path, examples):
        try:
            return super().write(path, ((key, _ordered(example)) for key, example in examples))
        except RuntimeError as error:  # ArrayRecord raises it instead of OSError
            reason = str(error).partition(";")[0]
            raise UserError(
                f"{path}: cannot be written ({reason}); make room if the disk is full, start again"
            ) from error


def _ordered(example: bytes) -> bytes:
    Example = tf_example_pb2.Example  # pyright: ignore[reportAttributeAccessIssue]
    return Example.FromString(example).SerializeToString(deterministic=True)


@contextlib.contextmanager
def owned(folder: pathlib.Path) -> Iterator[None]:
    """Locks a folder for one build; removes it if it is empty at the end. Raises UserError if it is locked."""
    try:
        with locks.hold_lock(folder, "wait for the end of this build"):
            yield
    finally:
        with contextlib.suppress(OSError):  # it holds unfinished work, which is kept
            folder.rmdir()


@contextlib.contextmanager
def one_line_if_full(folder: pathlib.Path) -> Iterator[None]:
    """Turns the OSError of a full disk into a UserError; `folder` holds the converted images, which are kept."""
    try:
        yield
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise UserError(
            f"{error.filename or folder}: {error.strerror}; "
            f"the converted images are kept in {folder}: make room and start again"
        ) from error


def check_shards(split: tfds.core.SplitInfo) -> None:
    """Reads every record back to ensure that it was written. Raises UserError."""
    advice = "is the disk full? Make room and start again"
    for path, expected in zip(split.filepaths, split.shard_lengths, strict=True):
        try:
            reader = ArrayRecordReader(os.fspath(path))
            parts = (reader.read(start, min(start + 16, expected)) for start in range(0, expected, 16))
            written = sum(bool(record) for part in parts for record in part)
            reader.close()
        except (RuntimeError, ValueError, IndexError) as error:
            raise UserError(f"{path}: was not written completely ({error}); {advice}") from error
        if written != expected:
            raise UserError(f"{path}: was not written completely ({written} of {expected} examples); {advice}")
