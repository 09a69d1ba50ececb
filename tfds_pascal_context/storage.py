"""Writing a data set so that it is whole or not there, and the same bytes every time."""

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
    """Writes the same bytes for the same examples; protobuf would put the features of each in an order of its own."""

    def write(self, path, examples):
        try:
            return super().write(path, ((key, _ordered(example)) for key, example in examples))
        except RuntimeError as error:  # of ArrayRecord, which knows no OSError
            raise UserError(
                f"{path}: cannot be written ({str(error).partition(';')[0]}); make room, if that is why, and start again"
            ) from error


def _ordered(example: bytes) -> bytes:
    Example = tf_example_pb2.Example  # pyright: ignore[reportAttributeAccessIssue]
    return Example.FromString(example).SerializeToString(deterministic=True)


@contextlib.contextmanager
def owned(folder: pathlib.Path) -> Iterator[None]:
    """Holds a folder for one build, and removes it where that leaves it empty. Raises UserError if another program has it."""
    try:
        with locks.hold_lock(folder, "wait for the end of this build"):
            yield
    finally:
        with contextlib.suppress(OSError):  # there is something worth keeping
            folder.rmdir()


@contextlib.contextmanager
def one_line_if_full(folder: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise UserError(
            f"{error.filename or folder}: {error.strerror}; what was converted is kept in {folder}: make room and start again"
        ) from error


def check_shards(split: tfds.core.SplitInfo) -> None:
    """Reads every record back: only then is the data set taken for whole. Raises UserError."""
    for path, expected in zip(split.filepaths, split.shard_lengths, strict=True):
        try:
            reader = ArrayRecordReader(os.fspath(path))
            written = sum(
                bool(record)
                for start in range(0, expected, 16)
                for record in reader.read(start, min(start + 16, expected))
            )
            reader.close()
        except (RuntimeError, ValueError, IndexError) as error:
            raise UserError(
                f"{path}: was not written whole ({error}); is the disk full? Make room and start again"
            ) from error
        if written != expected:
            raise UserError(
                f"{path}: was not written whole ({written} of {expected} examples); is the disk full? Make room and start again"
            )
