"""Layers of backbones and decoders, with the numerics of PyTorch.

Constructors declare parameters: their shape and initialiser. `mtlora_jax.models.parameters` fills them in, from files
or from a seed. Every layer computes in the dtype of its input and returns it, whatever dtype its parameters are stored
in. With bfloat16, norms, activation functions and the addition of biases are still computed in float32.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mtlora_jax.errors import UserError
from mtlora_jax.models.functional import batch_norm, gelu, layer_norm, to_float32
from mtlora_jax.models.initializers import Constant, Initializer, TruncatedNormal, fan_in_uniform
from mtlora_jax.models.task_features import TaskFeatures

SWIN_INIT = TruncatedNormal(0.02)  # of the linear layers and position tables of Swin
ZEROS = Constant(0.0)
ONES = Constant(1.0)


def abstract_param(shape: Sequence[int], init: Initializer, kind: type[nnx.Variable] = nnx.Param) -> nnx.Variable:
    """Return a float32 variable with a shape and an initialiser, but no value yet."""
    return kind(jax.ShapeDtypeStruct(tuple(shape), jnp.float32), init=init)


def map_weights(fn: Callable[..., Any], *variables: nnx.Variable) -> nnx.Variable:
    """Return the variable fn(*values), of the type of the first one.

    Values are computed on the host in float64 and stored in float32. If one of `variables` is abstract, so is the
    result: the same function gives the shapes of a merged model and its values.
    """
    values = [variable.get_value() for variable in variables]
    if any(isinstance(value, jax.ShapeDtypeStruct) for value in values):
        value = jax.eval_shape(fn, *(jax.ShapeDtypeStruct(value.shape, jnp.float32) for value in values))
    else:
        value = np.asarray(fn(*(np.asarray(value, np.float64) for value in values)), np.float32)
    return type(variables[0])(value, init=ZEROS)


def _mask_and_scale(x: jax.Array, rate: float, shape: Sequence[int], rngs: nnx.Rngs | None) -> jax.Array:
    """Zero entries with probability `rate` and scale the others; no-op without `rngs`.

    The mask has `shape`, which broadcasts to x. Each word of random bits serves two entries, sixteen bits each: on a
    CPU, drawing bits costs as much as a small matrix product. The rate is rounded to 2^-16.
    """
    threshold = round(rate * 2**16)
    if rngs is None or threshold == 0:
        return x
    *lead, last = shape
    words = jax.random.bits(rngs.dropout(), (*lead, -(-last // 2)), jnp.uint32)
    halves = jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(*lead, -1)[..., :last]
    return jnp.where(halves >= threshold, x * (2**16 / (2**16 - threshold)), 0.0)


def dropout(x: jax.Array, rate: float, rngs: nnx.Rngs | None) -> jax.Array:
    """Drop single elements of x, independently of each other."""
    return _mask_and_scale(x, rate, x.shape, rngs)


def drop_path(x: jax.Array, rate: float, rngs: nnx.Rngs | None) -> jax.Array:
    """Apply stochastic depth to x (..., B, H, W, C): one draw per image and stream."""
    return x * _mask_and_scale(jnp.ones((1,) * x.ndim, x.dtype), rate, (*x.shape[:-3], 1, 1, 1), rngs)


def dropout2d(x: jax.Array, rate: float, rngs: nnx.Rngs | None) -> jax.Array:
    """Drop whole channels of single images in x (B, H, W, C)."""
    return _mask_and_scale(x, rate, (x.shape[0], 1, 1, x.shape[-1]), rngs)


def resize_bilinear(x: jax.Array, height: int, width: int) -> jax.Array:
    """Resize x (B, h, w, C) bilinearly with half-pixel centres (`align_corners=False`), without antialiasing."""
    if x.shape[1:3] == (height, width):
        return x
    return jax.image.resize(x, (x.shape[0], height, width, x.shape[3]), "bilinear", antialias=False)


def pad_to_multiple(x: jax.Array, height: int, width: int) -> jax.Array:
    """Zero-pad x (..., H, W, C) at the bottom and right to multiples of `height` and `width`."""
    # Not -x % height: JAX must recognise the padded sides as multiples even if `jax.export` leaves the size open.
    bottom, right = -(-x.shape[-3] // height) * height - x.shape[-3], -(-x.shape[-2] // width) * width - x.shape[-2]
    if bottom == 0 and right == 0:
        return x
    return jnp.pad(x, [(0, 0)] * (x.ndim - 3) + [(0, bottom), (0, right), (0, 0)])


def add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
    """Return x + bias in the dtype of x, added in float32.

    The gradient of the bias is a sum over all rows, too long for bfloat16.
    """
    return (to_float32(x) + bias).astype(x.dtype)


def flatten_leading(x: jax.Array) -> jax.Array:
    """x (..., I) -> (N, I). Gradients of plain matrix products are faster than with many leading axes."""
    return x.reshape(-1, x.shape[-1])


def matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x K in the dtype of x: (..., I) and (I, O) -> (..., O)."""
    return (flatten_leading(x) @ kernel.astype(x.dtype)).reshape(*x.shape[:-1], -1)


class Layer(nnx.Module):
    """A layer of an encoder: a call acts on one array, `forward` on `TaskFeatures`.

    Methods adapt such layers: they replace one by a subclass that keeps the names of its parameters.
    """

    def forward(self, x: TaskFeatures, rngs: nnx.Rngs | None = None) -> TaskFeatures:
        """Apply the layer to the shared features and to those of each task."""
        return x.map(self)


class Linear(Layer):
    """y = x W + b on x (..., I); kernel (I, O), bias (O,) or None. This is also a 1x1 convolution in NHWC."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        use_bias: bool = True,
        init: Initializer = SWIN_INIT,
        bias_init: Initializer = ZEROS,
    ):
        self.kernel = abstract_param((in_features, out_features), init)
        self.bias = abstract_param((out_features,), bias_init) if use_bias else None

    @classmethod
    def from_weights(cls, kernel: nnx.Variable, bias: nnx.Variable | None) -> "Linear":
        """Make a plain linear layer of existing variables."""
        layer = Linear(1, 1, use_bias=bias is not None)
        layer.kernel = kernel
        if bias is not None:
            layer.bias = bias
        return layer

    def __call__(self, x: jax.Array) -> jax.Array:
        """x (..., I) -> (..., O)."""
        y = flatten_leading(x) @ self.kernel[...].astype(x.dtype)
        y = y if self.bias is None else add_bias(y, self.bias[...])
        return y.reshape(*x.shape[:-1], -1)


class MLP(nnx.Module):
    """The MLP of a transformer block: linear, GELU (exact), linear."""

    def __init__(self, dim: int, hidden: int):
        self.fc1 = Linear(dim, hidden)
        self.fc2 = Linear(hidden, dim)

    def __call__(self, x: TaskFeatures, rngs: nnx.Rngs | None = None) -> TaskFeatures:
        """Features of (..., C) -> features of (..., C)."""
        return self.fc2.forward(self.fc1.forward(x, rngs).map(gelu), rngs)


class Conv1x1(Linear):
    """A 1x1 convolution: a linear layer with the initialisation that convolutions have in PyTorch."""

    def __init__(self, in_features: int, out_features: int, *, use_bias: bool = True):
        init = fan_in_uniform(in_features)
        super().__init__(in_features, out_features, use_bias=use_bias, init=init, bias_init=init)


class Conv(Layer):
    """Square convolution in NHWC, kernel (K, K, I, O), by default without padding."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        size: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        padding: int = 0,
        use_bias: bool = True,
    ):
        init = fan_in_uniform(size * size * in_features)
        self.kernel = abstract_param((size, size, in_features, out_features), init)
        self.bias = abstract_param((out_features,), init) if use_bias else None
        self.stride = stride
        self.dilation = dilation
        self.padding = padding

    def __call__(self, x: jax.Array) -> jax.Array:
        """x (B, H, W, I) -> (B, H', W', O)."""
        y = jax.lax.conv_general_dilated(
            x,
            self.kernel[...].astype(x.dtype),
            (self.stride, self.stride),
            [(self.padding, self.padding)] * 2,
            rhs_dilation=(self.dilation, self.dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return y if self.bias is None else add_bias(y, self.bias[...])


class LayerNorm(Layer):
    """Layer normalisation over the last axis."""

    def __init__(self, features: int, *, epsilon: float = 1e-5):
        self.scale = abstract_param((features,), ONES)
        self.bias = abstract_param((features,), ZEROS)
        self.epsilon = epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        """x (..., C) -> (..., C)."""
        return layer_norm(x, self.scale[...], self.bias[...], self.epsilon)


class BatchNorm(nnx.Module):
    """Batch normalisation over all axes but the last, with PyTorch's running statistics.

    These have momentum 0.1 and unbiased variance. Under `jax.jit` with a sharded batch, the statistics are those of the
    global batch.
    """

    def __init__(self, features: int, *, momentum: float = 0.1, epsilon: float = 1e-5):
        self.scale = abstract_param((features,), ONES)
        self.bias = abstract_param((features,), ZEROS)
        self.mean = abstract_param((features,), ZEROS, nnx.BatchStat)
        self.var = abstract_param((features,), ONES, nnx.BatchStat)
        self.momentum = momentum
        self.epsilon = epsilon

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """x (..., C) -> (..., C). Training normalises by the batch and updates the running statistics."""
        if not train:
            gain = self.scale[...] / jnp.sqrt(self.var[...] + self.epsilon)
            return ((to_float32(x) - self.mean[...]) * gain + self.bias[...]).astype(x.dtype)
        y, mean, var = batch_norm(x, self.scale[...], self.bias[...], self.epsilon)
        count = math.prod(x.shape[:-1])
        if count < 2:
            raise UserError(
                "BatchNorm cannot train on a single value per channel, whose variance is 0: take a larger batch_size"
            )
        self.mean[...] = (1 - self.momentum) * self.mean[...] + self.momentum * mean
        self.var[...] = (1 - self.momentum) * self.var[...] + self.momentum * var * (count / (count - 1))
        return y

    def fold_into(self, layer: Linear | Conv) -> "BatchNorm":
        """Fold this norm, as it acts in evaluation, into the preceding layer, in place.

        Returns an identity to replace it.
        """

        def gain(scale: Any, var: Any) -> Any:
            return scale / (var + self.epsilon) ** 0.5

        before = () if layer.bias is None else (layer.bias,)
        layer.kernel = map_weights(
            lambda kernel, scale, var: kernel * gain(scale, var), layer.kernel, self.scale, self.var
        )
        bias = map_weights(
            lambda bias, scale, var, mean, *before: bias + (sum(before) - mean) * gain(scale, var),
            *(self.bias, self.scale, self.var, self.mean, *before),
        )
        layer.bias = nnx.data(bias)  # it may have been None
        return IdentityNorm()


class IdentityNorm(BatchNorm):
    """The rest of a norm that was folded into the layer before it."""

    def __init__(self):
        pass

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """x -> x."""
        return x
