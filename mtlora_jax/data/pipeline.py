"""From a random-access data set to batches, with Grain.

Batch k is a pure function of the data set, the seed and k. Batches are therefore the same for any number of workers
and processes, and the position of an iterator is one number. Damaged files keep this true: the next example in the
data set replaces an unreadable one.
"""

import contextlib
import ctypes
import functools
import gc
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import cv2
import grain
import jax
import numpy as np
from absl import flags

from mtlora_jax.data import reference_transforms as reference
from mtlora_jax.data import transforms
from mtlora_jax.data.batching import collate, release
from mtlora_jax.data.decoding import Example
from mtlora_jax.data.transforms import PASCAL, Augmentation
from mtlora_jax.errors import UserError
from mtlora_jax.tasks.task import IGNORE, Task

MAX_ATTEMPTS = 16  # examples tried in a row before unreadable files are an error
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h


class Dataset(Protocol):
    """Interface of the classes in `DATASETS`; instances are pickled into the workers."""

    tasks: dict[str, Task]
    ids: Sequence[str]  # of the examples, in order

    def __init__(self, root: str, split: str, tasks: Sequence[str]) -> None: ...

    @classmethod
    def make_tasks(cls, root: str, tasks: Sequence[str]) -> dict[str, Task]:
        """Build the tasks with the classes of the data set, even if its files are missing."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...

    def label(self, index: int, task: str) -> np.ndarray:
        """Decode one label of an example alone. Raises UserError if it is bad."""
        ...


class Batches(grain.DatasetIterator):
    """Iterator over batches of numpy arrays.

    A batch is {"image": uint8 (B, H, W, 3), TASK: (B, H, W[, D]), "mask": bool (B,), "image_id": str (B,),
    "error": str (B,)}. "error" is empty, or says why the example that belongs there could not be read. The state,
    {"next_batch": int}, does not depend on the number of workers and processes. A UserError of a worker is raised here
    unchanged; a worker that was killed raises UserError too. `close()` and the end of the data stop the workers.
    """

    def __init__(self, batches: grain.MapDataset, num_workers: int):
        super().__init__()
        self._batches = batches
        self._workers = num_workers
        self._next_batch = 0
        self._iterator: grain.DatasetIterator | None = None

    def __next__(self) -> dict[str, np.ndarray]:
        try:
            batch = next(self._started())
        except UserError as error:
            message = str(error)
        except RuntimeError as error:
            if "Worker process was terminated" not in str(error):
                raise
            message = (
                f"a data worker ended by itself ({str(error).split('. ')[0]}); -9 means that it was killed, "
                "as the system does when memory runs out: use fewer --config.data.num_workers"
            )
        else:
            self._next_batch += 1
            release(batch)
            return batch
        # The original error is dropped because its frames hold batches in shared memory.
        self.close()
        raise UserError(message)

    def start_prefetch(self) -> None:
        """Start the workers before the first batch is requested."""
        self._started()

    def _started(self) -> grain.DatasetIterator:
        self._assert_not_closed()
        if self._iterator is None:
            if not flags.FLAGS.is_parsed():  # outside absl's app.run; Grain reads its flags when it starts workers
                flags.FLAGS.mark_as_parsed()
            # Grain would keep hundreds of batches by default. With worker processes, their queue is buffer enough.
            ahead = 0 if self._workers else 1
            batches = self._batches[self._next_batch :].to_iter_dataset(
                grain.ReadOptions(num_threads=ahead, prefetch_buffer_size=ahead)
            )
            self._iterator = iter(
                batches.mp_prefetch(grain.MultiprocessingOptions(self._workers), worker_init_fn=_start_worker)
            )
            self._iterator.start_prefetch()
        return self._iterator

    def get_state(self) -> dict[str, Any]:
        return {"next_batch": self._next_batch}

    def set_state(self, state: dict[str, Any]) -> None:
        self._stop()
        self._next_batch = state["next_batch"]

    def close(self) -> None:
        self._stop()
        super().close()

    def _stop(self) -> None:
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None
            gc.collect()  # a Grain iterator that failed is a reference cycle that holds shared memory


def train_batches(
    dataset: Dataset,
    *,
    image_size: tuple[int, int],
    batch_size: int,
    seed: int,
    num_workers: int = 0,
    augmentation: Augmentation = PASCAL,
    reference_transforms: bool = False,
    process_index: int = 0,
    process_count: int = 1,
) -> Batches:
    """Make an endless iterator over augmented batches of batch_size / process_count examples.

    Every epoch holds every image once, in its own order and augmentation; a batch may reach into the next epoch. The
    batches of all processes together form the batch that a single process would make.

    Args:
      dataset: the examples.
      image_size: (H, W) of the batches.
      batch_size: over all processes.
      seed: of order and augmentation.
      num_workers: worker processes; with 0, a thread of this process prepares the batches.
      augmentation: random geometry.
      reference_transforms: use the transforms of the reference implementation.
      process_index: of this process.
      process_count: of the job.

    Raises:
      UserError: for an invalid batch size, number of workers or seed.
    """
    _check(batch_size, num_workers, process_count)
    if not 0 <= seed < 2**32:
        raise UserError(f"seed = {seed}: must be in [0, 2**32)")
    warp = functools.partial(
        reference.warp if reference_transforms else transforms.warp, tasks=dataset.tasks, image_size=image_size
    )
    transform = functools.partial(_train_example, augmentation=augmentation, warp=warp)
    examples = grain.MapDataset.source(_SkipUnreadable(dataset)).seed(seed).shuffle().repeat().random_map(transform)
    return Batches(_shard(examples, batch_size, process_index, process_count, num_workers), num_workers)


def eval_batches(
    dataset: Dataset,
    *,
    image_size: tuple[int, int],
    batch_size: int,
    num_workers: int = 0,
    reference_transforms: bool = False,
    process_index: int = 0,
    process_count: int = 1,
) -> Batches:
    """Make an iterator over every example once, in the order of the data set; each process gets as many batches.

    Padding of the last batch has mask False, a black image, labels all 255 and image_id ""; so has an unreadable
    example. Otherwise as `train_batches`.
    """
    _check(batch_size, num_workers, process_count)
    padded = -(-len(dataset) // batch_size) * batch_size
    resize = functools.partial(
        reference.resize if reference_transforms else transforms.resize, tasks=dataset.tasks, image_size=image_size
    )
    examples = grain.MapDataset.range(padded).map(
        functools.partial(_eval_example, dataset=_SkipUnreadable(dataset), resize=resize)
    )
    return Batches(_shard(examples, batch_size, process_index, process_count, num_workers), num_workers)


def _shard(
    examples: grain.MapDataset, batch_size: int, process_index: int, process_count: int, num_workers: int
) -> grain.MapDataset:
    """Select this process's rows of every batch.

    Devices are ordered by process, so every device gets the rows that a single process would give it. The selection
    follows everything random, so that an example depends only on its place in the global order.
    """
    batch_fn = functools.partial(collate, shared=num_workers > 0)
    batches = examples.batch(batch_size // process_count, drop_remainder=True, batch_fn=batch_fn)
    return batches[process_index::process_count]


def _check(batch_size: int, num_workers: int, process_count: int) -> None:
    if batch_size < 1 or batch_size % process_count:
        raise UserError(
            f"batch size {batch_size}: must be a positive multiple of the number of processes, {process_count}"
        )
    if num_workers < 0:
        raise UserError(f"num_workers = {num_workers}: must be 0 (this process does the work) or more")


class _SkipUnreadable:
    """Replaces an unreadable example by the next readable one and records the error under "error".

    Raises UserError if `MAX_ATTEMPTS` examples in a row cannot be read.
    """

    def __init__(self, dataset: Dataset):
        self.tasks = dataset.tasks
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Example:
        message = ""
        for place in range(index, index + MAX_ATTEMPTS):
            try:
                return self._dataset[place % len(self)] | {"error": message}
            except UserError as error:
                message = message or str(error)
        raise UserError(f"{message}; nor can the {MAX_ATTEMPTS - 1} examples after it be read")


def _train_example(
    example: Example, rng: np.random.Generator, *, augmentation: Augmentation, warp: Callable[..., Example]
) -> Example:
    return warp(example, transform=augmentation.draw(rng)) | {"mask": np.True_}


def _eval_example(index: int, *, dataset: "_SkipUnreadable", resize: Callable[..., Example]) -> Example:
    example = resize(dataset[min(index, len(dataset) - 1)]) | {"mask": np.True_}
    if index >= len(dataset):
        example["error"] = ""  # an error of the last example was reported in its own row
    elif not example["error"]:
        return example
    labels = {name: np.full_like(example[name], IGNORE) for name in dataset.tasks}
    return example | {"image_id": "", "image": np.zeros_like(example["image"]), "mask": np.False_} | labels


def _start_worker(index: int, count: int) -> None:
    del index, count
    cv2.setNumThreads(0)  # there is one worker per core already
    jax.config.update("jax_platforms", "cpu")  # the accelerators belong to the main process
    _keep_freed_memory()
    # Ctrl-C, a closed terminal and the signals of a cluster reach all processes. The main one handles them for all.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this worker when the main process is gone, even by SIGKILL; otherwise it would wait forever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


def _keep_freed_memory() -> None:
    """Tell the C library to keep freed memory for the next image.

    By default it returns blocks of this size to the system. Getting them back, page by page, takes as long as all
    decoding and warping. Only glibc has this option.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(M_MMAP_THRESHOLD, 32 * 2**20)  # the maximum
        mallopt(M_TRIM_THRESHOLD, 512 * 2**20)
