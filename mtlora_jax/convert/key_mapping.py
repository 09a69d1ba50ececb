"""Tables from the key names of a checkpoint to our parameter paths, and the functions that apply them in either direction."""

import functools
import itertools
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mtlora_jax.convert.torchfile import as_float32
from mtlora_jax.errors import UserError
from mtlora_jax.models.parameters import named

FIELD = re.compile(r"\{([\w.]+)\}")


class Change(NamedTuple):
    """How the values of a tensor become ours, and back."""

    name: str
    there: Callable[[np.ndarray], np.ndarray]  # raises ValueError for a tensor of another rank
    back: Callable[[np.ndarray], np.ndarray]


vector = Change("vector", lambda x: x.transpose(0), lambda x: x)
matrix = Change("matrix", lambda x: x.transpose(0, 1), lambda x: x)
linear = Change("linear", lambda x: x.transpose(1, 0), lambda x: x.transpose(1, 0))  # (out, in) -> (in, out)
# (out, in, height, width) -> (height, width, in, out)
conv = Change("conv", lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1))
# (out, in, 1, 1) -> (in, out)
conv1x1 = Change("conv1x1", lambda x: x.squeeze((2, 3)).transpose(1, 0), lambda x: x.transpose(1, 0)[:, :, None, None])

BLOCK_LINEAR = r"attn\.qkv|attn\.proj|mlp\.fc[12]"
FIELDS = {  # what may stand in the place of a {field} of a key
    "stage": r"\d+",
    "block": r"\d+",
    "norm": "norm[12]",
    "linear": BLOCK_LINEAR,
    "adapted": rf"blocks\.\d+\.(?:{BLOCK_LINEAR})|downsample\.reduction",
    "task": r"\w+",
    "scale": r"\d",
    "branch": "[123]",
}


class Row(NamedTuple):
    """Tensors named `key` become `path`, changed by `change`, and the other way round.

    Both are templates that share their {fields}, see `FIELDS`. Tensors of several keys with one path are joined along the last axis
    (the outputs) in the order of `part`; only rows that join nothing can be read backwards.
    """

    key: str
    path: str
    change: Change = vector
    part: int = 0


@functools.cache
def pattern(template: str) -> re.Pattern:
    """What matches the names that a template stands for, each field a group."""
    literals, fields = FIELD.split(template)[::2], FIELD.findall(template)
    groups = [f"({FIELDS[field]})" for field in fields]
    return re.compile("".join(a + b for a, b in itertools.zip_longest(map(re.escape, literals), groups, fillvalue="")))


def renamed(name: str, before: str, after: str) -> str | None:
    """A name that one template stands for, as the other has it; None if the first does not stand for it."""
    found = pattern(before).fullmatch(name)
    if found is None:
        return None
    fields = dict(zip(FIELD.findall(before), found.groups(), strict=True))
    return FIELD.sub(lambda field: fields[field[1]], after)


class Table(NamedTuple):
    """A format: what its keys become, which are left out (pattern -> what that is) and which cannot be had (pattern -> why)."""

    rows: Sequence[Row]
    dropped: Mapping[str, str]
    refused: Mapping[str, str] = {}


class Converted(NamedTuple):
    arrays: dict[str, np.ndarray]  # path -> float32 array in the order of the checkpoint
    dropped: Counter[str]  # what was left out -> how many tensors


def apply(table: Table, state: Mapping[str, Any], origin: Mapping[str, str]) -> Converted:
    """Converts every tensor of `state`.

    Args:
      table: of its format.
      state: key -> tensor of numpy or PyTorch. What is dropped may be anything.
      origin: key -> file and name in it, for messages.

    Raises:
      UserError: for a key that is refused, of no row, of a wrong rank or assigned twice, and for values that are no finite floats.
    """
    parts: dict[str, dict[int, tuple[str, np.ndarray]]] = {}
    dropped: Counter[str] = Counter()
    left_over = []
    for key, value in state.items():
        if why := first_match(table.refused, key):
            raise UserError(f"{key}: {why}")
        if what := first_match(table.dropped, key):
            dropped[what] += 1
            continue
        match = next(((row, path) for row in table.rows if (path := renamed(key, row.key, row.path))), None)
        if match is None:
            left_over.append(key)
            continue
        row, path = match
        joined = parts.setdefault(path, {})
        if row.part in joined:
            raise UserError(f"{key} and {joined[row.part][0]} are the same tensor {path}: the checkpoint must hold one of them")
        value = as_float32(value, origin[key])
        if not value.size:
            raise UserError(f"{origin[key]} has no values: its shape is {value.shape}")
        try:
            joined[row.part] = key, row.change.there(value)
        except ValueError:
            raise UserError(f"{key} has shape {value.shape}, which is not that of a {row.change.name}") from None
    if left_over:
        raise UserError(f"tensors that have no place in the model: {named(left_over)}")
    arrays = {}
    for path, joined in parts.items():
        keys, values = zip(*(joined[part] for part in sorted(joined)), strict=True)
        if len({value.shape[:-1] for value in values}) != 1:
            raise UserError(f"{', '.join(keys)} have shapes that do not go together: {[value.shape for value in values]}")
        arrays[path] = np.ascontiguousarray(np.concatenate(values, -1), np.float32)
    return Converted(arrays, dropped)


def unapply(rows_for: Callable[[str], Sequence[Row]], arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """{key: tensor} that `apply` turns into `arrays`; `rows_for` gives the rows that a path may be of. Raises UserError for one of none."""
    state, left_over = {}, []
    for path, value in arrays.items():
        match = next(((row, key) for row in rows_for(path) if (key := renamed(path, row.path, row.key))), None)
        if match is None:
            left_over.append(path)
            continue
        row, key = match
        state[key] = np.ascontiguousarray(row.change.back(value))
    if left_over:
        raise UserError(f"tensors that the format has no name for: {named(left_over)}")
    return state


def first_match(patterns: Mapping[str, str], key: str) -> str | None:
    return next((text for pattern, text in patterns.items() if re.fullmatch(pattern, key)), None)
