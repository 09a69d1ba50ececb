"""What backbones inherit: the loops over stages and blocks."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mtlora_jax.analysis.macs import module_of
from mtlora_jax.models.backbones import Backbone
from mtlora_jax.models.backbones.base import Stage
from mtlora_jax.models.task_features import TaskFeatures


class Split(nnx.Module):
    """Adds 1 to the shared features, 10 or 20 to those of a task."""

    def __call__(self, x, rngs=None):
        tasks = x.combine(jnp.add, TaskFeatures(None, jnp.array([10.0, 20.0]))).tasks
        return TaskFeatures(x.shared + 1, tasks)


class Two(Stage):
    def __init__(self):
        self.blocks = nnx.List([Split(), Split()])

    def __call__(self, x, rngs=None):
        return self.run_blocks(x, rngs)


class Toy(Backbone):
    def __init__(self):
        self.layers = nnx.List([Two(), Two()])


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize(("carry", "last"), [(True, [40, 80]), (False, [22, 42])])
def test_stages_and_blocks_run_in_order(carry, last, remat):
    backbone = Toy()
    assert (backbone.carry_tasks, backbone.remat_stages, backbone.stages[0].downsample) == (True, False, None)
    backbone.carry_tasks, backbone.remat_stages = carry, remat
    for stage in backbone.stages:
        stage.remat_blocks = remat
    features = backbone.run_stages(TaskFeatures(jnp.zeros(1)))
    assert [float(level.shared[0]) for level in features] == [2, 4]
    np.testing.assert_array_equal(features[0].tasks[:, 0], [20, 40])
    np.testing.assert_array_equal(features[1].tasks[:, 0], last)


@pytest.mark.parametrize(
    ("path", "row"),
    [
        ("backbone.layers.0.blocks.1.mlp.fc1.kernel", "backbone.layers.0.blocks"),
        ("backbone.levels.1.patches.bias", "backbone.levels.1.patches"),
        ("backbone.patch_embed.proj.kernel", "backbone.patch_embed"),
        ("decoders.semseg.projections.0.kernel", "decoders.semseg"),
    ],
)
def test_tables_have_rows_of_stages(path, row):
    assert module_of(path) == row
