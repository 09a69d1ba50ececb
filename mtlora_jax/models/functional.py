"""Functions with a hand-written backward pass.

Automatic differentiation would keep intermediate values whose memory costs more than computing them again. Each
function computes in float32 inside and returns the dtype of its input.
"""

import jax
import jax.numpy as jnp


def to_float32(x: jax.Array) -> jax.Array:
    """x in float32, unless it is wider already."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """x Phi(x), with the exact distribution function Phi of the normal distribution, as in PyTorch. Keeps only x."""
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
    """Normalise x (..., C) to mean 0 and variance 1 over its last axis, times scale (C,), plus bias (C,).

    Keeps x and two numbers per row.
    """
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
    """Normalise x (..., C) over all axes but the last, times scale (C,), plus bias (C,).

    Returns the result, the mean and the variance (C,). Keeps x, mean and variance. The returned mean and variance are
    for running statistics: no gradients flow back through them.
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
