"""Compares the inputs of all processes of a job before they compute together.

Without this, a process with another config or other data would spoil the training silently, or make all processes wait
forever.
"""

import functools
import hashlib
import importlib.metadata
import json
import pathlib
import zlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np

import mtlora_jax
from mtlora_jax.data.pipeline import Dataset
from mtlora_jax.defaults import Config, flattened
from mtlora_jax.distributed import sharding
from mtlora_jax.errors import UserError

Value = TypeVar("Value")

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy")
# Keys that may differ: each host may keep its files elsewhere and read them in its own way; contents are compared
# instead.
OWN = ("init_from", "data.root", "data.num_workers", "delta_m_baseline_runs", "wandb.project", "wandb.mode")
SAMPLES = 3  # examples of a split whose contents are compared


def require_same(
    values: Mapping[str, Any], advice: str = "give all processes the same command and the same files"
) -> None:
    """Raises UserError in all processes unless `values` are equal in all of them. Every process must call it.

    Args:
      values: {name: JSON-able value}. The error names the first one that differs, and both values.
      advice: what the user should do then.
    """
    everyone = sharding.allgather_json(json.loads(json.dumps(values)))
    first = everyone[0]
    for process, other in enumerate(everyone[1:], 1):
        for key in {**first, **other}:
            if key not in first or key not in other or first[key] != other[key]:
                here, there = (json.dumps(own[key]) if key in own else "missing" for own in (first, other))
                found = f"{here} in process 0, {there} in process {process}"
                raise UserError(f"the processes differ in {key}: {found}; {advice}")


def run_together(action: Callable[[], Value]) -> Value:
    """Calls `action` in every process and returns its result; a UserError in one process is raised in all of them."""
    if jax.process_count() == 1:
        return action()
    value, fault = None, ""
    try:
        value = action()
    except UserError as error:
        fault = str(error)
    for process, told in enumerate(sharding.allgather_json(fault)):
        if told:
            raise UserError(told if told == fault else f"process {process}: {told}")
    return value  # pyright: ignore[reportReturnType]


def describe_start(config: Config, **more: Any) -> dict[str, Any]:
    """Describes the config, the program and the libraries, to be compared first; `more` adds flags of the command."""
    flat = {f"config.{key}": value for key, value in flattened(config).items() if key not in OWN}
    return {
        **more,
        **flat,
        "sources of mtlora_jax": sources(),
        **{name: importlib.metadata.version(name) for name in LIBRARIES},
    }


@functools.cache
def sources() -> str:
    """SHA-256 of the source files of this package, its first 16 digits."""
    root = pathlib.Path(mtlora_jax.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def describe_data(data: Dataset, split: str) -> dict[str, Any]:
    """Describes a split: how many images, which ids, and what its labels mean. Reads no image."""
    ids = list(data.ids)
    encodings = {name: task.describe_label_values() for name, task in data.tasks.items()}
    return {
        f"number of images of {split}": len(ids),
        f"ids of {split}": hashlib.sha256("\n".join(ids).encode("utf-8", "surrogateescape")).hexdigest()[:16],
        f"classes of {split}": {name: list(task.classes) for name, task in data.tasks.items() if task.classes},
        f"label values of {split}": {name: words for name, words in encodings.items() if words},
    }


def describe_samples(data: Dataset, split: str) -> dict[str, Any]:
    """Checksums of a few decoded examples, since files of the same name may differ."""
    chosen = sorted({int(index) for index in np.linspace(0, len(data) - 1, SAMPLES)})
    return {f"contents of {split} {data.ids[index]}": _checksum(data, index) for index in chosen}


def _checksum(data: Dataset, index: int) -> Any:
    try:
        example = data[index]
    except UserError:
        return "cannot be read"
    arrays = {name: value for name, value in example.items() if isinstance(value, np.ndarray)}
    return {name: zlib.crc32(np.ascontiguousarray(value).tobytes()) for name, value in arrays.items()}


def describe_arrays(arrays: Mapping[str, Any], what: str) -> dict[str, Any]:
    """{"`what` PATH": [shape, CRC-32]} of each array."""
    values = {f"{what} {path}": np.ascontiguousarray(jax.device_get(array)) for path, array in arrays.items()}
    return {name: [list(value.shape), zlib.crc32(value.view(np.uint8).data)] for name, value in values.items()}
