"""From examples to the arrays of a batch, in the memory that worker processes share with the main one."""

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from grain.multiprocessing import SharedMemoryArray

from mtlora_jax.errors import UserError

LARGE = 65536  # bytes of an array from which on it is worth the trouble
ROWS = 64  # in one call of the system, which takes up to 1024 rows and 2 GB


def stack(examples: Sequence[Mapping[str, Any]], shared: bool) -> dict[str, np.ndarray]:
    """{key: array (B, ...)} of examples with the same keys, shapes and dtypes.

    With `shared`, for a worker of Grain, large arrays lie in shared memory already. Raises UserError if that is full.
    """
    return {key: _stack([np.asarray(example[key]) for example in examples], shared) for key in examples[0]}


def _stack(rows: Sequence[np.ndarray], shared: bool) -> np.ndarray:
    first = rows[0]
    if not shared or first.nbytes < LARGE:
        return np.stack(rows)
    batch = SharedMemoryArray((len(rows), *first.shape), first.dtype)
    if sys.platform != "linux":  # where this memory is no file
        return np.stack(rows, out=batch)
    # Written as a file, since a page that is touched for the first time costs more than all the copying.
    assert batch.shm is not None
    file = batch.shm._fd  # pyright: ignore[reportAttributeAccessIssue]
    buffers: Any = [np.ascontiguousarray(row, first.dtype) for row in rows]
    written, reason = 0, "no space left"
    try:
        for start in range(0, len(rows), ROWS):
            written += os.pwritev(file, buffers[start : start + ROWS], start * first.nbytes)
    except OSError as error:
        reason = error.strerror
    if written != batch.nbytes:
        batch.shm.unlink()
        raise UserError(
            f"/dev/shm: a batch of {batch.nbytes / 1e6:.0f} MB cannot be shared by workers ({reason}); "
            "make it larger, or take fewer --config.data.num_workers or smaller batches"
        )
    return batch


def release(batch: Mapping[str, Any]) -> None:
    """Takes the names of a worker's arrays from the system: their memory now goes with the last reference to them, or with this process.

    By default Grain does so when an array is deleted, which at the end of a process comes too late, or never: that memory would be lost.
    """
    for array in batch.values():
        if isinstance(array, SharedMemoryArray) and array.shm is not None:
            array.shm.unlink()
            array._unlink_on_del = False
