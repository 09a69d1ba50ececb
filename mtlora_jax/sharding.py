"""One mesh with the axis `data`: batches are split over it, parameters are on every device."""

from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mtlora_jax.errors import UserError


def make_mesh() -> Mesh:
    """All devices of all hosts in one row."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def by_batch(mesh: Mesh) -> NamedSharding:
    """Leading axis split over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def check_batch_size(batch_size: int, mesh: Mesh, key: str) -> None:
    """Raises UserError unless the global batch can be split over the devices."""
    if batch_size < 1 or batch_size % mesh.size:
        raise UserError(f"{key} = {batch_size} must be a positive multiple of the number of devices, {mesh.size}")


def put(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's part of a batch -> global arrays (B, ...). Strings (`image_id`) stay on the host and are left out."""
    return {
        key: jax.make_array_from_process_local_data(by_batch(mesh), value) for key, value in batch.items() if value.dtype.kind not in "US"
    }
