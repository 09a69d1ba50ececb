"""Checks the training labels before the first step for values that never occur."""

import contextlib
import math
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from mtlora_jax.errors import UserError
from mtlora_jax.tasks.task import IGNORE

if TYPE_CHECKING:
    from mtlora_jax.data.pipeline import Dataset

MAX_LABELS, MAX_PIXELS = 200, 100_000_000  # inspected per task, so that it takes a second or two for any data set
MAX_NAMES = 5  # of classes in a line


def spread_indices(count: int) -> Iterator[int]:
    """Yield 0 to `count` - 1 in an order whose every prefix is spread evenly over the range."""
    golden = round(count * (math.sqrt(5) - 1) / 2)
    stride = next((stride for stride in range(max(golden, 1), count) if math.gcd(stride, count) == 1), 1)
    return (index * stride % count for index in range(count))


def describe_label_encodings(dataset: "Dataset") -> list[str]:
    """Describe how label values are read, one line for each task where that depends on the data set."""
    described = {name: task.describe_label_values() for name, task in dataset.tasks.items()}
    return [f"{name}: labels are read as {words}" for name, words in described.items() if words]


def describe_missing_values(dataset: "Dataset") -> list[str]:
    """Describe the label values that never occur in training, one line for each task that misses some.

    Inspects some labels of a large data set. Raises UserError for a task with nothing to learn: all labels were
    inspected, and no pixel is valid or all valid ones are equal.
    """
    lines = [_describe_missing(dataset, name) for name in dataset.tasks]
    return [line for line in lines if line]


def _describe_missing(dataset: "Dataset", name: str) -> str:
    names = dataset.tasks[name].value_names()
    wanted = set(names) or {0}
    found: set[int] = set()
    tried = looked = pixels = 0
    for index in spread_indices(len(dataset)):
        if tried >= MAX_LABELS or pixels >= MAX_PIXELS or found >= wanted:
            break
        tried += 1
        with contextlib.suppress(UserError):  # reported and counted when it is read as an example
            label = dataset.label(index, name)
            looked += 1
            pixels += label.size
            found |= set(
                np.flatnonzero(np.bincount(label.ravel())).tolist() if names else [0] if np.any(label != IGNORE) else []
            )
    if not looked or found >= wanted:
        return ""
    whole = tried == len(dataset)
    who = "no training label" if whole else f"none of the {looked} training labels looked at (of {len(dataset)})"
    line = f"{name}: {who} has {_named(names, wanted - found) or 'a pixel whose value is known'}"
    if whole and len(found & wanted) < min(len(wanted), 2):
        holds = " and ".join(
            filter(None, [_named(names, found), f"{IGNORE}, which is ignored" if IGNORE in found else ""])
        )
        raise UserError(
            f"{line}{f'; all {looked} hold nothing but {holds}' if names else ''}: there is nothing to learn"
        )
    return f"{line}{f'; {IGNORE} means ignored' if names else ''}"


def _named(names: Mapping[int, str], values: Collection[int]) -> str:
    words = [f"class {value} {names[value]!r}" for value in sorted(values) if value in names]
    return ", ".join(words[:MAX_NAMES]) + (f" and {len(words) - MAX_NAMES} more" if len(words) > MAX_NAMES else "")
