"""The MLP of a block with task-specific branches, without the hidden activations of its tasks.

It computes the same as `models.layers.MLP` with the same layers, which `fused=False` runs, but faster. See
docs/performance.md.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from mtlora_jax.methods.mtlora.layers import TaskBranchLinear
from mtlora_jax.models.functional import gelu, gelu_slope, to_float32
from mtlora_jax.models.layers import MLP
from mtlora_jax.models.task_features import TaskFeatures

# Elements of hidden maps that `fused_gelu_lora` makes at a time: they stay in the cache of a CPU, or fill a GPU or TPU.
BAND = {"cpu": 2**20, "gpu": 2**26}


class FusedMLP(MLP):
    """fc2(gelu(fc1(x))) of two layers with task-specific branches.

    The hidden activations of tasks are never held: they are recomputed from the frozen output of fc1 and from x_t A_t.

    Attributes:
      fused: False runs layer by layer.
    """

    def __init__(self, base: MLP):
        self.fc1, self.fc2 = base.fc1, base.fc2
        self.fused = True

    def __call__(self, x: TaskFeatures, rngs: nnx.Rngs | None = None) -> TaskFeatures:
        if not self.fused:
            return super().__call__(x, rngs)
        fc1, fc2 = self.fc1, self.fc2
        assert isinstance(fc1, TaskBranchLinear)
        assert isinstance(fc2, TaskBranchLinear)
        shared, base, low = fc1.pre_b(x, rngs)
        factors = fc1.stacked_factors()[1], fc2.stacked_factors()[0]
        low = fused_gelu_lora(base, low, *(factor.astype(base.dtype) for factor in factors))
        return fc2.apply_b(*fc2.pre_b(TaskFeatures(gelu(shared)), rngs, low))


@jax.custom_vjp
def fused_gelu_lora(base: jax.Array, low: jax.Array, b: jax.Array, a: jax.Array) -> jax.Array:
    """Compute gelu(base + low_t B_t) A_t of every task, the low-rank input of fc2's task-specific branch.

    The hidden maps gelu(...) are T times the largest activation of a block and are only needed for a product with a
    thin matrix. They are computed and used in bands of the image, and once more in the backward pass. There the tasks
    lie side by side and the factors in block-diagonal matrices: one product of width T R takes less than half the time
    of T products of width R, though most of it multiplies zeros.

    Args:
      base: (B, H, W, I), common to all tasks.
      low: (T, B, H, W, R).
      b: (T, R, I).
      a: (T, I, S).

    Returns:
      (T, B, H, W, S).
    """

    def band(inputs: tuple[jax.Array, jax.Array]) -> jax.Array:
        base, low = inputs
        return gelu(to_float32(base) + to_float32(low @ b)).astype(base.dtype) @ a

    count = _bands(base, len(low))
    bands = jax.vmap(_cut, (0, None), 1)(low, count)
    out = jax.lax.map(band, (_cut(base, count), bands))
    return jax.vmap(_whole, (1, None))(out, base)


def _hidden_low_rank_forward(base: jax.Array, low: jax.Array, b: jax.Array, a: jax.Array):
    return fused_gelu_lora(base, low, b, a), (base, low, b, a)


def _hidden_low_rank_backward(kept: tuple[jax.Array, ...], g: jax.Array):
    base, low, b, a = kept
    tasks = len(low)
    up, down = _block_diagonal(b), _block_diagonal(a)
    wide = jnp.promote_types(base.dtype, jnp.float32)  # not float32: GPUs have no product of float64 that sums in less

    def band(sums: tuple[jax.Array, jax.Array], inputs: tuple[jax.Array, jax.Array, jax.Array]):
        base, low, g = inputs
        hidden = _hidden(base, low, up)
        slope = (to_float32((g @ down.T).reshape(hidden.shape)) * gelu_slope(hidden)).astype(base.dtype)
        dup = jnp.matmul(low.T, _flat(slope), preferred_element_type=wide)
        ddown = jnp.matmul(_flat(gelu(hidden).astype(base.dtype)).T, g, preferred_element_type=wide)
        return (sums[0] + dup, sums[1] + ddown), (jnp.sum(to_float32(slope), 1).astype(base.dtype), _flat(slope) @ up.T)

    count = _bands(base, tasks)
    zeros = jnp.zeros(up.shape, wide), jnp.zeros(down.shape, wide)
    inputs = (_cut(base, count), _cut(_side_by_side(low), count), _cut(_side_by_side(g), count))
    (dup, ddown), (dbase, dlow) = jax.lax.scan(band, zeros, inputs)
    db, da = _blocks(dup, tasks).astype(b.dtype), _blocks(ddown, tasks).astype(a.dtype)
    return _whole(dbase, base), _apart(_whole(dlow, base), tasks), db, da


fused_gelu_lora.defvjp(_hidden_low_rank_forward, _hidden_low_rank_backward)


def _hidden(base: jax.Array, low: jax.Array, up: jax.Array) -> jax.Array:
    """base + low_t B_t: (N, I), (N, T R), (T R, T I) -> (N, T, I), float32 at least."""
    return to_float32(base)[:, None] + to_float32(low @ up).reshape(base.shape[0], -1, base.shape[-1])


def _flat(x: jax.Array) -> jax.Array:
    """(N, T, I) -> (N, T I)."""
    return x.reshape(x.shape[0], -1)


def _block_diagonal(factors: jax.Array) -> jax.Array:
    """(T, I, O) -> (T I, T O)."""
    tasks = len(factors)
    spread = jnp.eye(tasks, dtype=factors.dtype)[:, None, :, None] * factors[:, :, None, :]
    return spread.reshape(tasks * factors.shape[1], -1)


def _blocks(matrix: jax.Array, tasks: int) -> jax.Array:
    """The blocks on the diagonal: (T I, T O) -> (T, I, O)."""
    parts = matrix.reshape(tasks, matrix.shape[0] // tasks, tasks, -1)
    return jnp.moveaxis(jnp.diagonal(parts, axis1=0, axis2=2), -1, 0)


def _side_by_side(x: jax.Array) -> jax.Array:
    """(T, B, H, W, R) -> (B, H, W, T R)."""
    return jnp.moveaxis(x, 0, -2).reshape(*x.shape[1:-1], -1)


def _apart(x: jax.Array, tasks: int) -> jax.Array:
    """The inverse of `_side_by_side`."""
    return jnp.moveaxis(x.reshape(*x.shape[:-1], tasks, -1), -2, 0)


def _bands(base: jax.Array, tasks: int) -> int:
    """Return the number of bands of rows that images are cut into, which leaves a sharded batch where it is."""
    height = base.shape[1]
    if not all(isinstance(side, int) for side in base.shape):  # `jax.export` may leave sizes open
        return 1
    most = BAND.get(jax.default_backend(), BAND["gpu"])
    return next(n for n in range(1, height + 1) if height % n == 0 and (n == height or tasks * base.size <= n * most))


def _cut(x: jax.Array, count: int) -> jax.Array:
    """(B, H, W, C) -> (count, N / count, C), N the number of pixels."""
    bands = x.reshape(x.shape[0], count, -1, *x.shape[2:])
    return jnp.moveaxis(bands, 1, 0).reshape(count, -1, x.shape[-1])


def _whole(bands: jax.Array, like: jax.Array) -> jax.Array:
    """The inverse of `_cut` for an image of the batch and size of `like`."""
    batch, height, width = like.shape[:3]
    parts = bands.reshape(bands.shape[0], batch, -1, width, bands.shape[-1])
    return jnp.moveaxis(parts, 0, 1).reshape(batch, height, width, -1)
