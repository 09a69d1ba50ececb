"""A look at the training labels before the first step: what they never hold cannot be learned."""

import contextlib
import math
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from mtlora_jax.errors import UserError
from mtlora_jax.tasks.task import IGNORE

if TYPE_CHECKING:
    from mtlora_jax.data.pipeline import Dataset

LABELS, PIXELS = 200, 100_000_000  # of a task that are looked at, at most; so that it takes a second or two, however large the data set
SHOWN = 5  # names of classes in a line


def spread(count: int) -> Iterator[int]:
    """0 to `count` - 1, each once, in an order whose every beginning is spread over all of them."""
    golden = round(count * (math.sqrt(5) - 1) / 2)
    stride = next((stride for stride in range(max(golden, 1), count) if math.gcd(stride, count) == 1), 1)
    return (index * stride % count for index in range(count))


def readings(dataset: "Dataset") -> list[str]:
    """How the values of labels are read, a line for each task where that depends on the data set."""
    described = {name: task.describe_label_values() for name, task in dataset.tasks.items()}
    return [f"{name}: labels are read as {words}" for name, words in described.items() if words]


def lacks(dataset: "Dataset") -> list[str]:
    """What training labels never hold, a line for each task that lacks something; of a large data set, some are looked at.

    Raises UserError for a task with nothing to learn: all labels were looked at, and no pixel counts, or all that count are alike.
    """
    lines = [_lacks_of(dataset, name) for name in dataset.tasks]
    return [line for line in lines if line]


def _lacks_of(dataset: "Dataset", name: str) -> str:
    names = dataset.tasks[name].value_names()
    wanted = set(names) or {0}
    found: set[int] = set()
    tried = looked = pixels = 0
    for index in spread(len(dataset)):
        if tried >= LABELS or pixels >= PIXELS or found >= wanted:
            break
        tried += 1
        with contextlib.suppress(UserError):  # what is bad is told and counted when its turn comes
            label = dataset.label(index, name)
            looked += 1
            pixels += label.size
            found |= set(np.flatnonzero(np.bincount(label.ravel())).tolist() if names else [0] if np.any(label != IGNORE) else [])
    if not looked or found >= wanted:
        return ""
    whole = tried == len(dataset)
    who = "no training label" if whole else f"none of the {looked} training labels looked at (of {len(dataset)})"
    line = f"{name}: {who} has {_named(names, wanted - found) or 'a pixel whose value is known'}"
    if whole and len(found & wanted) < min(len(wanted), 2):
        holds = " and ".join(filter(None, [_named(names, found), f"{IGNORE}, which is ignored" if IGNORE in found else ""]))
        raise UserError(f"{line}{f'; all {looked} hold nothing but {holds}' if names else ''}: there is nothing to learn")
    return f"{line}{f'; {IGNORE} means ignored' if names else ''}"


def _named(names: Mapping[int, str], values: Collection[int]) -> str:
    told = [f"class {value} {names[value]!r}" for value in sorted(values) if value in names]
    return ", ".join(told[:SHOWN]) + (f" and {len(told) - SHOWN} more" if len(told) > SHOWN else "")
