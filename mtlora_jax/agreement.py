"""What the processes of one job must agree on before they compute together: the one place that compares it.

Each process that differs would train on with the others, or wait for them for ever.
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
from mtlora_jax import sharding
from mtlora_jax.data.pipeline import Dataset
from mtlora_jax.defaults import Config, flattened
from mtlora_jax.errors import UserError

Value = TypeVar("Value")

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy")
# Where files lie and how a host reads them is its own affair: what is in them is compared.
OWN = ("init", "data.root", "data.workers", "single_task_files", "wandb.project", "wandb.mode")
SAMPLES = 3  # examples of a split whose contents are compared


def require_same(values: Mapping[str, Any], advice: str = "give all processes the same command and the same files") -> None:
    """Raises UserError in all processes, with the first key and both values, unless `values` are the same in all of them.

    Args:
      values: {what it is: JSON-able value}. All processes must call this at the same place.
      advice: what to do about it.
    """
    everyone = sharding.of_all_processes(json.loads(json.dumps(values)))
    first = everyone[0]
    for process, other in enumerate(everyone[1:], 1):
        for key in {**first, **other}:
            if key not in first or key not in other or first[key] != other[key]:
                here, there = (json.dumps(own[key]) if key in own else "not there" for own in (first, other))
                raise UserError(f"the processes differ in {key}: {here} in process 0, {there} in process {process}; {advice}")


def together(action: Callable[[], Value]) -> Value:
    """What `action` gives, called in all processes; a UserError of one of them is raised in all."""
    if jax.process_count() == 1:
        return action()
    value, fault = None, ""
    try:
        value = action()
    except UserError as error:
        fault = str(error)
    for process, told in enumerate(sharding.of_all_processes(fault)):
        if told:
            raise UserError(told if told == fault else f"process {process}: {told}")
    return value  # pyright: ignore[reportReturnType]


def of_start(config: Config, **more: Any) -> dict[str, Any]:
    """What must agree before anything is read: the config, the program and the libraries; `more` is what else the command was asked for."""
    flat = {f"config.{key}": value for key, value in flattened(config).items() if key not in OWN}
    return {**more, **flat, "sources of mtlora_jax": sources(), **{name: importlib.metadata.version(name) for name in LIBRARIES}}


@functools.cache
def sources() -> str:
    """SHA-256 of all modules of this package."""
    root = pathlib.Path(mtlora_jax.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def of_data(data: Dataset, split: str) -> dict[str, Any]:
    """What identifies the images of a split and what its labels mean. Their files are not read."""
    ids = list(data.ids)
    return {
        f"number of images of {split}": len(ids),
        f"ids of {split}": hashlib.sha256("\n".join(ids).encode("utf-8", "surrogateescape")).hexdigest()[:16],
        f"classes of {split}": {name: list(task.classes) for name, task in data.tasks.items() if task.classes},
        f"label values of {split}": {name: task.reading() for name, task in data.tasks.items() if task.reading()},
    }


def of_samples(data: Dataset, split: str) -> dict[str, Any]:
    """Checksums of a few examples, decoded: files of the same names may hold something else."""
    chosen = sorted({int(index) for index in np.linspace(0, len(data) - 1, SAMPLES)})
    return {f"contents of {split} {data.ids[index]}": _checksum(data, index) for index in chosen}


def _checksum(data: Dataset, index: int) -> Any:
    try:
        example = data[index]
    except UserError:
        return "cannot be read"
    return {name: zlib.crc32(np.ascontiguousarray(value).tobytes()) for name, value in example.items() if isinstance(value, np.ndarray)}


def of_arrays(arrays: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Shape and checksum of each array."""
    values = {path: np.ascontiguousarray(jax.device_get(array)) for path, array in arrays.items()}
    return {f"{what} {path}": [list(value.shape), zlib.crc32(value.view(np.uint8).data)] for path, value in values.items()}
