"""The estimate of training memory, against arithmetic by hand and the effect of settings that save memory."""

import functools

import jax
import jax.numpy as jnp
import pytest
from paths import CONFIGS

from mtlora_jax import config as configs
from mtlora_jax import model_factory
from mtlora_jax.benchmark.memory import estimate, kept, recomputed
from mtlora_jax.experiment import build_tasks
from mtlora_jax.models import parameters

CONFIG = str(CONFIGS / "mtlora_tiny_448.py:16")
SMALL = ("data.root=none", "backbone.variant=micro", "image_size=64,64", "tasks=semseg,normals")


def test_what_a_gradient_keeps():
    """The gradient of sum(exp(x w)) by w keeps the exponential alone: x and w are arguments."""
    w, x = jax.ShapeDtypeStruct((3, 4), jnp.float32), jax.ShapeDtypeStruct((5, 3), jnp.float32)
    assert kept(lambda w, x: jnp.sum(jnp.exp(x @ w)), w, x) == 4 * 5 * 4
    assert kept(lambda w, x: jnp.sum(jnp.exp(jnp.exp(x @ w))), w, x) == 2 * 4 * 5 * 4
    assert kept(lambda w, x: jnp.sum(x @ w), w, x) == 0


def test_what_is_computed_again():
    """Activations of a checkpointed part exist only while it is computed again; the larger of two parts counts."""
    w, x = jax.ShapeDtypeStruct((3, 4), jnp.float32), jax.ShapeDtypeStruct((5, 3), jnp.float32)

    @jax.checkpoint
    def once(w, x):
        return jnp.exp(x @ w)

    @jax.checkpoint
    def twice(w, x):
        return jnp.exp(jnp.exp(x @ w))

    def both(w, x):
        return jnp.sum(once(w, x)) + jnp.sum(twice(w, x))

    assert kept(both, w, x) == 0
    assert recomputed(jax.make_jaxpr(both)(w, x).jaxpr) == 2 * 4 * 5 * 4
    assert recomputed(jax.make_jaxpr(lambda w, x: jnp.exp(x @ w))(w, x).jaxpr) == 0


@functools.cache
def memory(batch_size: int, *overrides: str) -> dict[str, int]:
    config = configs.load(CONFIG, (*SMALL, *overrides))
    tasks = build_tasks(config)
    architecture = model_factory.from_config(config, {name: task.channels for name, task in tasks.items()})
    return estimate(config, architecture, tasks, batch_size)


def test_parts_of_the_estimate():
    told = memory(4)
    config = configs.load(CONFIG, SMALL)
    values = parameters.flat_variables(
        model_factory.build(model_factory.from_config(config, {"semseg": 21, "normals": 3}))
    ).values()
    assert told["parameters"] == 4 * sum(value.size for value in values)
    assert told["optimizer"] == pytest.approx(2 * told["gradients"], abs=100)  # two moments, and counts of steps
    assert told["batch"] == 4 * 64 * 64 * (3 + 1 + 3 * 2)  # image and classes as bytes, normals as 16-bit numbers
    # The larger of two losses, that of semseg at full size, computes exponentials and their sum again.
    logits = 4 * 4 * 64 * 64 * 21
    assert logits < told["recomputed"] < 3 * logits
    assert told["total"] == sum(value for key, value in told.items() if key != "total")


def test_activations_grow_with_the_batch_alone():
    small, large, larger = memory(4), memory(8), memory(12)
    grown = large["activations"] - small["activations"]
    assert larger["activations"] - large["activations"] == grown
    assert 0 <= small["activations"] - grown < 0.12 * small["activations"]  # products of weights with weights
    for key in ("parameters", "gradients", "optimizer"):
        assert large[key] == small[key]


@pytest.mark.parametrize("override", ["remat=block", "remat=stage", "encoder_microbatches=4"])
def test_settings_that_save_memory(override):
    plain, saving = memory(4), memory(4, override)
    assert saving["activations"] < 0.5 * plain["activations"]
    assert 0 < saving["recomputed"] < plain["activations"]
    assert saving["total"] < plain["total"]
