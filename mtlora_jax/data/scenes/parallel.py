"""Work on many scenes at once."""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rich.progress import track


def on_all_cores(function: Callable[[Any], Any], items: Sequence[Any], title: str) -> Iterator[Any]:
    """function(item) for each item, in order, by one process per core, with a progress bar. `function` must be importable."""
    # Read when a process loads its linear algebra: threads for 3x3 matrices only get in each other's way.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with multiprocessing.get_context("spawn").Pool() as pool:
        yield from track(pool.imap(function, items, chunksize=4), title, len(items))
