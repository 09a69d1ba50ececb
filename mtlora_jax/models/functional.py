"""Functions whose backward pass is written out, because what automatic differentiation keeps for it costs more than to compute it again.

Each computes in float32 inside and returns the dtype of its input.
"""

import jax
import jax.numpy as jnp


def to_float32(x: jax.Array) -> jax.Array:
    """x in float32, unless it is wider already."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """x Phi(x), Phi the distribution function of the normal distribution, without approximation as in PyTorch. Keeps x alone."""
    values = to_float32(x)
    return (values * _normal_cdf(values)).astype(x.dtype)


def _gelu_forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return gelu(x), x


def _gelu_backward(x: jax.Array, g: jax.Array) -> tuple[jax.Array]:
    return ((to_float32(g) * gelu_slope(to_float32(x))).astype(x.dtype),)


gelu.defvjp(_gelu_forward, _gelu_backward)


def gelu_slope(x: jax.Array) -> jax.Array:
    density = jnp.exp(-0.5 * x * x) * 0.3989422804014327  # 1 / sqrt(2 pi)
    return _normal_cdf(x) + x * density


def _normal_cdf(x: jax.Array) -> jax.Array:
    return 0.5 + 0.5 * jax.lax.erf(x * 0.7071067811865476)


@jax.custom_vjp
def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> jax.Array:
    """x (..., C) with mean 0 and variance 1 over its last axis, times scale (C,), plus bias (C,). Keeps x and two numbers a row."""
    return _layer_norm_forward(x, scale, bias, epsilon)[0]


def _layer_norm_forward(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float):
    values = to_float32(x)
    mean = jnp.mean(values, -1, keepdims=True)
    gain = 1 / jnp.sqrt(jnp.mean(jnp.square(values - mean), -1, keepdims=True) + epsilon)
    return ((values - mean) * gain * scale + bias).astype(x.dtype), (x, scale, mean, gain)


def _layer_norm_backward(kept: tuple[jax.Array, ...], g: jax.Array):
    x, scale, mean, gain = kept
    g = to_float32(g)
    normed = (to_float32(x) - mean) * gain
    rows = tuple(range(x.ndim - 1))
    inner = g * scale
    dx = gain * (inner - jnp.mean(inner, -1, keepdims=True) - normed * jnp.mean(inner * normed, -1, keepdims=True))
    return dx.astype(x.dtype), jnp.sum(g * normed, rows), jnp.sum(g, rows), None


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


@jax.custom_vjp
def batch_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """x (..., C) normalised over all axes but the last, times scale (C,), plus bias (C,); and the mean and the variance (C,).

    Keeps x, mean and variance. The last two are for running statistics: gradients do not flow back through them as results.
    """
    return _batch_norm_forward(x, scale, bias, epsilon)[0]


def _batch_norm_forward(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float):
    values = to_float32(x)
    rows = tuple(range(x.ndim - 1))
    mean = jnp.mean(values, rows)
    var = jnp.mean(jnp.square(values - mean), rows)
    gain = 1 / jnp.sqrt(var + epsilon)
    y = ((values - mean) * gain * scale + bias).astype(x.dtype)
    return (y, mean, var), (x, scale, mean, gain)


def _batch_norm_backward(kept: tuple[jax.Array, ...], gradients: tuple[jax.Array, jax.Array, jax.Array]):
    x, scale, mean, gain = kept
    g = to_float32(gradients[0])
    normed = (to_float32(x) - mean) * gain
    rows = tuple(range(x.ndim - 1))
    count = x.size // x.shape[-1]
    dscale, dbias = jnp.sum(g * normed, rows), jnp.sum(g, rows)
    dx = gain * scale * (g - dbias / count - normed * (dscale / count))
    return dx.astype(x.dtype), dscale, dbias, None


batch_norm.defvjp(_batch_norm_forward, _batch_norm_backward)
