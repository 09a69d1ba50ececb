"""One mesh with the axis `data`: batches are split over it, parameters are replicated."""

import json
from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mtlora_jax.errors import UserError

Tree = TypeVar("Tree")


def make_mesh() -> Mesh:
    """All devices of all hosts in one row."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def replicated_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding that keeps a whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding that splits the leading axis over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def check_batch_size(batch_size: int, mesh: Mesh, key: str) -> None:
    """Raises UserError unless the global batch can be split over the devices."""
    if batch_size < 1 or batch_size % mesh.size:
        raise UserError(f"{key} = {batch_size} must be a positive multiple of the number of devices, {mesh.size}")


def shard_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Makes global arrays (B, ...) from this process's part of a batch.

    Strings (`image_id`) are left out; they stay on the host.
    """
    return {
        key: jax.make_array_from_process_local_data(batch_sharding(mesh), value)
        for key, value in batch.items()
        if value.dtype.kind not in "US"
    }


def replicate(tree: Tree, mesh: Mesh) -> Tree:
    """Puts arrays that are equal in all processes on every device of all of them."""
    everywhere = replicated_sharding(mesh)
    if jax.process_count() == 1:
        return jax.device_put(tree, everywhere)
    # device_put would run a collective per array to compare it between processes.
    return jax.tree.map(lambda array: jax.make_array_from_process_local_data(everywhere, np.asarray(array)), tree)


def barrier(name: str) -> None:
    """Waits until all processes are here. Raises if they are at barriers of different names."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def assert_equal_across_processes(value: bool, otherwise: str) -> bool:
    """Returns `value` if it is the same in all processes; else raises UserError(otherwise) in all of them."""
    values = multihost_utils.process_allgather(np.asarray(value)) if jax.process_count() > 1 else np.asarray([value])
    if values.all() != values.any():
        raise UserError(otherwise)
    return value


def allgather_json(value: Any) -> list[Any]:
    """The JSON-able values of all processes, in their order. Every process must call it."""
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    longest = int(np.max(multihost_utils.process_allgather(np.int32(len(text)))))
    rows = multihost_utils.process_allgather(np.pad(text, (0, longest - len(text))))
    return [json.loads(bytes(row).rstrip(b"\0")) for row in np.asarray(rows)]
