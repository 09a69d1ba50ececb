"""Tables that map checkpoint keys to our parameter paths, and functions that apply them in both directions."""

import functools
import itertools
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mtlora_jax.convert.torchfile import to_float32
from mtlora_jax.errors import UserError
from mtlora_jax.models.parameters import list_keys

FIELD = re.compile(r"\{([\w.]+)\}")


class TensorTransform(NamedTuple):
    """Converts the values of a tensor to ours, and back."""

    name: str
    forward: Callable[[np.ndarray], np.ndarray]  # raises ValueError for a tensor of another rank
    inverse: Callable[[np.ndarray], np.ndarray]


vector = TensorTransform("vector", lambda x: x.transpose(0), lambda x: x)
matrix = TensorTransform("matrix", lambda x: x.transpose(0, 1), lambda x: x)
linear = TensorTransform("linear", lambda x: x.transpose(1, 0), lambda x: x.transpose(1, 0))  # (out, in) -> (in, out)
# (out, in, height, width) -> (height, width, in, out)
conv = TensorTransform("conv", lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1))
# (out, in, 1, 1) -> (in, out)
conv1x1 = TensorTransform(
    "conv1x1", lambda x: x.squeeze((2, 3)).transpose(1, 0), lambda x: x.transpose(1, 0)[:, :, None, None]
)

BLOCK_LINEAR = r"attn\.qkv|attn\.proj|mlp\.fc[12]"
FIELDS = {  # {field in a key: pattern of its values}
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
    """Maps tensors named `key` to `path`, converted by `transform`, and back.

    Both are templates that share their {fields}, see `FIELDS`. Tensors of several keys with one path are concatenated
    along the last axis (outputs) in the order of `part`; only rows without concatenation can be inverted.
    """

    key: str
    path: str
    transform: TensorTransform = vector
    part: int = 0


@functools.cache
def compile_template(template: str) -> re.Pattern:
    """Compiles a template to a pattern with one group per field."""
    literals, fields = FIELD.split(template)[::2], FIELD.findall(template)
    groups = [f"({FIELDS[field]})" for field in fields]
    return re.compile("".join(a + b for a, b in itertools.zip_longest(map(re.escape, literals), groups, fillvalue="")))


def rename(name: str, before: str, after: str) -> str | None:
    """Rewrites a name from template `before` to template `after`; returns None if it does not match `before`."""
    found = compile_template(before).fullmatch(name)
    if found is None:
        return None
    fields = dict(zip(FIELD.findall(before), found.groups(), strict=True))
    return FIELD.sub(lambda field: fields[field[1]], after)


class Table(NamedTuple):
    """Key mapping of a format: its rows, {pattern: what is dropped}, and {pattern: why it is refused}."""

    rows: Sequence[Row]
    dropped: Mapping[str, str]
    refused: Mapping[str, str] = {}


class Converted(NamedTuple):
    arrays: dict[str, np.ndarray]  # {path: float32 array} in the order of the checkpoint
    dropped: Counter[str]  # {what was dropped: number of tensors}


def apply(table: Table, state: Mapping[str, Any], sources: Mapping[str, str]) -> Converted:
    """Converts every tensor of `state`.

    Args:
      table: of its format.
      state: {key: tensor of numpy or PyTorch}. Dropped values may be anything.
      sources: {key: file and name in it}, for messages.

    Raises:
      UserError: for a refused or unknown key, a wrong number of dimensions, a duplicate path, and values that are not
        finite floats.
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
        match = next(((row, path) for row in table.rows if (path := rename(key, row.key, row.path))), None)
        if match is None:
            left_over.append(key)
            continue
        row, path = match
        joined = parts.setdefault(path, {})
        if row.part in joined:
            raise UserError(
                f"{key} and {joined[row.part][0]} are the same tensor {path}: the checkpoint must hold one of them"
            )
        value = to_float32(value, sources[key])
        if not value.size:
            raise UserError(f"{sources[key]} has no values: its shape is {value.shape}")
        try:
            joined[row.part] = key, row.transform.forward(value)
        except ValueError:
            raise UserError(f"{key} has shape {value.shape}, which is not that of a {row.transform.name}") from None
    if left_over:
        raise UserError(f"tensors without a place in the model: {list_keys(left_over)}")
    arrays = {}
    for path, joined in parts.items():
        keys, values = zip(*(joined[part] for part in sorted(joined)), strict=True)
        if len({value.shape[:-1] for value in values}) != 1:
            raise UserError(
                f"{', '.join(keys)} have shapes that do not go together: {[value.shape for value in values]}"
            )
        arrays[path] = np.ascontiguousarray(np.concatenate(values, -1), np.float32)
    return Converted(arrays, dropped)


def unapply(rows_for: Callable[[str], Sequence[Row]], arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Inverts `apply`: returns {key: tensor}. `rows_for` returns the candidate rows of a path.

    Raises UserError for a path without a row.
    """
    state, left_over = {}, []
    for path, value in arrays.items():
        match = next(((row, key) for row in rows_for(path) if (key := rename(path, row.path, row.key))), None)
        if match is None:
            left_over.append(path)
            continue
        row, key = match
        state[key] = np.ascontiguousarray(row.transform.inverse(value))
    if left_over:
        raise UserError(f"tensors without a name in the format: {list_keys(left_over)}")
    return state


def first_match(patterns: Mapping[str, str], key: str) -> str | None:
    return next((text for pattern, text in patterns.items() if re.fullmatch(pattern, key)), None)
