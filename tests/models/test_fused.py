"""The fast form of a model, which combines products, against its layers one by one (`config.fused`)."""

import jax
import jax.numpy as jnp
import micro
import numpy as np
import pytest
from flax import nnx

from mtlora_jax import model_factory
from mtlora_jax.models import parameters
from mtlora_jax.models.decoders.hrnet import HRNetHead, cheaper_on_coarse_grid

RNG = np.random.default_rng(0)


def gradients(arrays, architecture, images, fused):
    """(logits, gradients of their weighted sum by all parameters) without dropout."""
    model = model_factory.build(architecture)
    model_factory.configure(model, fused=fused)
    parameters.assign(model, arrays, "arrays")
    graph, trainable, frozen, stats = parameters.partition(model, lambda path, variable: True)

    def total(trainable):
        logits = parameters.bind(graph, trainable, frozen, stats)(images, train=True)
        return sum(jnp.mean(jnp.sin(value + i)) for i, value in enumerate(logits.values())), logits

    (_, logits), found = micro.jit(jax.value_and_grad(total, has_aux=True))(trainable)
    return jax.device_get((logits, found))


@pytest.mark.parametrize(
    "options", [{}, {"ts_base": "task"}, {"merging": "lora"}, {"locations": ("fc1", "fc2")}], ids=str
)
def test_logits_and_gradients_of_two_stages(options):
    """The decoders apply the reduction of the first stage to task streams, unless it has a branch of its own."""
    architecture = micro.architecture(**options)
    arrays = micro.random_arrays(architecture)
    images = jnp.asarray(RNG.standard_normal((2, 32, 32, 3)), jnp.float32)
    (logits, found), (plain_logits, plain) = (gradients(arrays, architecture, images, fused) for fused in (True, False))
    for task, value in plain_logits.items():
        np.testing.assert_allclose(logits[task], value, atol=3e-6 * np.abs(value).max())
    norm = np.sqrt(sum(np.sum(value.astype(np.float64) ** 2) for value in plain.values()))
    for path, value in plain.items():
        assert np.linalg.norm(found[path] - value) <= 1e-5 * norm, path


@pytest.mark.parametrize(("sides", "cheaper"), [((16, 8, 4, 4), True), ((8, 4, 4, 4), False)])
def test_coarse_maps_are_multiplied_where_they_are(sides, cheaper):
    assert cheaper_on_coarse_grid((sides[0],) * 2, (sides[-1],) * 2) == cheaper
    channels = (2, 3, 4, 5)
    head = HRNetHead(channels, 3)
    for _, variable in nnx.iter_graph(head):
        if isinstance(variable, nnx.Variable):
            variable.set_value(jnp.asarray(RNG.standard_normal(variable.shape), jnp.float32))
    features = [
        jnp.asarray(RNG.standard_normal((2, side, side, c)), jnp.float32)
        for side, c in zip(sides, channels, strict=True)
    ]
    fused = head.fuse_all(features)
    head.fused = False
    plain = head.fuse_all(features)
    assert fused.shape == plain.shape == (2, sides[0], sides[0], 4 * sum(channels))
    np.testing.assert_allclose(fused, plain, atol=3e-6 * np.abs(plain).max())
    assert np.any(fused != plain) == cheaper
