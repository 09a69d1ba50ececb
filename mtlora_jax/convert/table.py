"""Tables from the key names of a checkpoint to our parameter paths, and the one function that applies them."""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mtlora_jax.errors import UserError
from mtlora_jax.parameters import named

Change = Callable[[np.ndarray], np.ndarray]


def vector(x: np.ndarray) -> np.ndarray:
    return x.transpose(0)


def matrix(x: np.ndarray) -> np.ndarray:
    return x.transpose(0, 1)


def linear(x: np.ndarray) -> np.ndarray:
    """(out, in) -> (in, out)."""
    return x.transpose(1, 0)


def conv(x: np.ndarray) -> np.ndarray:
    """(out, in, height, width) -> (height, width, in, out)."""
    return x.transpose(2, 3, 1, 0)


def conv1x1(x: np.ndarray) -> np.ndarray:
    """(out, in, 1, 1) -> (in, out)."""
    return x.squeeze((2, 3)).transpose(1, 0)


class Row(NamedTuple):
    """Keys that match `pattern` as a whole become `path`, changed by `change`.

    `path` is a template with the groups of the pattern (`\\1`), or a function of the match. Tensors of several keys with one
    path are joined along the last axis (the outputs) in the order of `part`.
    """

    pattern: str
    path: str | Callable[[re.Match], str]
    change: Change = vector
    part: int = 0


class Table(NamedTuple):
    """A format: what its keys become, which are left out (pattern -> what that is) and which cannot be had (pattern -> why)."""

    rows: Sequence[Row]
    dropped: Mapping[str, str]
    refused: Mapping[str, str] = {}


class Converted(NamedTuple):
    arrays: dict[str, np.ndarray]  # path -> float32 array in the order of the checkpoint
    dropped: Counter[str]  # what was left out -> how many tensors


def apply(table: Table, state: Mapping[str, np.ndarray]) -> Converted:
    """Converts every tensor of `state`. Raises UserError for a key that is refused, of no row, of a wrong rank or assigned twice."""
    parts: dict[str, dict[int, tuple[str, np.ndarray]]] = {}
    dropped: Counter[str] = Counter()
    left_over = []
    for key, value in state.items():
        if why := first_match(table.refused, key):
            raise UserError(f"{key}: {why}")
        if what := first_match(table.dropped, key):
            dropped[what] += 1
            continue
        match = next(((row, found) for row in table.rows if (found := re.fullmatch(row.pattern, key))), None)
        if match is None:
            left_over.append(key)
            continue
        row, found = match
        path = row.path(found) if callable(row.path) else found.expand(row.path)
        joined = parts.setdefault(path, {})
        if row.part in joined:
            raise UserError(f"{key} and {joined[row.part][0]} are the same tensor {path}: the checkpoint must hold one of them")
        try:
            joined[row.part] = key, row.change(value)
        except ValueError:
            raise UserError(f"{key} has shape {value.shape}, which is not that of a {row.change.__name__}") from None
    if left_over:
        raise UserError(f"tensors that have no place in the model: {named(left_over)}")
    arrays = {}
    for path, joined in parts.items():
        keys, values = zip(*(joined[part] for part in sorted(joined)), strict=True)
        if len({value.shape[:-1] for value in values}) != 1:
            raise UserError(f"{', '.join(keys)} have shapes that do not go together: {[value.shape for value in values]}")
        arrays[path] = np.ascontiguousarray(np.concatenate(values, -1), np.float32)
    return Converted(arrays, dropped)


def first_match(patterns: Mapping[str, str], key: str) -> str | None:
    return next((text for pattern, text in patterns.items() if re.fullmatch(pattern, key)), None)
