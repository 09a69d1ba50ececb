"""Functions with a hand-written backward pass: values and gradients against the formula differentiated by JAX."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtlora_jax.methods.mtlora import fused_mlp
from mtlora_jax.models import functional

RNG = np.random.default_rng(0)


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(RNG.standard_normal(shape), jnp.float32)


def plain_gelu(x):
    return jax.nn.gelu(x, approximate=False)


def plain_layer_norm(x, scale, bias):
    return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5) * scale + bias


def plain_batch_norm(x, scale, bias):
    axes = (0, 1, 2)
    return (x - x.mean(axes)) / jnp.sqrt(x.var(axes) + 1e-5) * scale + bias


def plain_hidden(base, low, b, a):
    hidden = base + jnp.einsum("tbhwr,tri->tbhwi", low, b)
    return jnp.einsum("tbhwi,tis->tbhws", plain_gelu(hidden), a)


CASES = {
    "gelu": (functional.gelu, plain_gelu, (3 * normal(4, 5, 6),)),
    "layer_norm": (
        lambda *a: functional.layer_norm(*a, 1e-5),
        plain_layer_norm,
        (2 + normal(3, 4, 8), normal(8), normal(8)),
    ),
    "batch_norm": (
        lambda *a: functional.batch_norm(*a, 1e-5)[0],
        plain_batch_norm,
        (2 + normal(2, 3, 4, 5), normal(5), normal(5)),
    ),
    "fused_gelu_lora": (
        fused_mlp.fused_gelu_lora,
        plain_hidden,
        (normal(2, 6, 5, 16), normal(3, 2, 6, 5, 4), normal(3, 4, 16), normal(3, 16, 2)),
    ),
}


@pytest.fixture(params=[1, 2, 6])
def bands(request, monkeypatch):
    """A band size that cuts the six rows of the images into so many bands."""
    elements = 3 * 2 * 6 * 5 * 16
    monkeypatch.setitem(fused_mlp.BAND, jax.default_backend(), math.ceil(elements / request.param))
    assert fused_mlp._bands(jnp.zeros((2, 6, 5, 16)), 3) == request.param
    return request.param


def compare(name: str) -> None:
    fn, plain, inputs = CASES[name]
    value, pull = jax.vjp(jax.jit(fn), *inputs)
    expected, plain_pull = jax.vjp(plain, *inputs)
    np.testing.assert_allclose(value, expected, atol=2e-6 * np.abs(expected).max())
    direction = jnp.asarray(np.random.default_rng(1).standard_normal(value.shape), jnp.float32)
    for gradient, wanted in zip(pull(direction), plain_pull(direction), strict=True):
        np.testing.assert_allclose(gradient, wanted, atol=3e-6 * np.abs(wanted).max())


@pytest.mark.parametrize("name", [name for name in CASES if name != "fused_gelu_lora"])
def test_values_and_gradients(name):
    compare(name)


def test_hidden_maps_in_bands(bands):
    compare("fused_gelu_lora")


def test_hidden_maps_of_tasks_do_not_mix():
    """The gradient of one task's result by the factors of another is exactly zero."""
    _, _, (base, low, b, a) = CASES["fused_gelu_lora"]
    _, pull = jax.vjp(functools.partial(fused_mlp.fused_gelu_lora, base), low, b, a)
    only = jnp.zeros((3, 2, 6, 5, 2)).at[1].set(1.0)
    for gradient in pull(only):
        assert not np.any(gradient[0])
        assert np.any(gradient[1])
        assert not np.any(gradient[2])


def test_float64_is_not_summed_in_float32(monkeypatch):
    """`benchmarks/peer.py` compares gradients in float64, and GPUs have no product of float64 that gives float32."""
    monkeypatch.setitem(fused_mlp.BAND, jax.default_backend(), 1)  # in many bands, so that there is something to sum
    with jax.enable_x64(True):
        fn, plain, inputs = CASES["fused_gelu_lora"]
        wide = [jnp.asarray(x, jnp.float64) for x in inputs]
        value, pull = jax.vjp(fn, *wide)
        expected, plain_pull = jax.vjp(plain, *wide)
        for gradient, wanted in zip(pull(jnp.ones_like(value)), plain_pull(jnp.ones_like(expected)), strict=True):
            assert gradient.dtype == jnp.float64
            np.testing.assert_allclose(gradient, wanted, atol=1e-13 * np.abs(wanted).max())


def test_statistics_of_the_batch():
    x = 3 + 2 * normal(4, 5, 6, 7)
    _, mean, var = functional.batch_norm(x, jnp.ones(7), jnp.zeros(7), 1e-5)
    np.testing.assert_allclose(mean, np.mean(x, (0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(var, np.var(x, (0, 1, 2)), rtol=1e-5)


def test_the_dtype_of_the_input_stays():
    for fn, _, inputs in CASES.values():
        narrow = [x.astype(jnp.bfloat16) for x in inputs]
        value, pull = jax.vjp(fn, *narrow[:1], *inputs[1:] if fn is not fused_mlp.fused_gelu_lora else narrow[1:])
        assert value.dtype == jnp.bfloat16
        assert pull(value)[0].dtype == jnp.bfloat16
