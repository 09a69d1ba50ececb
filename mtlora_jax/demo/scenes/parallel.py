"""Processes many scenes in parallel."""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from rich.progress import track

from mtlora_jax.errors import UserError


def map_on_all_cores(function: Callable[[Any], Any], items: Sequence[Any], title: str) -> Iterator[Any]:
    """Yields function(item) for each item in order, using one process per core and a progress bar.

    `function` must be importable. Raises what it raises, and UserError if a process dies.
    """
    # Read when a process loads its linear algebra, where threads for 3x3 matrices only slow each other down.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    pool = ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn"))
    try:
        yield from track(pool.map(function, items, chunksize=4), title, len(items))
    except BrokenProcessPool as error:
        raise UserError(
            f"{title}: a worker process died, perhaps killed because memory ran out; start again"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
