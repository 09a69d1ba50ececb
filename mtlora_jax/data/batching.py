"""Collates examples into batches, in memory shared with the main process."""

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from grain.multiprocessing import SharedMemoryArray

from mtlora_jax.errors import UserError

MIN_SHARED_BYTES = 65536  # smaller arrays are not worth shared memory
ROWS = 64  # per pwritev call, which takes up to 1024 rows and 2 GB


def collate(examples: Sequence[Mapping[str, Any]], shared: bool) -> dict[str, np.ndarray]:
    """Stack examples with equal keys, shapes and dtypes to {key: array (B, ...)}.

    With `shared`, for a worker of Grain, large arrays are written to shared memory. Raises UserError if that is full.
    """
    return {key: _stack([np.asarray(example[key]) for example in examples], shared) for key in examples[0]}


def _stack(rows: Sequence[np.ndarray], shared: bool) -> np.ndarray:
    first = rows[0]
    if not shared or first.nbytes < MIN_SHARED_BYTES:
        return np.stack(rows)
    batch = SharedMemoryArray((len(rows), *first.shape), first.dtype)
    if sys.platform != "linux":  # elsewhere this memory is not a file
        return np.stack(rows, out=batch)
    # Written as a file: the first touch of each page of mapped memory costs more than all the copying.
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
            "make it larger, or use fewer --config.data.num_workers or smaller batches"
        )
    return batch


def release(batch: Mapping[str, Any]) -> None:
    """Unlink the shared memory of a worker's arrays, so that it is freed with their last reference or this process.

    Grain unlinks it when an array is deleted. At the end of a process that is too late, or never happens, and the
    memory would be lost.
    """
    for array in batch.values():
        if isinstance(array, SharedMemoryArray) and array.shm is not None:
            array.shm.unlink()
            array._unlink_on_del = False
