"""Placing arrays on the devices of one process; several processes are in test_distributed.py."""

import jax
import numpy as np
import pytest

from mtlora_jax.distributed import sharding
from mtlora_jax.errors import UserError


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh()


def test_all_devices_are_in_one_row(mesh):
    assert mesh.axis_names == ("data",)
    assert mesh.devices.tolist() == jax.devices()


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_needs_images(batch_size, mesh):
    message = f"eval_batch_size = {batch_size} must be a positive multiple of the number of devices, {mesh.size}"
    with pytest.raises(UserError, match=message):
        sharding.check_batch_size(batch_size, mesh, "eval_batch_size")


def test_strings_of_a_batch_stay_on_the_host(mesh):
    batch = {"image": np.zeros((2 * mesh.size, 4), np.uint8), "image_id": np.array(["a", "b"] * mesh.size)}
    placed = sharding.shard_batch(batch, mesh)
    assert placed.keys() == {"image"}
    assert placed["image"].sharding == sharding.batch_sharding(mesh)
    assert placed["image"].dtype == np.uint8


def test_replicated_arrays_keep_their_values_and_structure(mesh):
    tree = ({"a": np.arange(6, dtype=np.float32)}, np.int32(3))
    placed = sharding.replicate(tree, mesh)
    assert jax.tree.structure(placed) == jax.tree.structure(tree)
    assert all(leaf.sharding == sharding.replicated_sharding(mesh) for leaf in jax.tree.leaves(placed))
    np.testing.assert_array_equal(placed[0]["a"], tree[0]["a"])


def test_one_process_agrees_with_itself():
    sharding.barrier("here")
    assert sharding.assert_equal_across_processes(True, "never said") is True
    assert sharding.assert_equal_across_processes(False, "never said") is False
