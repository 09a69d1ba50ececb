"""Linear layers with task-agnostic (TA) and task-specific (TS) low-rank branches; MTLoRA section 3.1, Eq. 1 and 2."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from mtlora_jax.methods.mtlora.fused_mlp import hidden_low_rank
from mtlora_jax.models.functional import gelu
from mtlora_jax.models.initializers import fan_in_uniform
from mtlora_jax.models.layers import ZEROS, FoldedLinear, Linear, biased, declare, dropout, folded, product, rows
from mtlora_jax.models.task_features import Streams


class SharedLoRA(nnx.Param):
    """A factor of a task-agnostic branch."""


class TaskLoRA(nnx.Param):
    """A factor of a task-specific branch."""


def stack_padded(factors: Sequence[jax.Array], axis: int) -> jax.Array:
    """Factors of several ranks -> (T, ...), zero-padded along `axis` to the largest rank: the padding adds exact zeros to a product."""
    widest = max(factor.shape[axis] for factor in factors)
    pads = [[(0, widest - factor.shape[axis] if i == axis else 0) for i in range(2)] for factor in factors]
    return jnp.stack([jnp.pad(factor, pad) for factor, pad in zip(factors, pads, strict=True)])


def product_of_tasks(shared: jax.Array, tasks: jax.Array | None, factors: jax.Array) -> jax.Array:
    """x_t F_t of all tasks in one batched product, where x_t = `shared` until there are task streams.

    Args:
      shared: (..., I). tasks: (T, ..., I) or None. factors: (T, I, O). Only leading axes of `shared` count where there are tasks.

    Returns:
      (T, ..., O).
    """
    x, axis = (shared, None) if tasks is None else (tasks, 0)
    y = jax.vmap(lambda x, factor: rows(x) @ factor, (axis, 0))(x, factors.astype(x.dtype))
    return y.reshape(len(factors), *shared.shape[:-1], -1)


class LoRALinear(Linear):
    """TA-LoRA: y = x W + b + s (x A) B, with A (I, r) and B (r, O); s is used as it is, never divided by the rank."""

    def __init__(self, base: Linear, *, rank: int, scale: float, dropout: float):
        self.kernel, self.bias = base.kernel, base.bias
        in_features, out_features = base.kernel.shape
        self.shared_a = declare((in_features, rank), fan_in_uniform(in_features), SharedLoRA)
        self.shared_b = declare((rank, out_features), ZEROS, SharedLoRA)
        self.scale = scale
        self.dropout = dropout

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        """x (..., I) -> (..., O)."""
        return super().__call__(x) + self.low_rank(dropout(x, self.dropout, rngs))

    def low_rank(self, x: jax.Array) -> jax.Array:
        """s (x A) B, (..., I) -> (..., O)."""
        return product(product(x, self.scale * self.shared_a[...]), self.shared_b[...])

    def merged(self, *, shared: bool = True, tasks: bool = True, streams: bool = False) -> Linear:
        """x (W + s A B) + b."""
        return FoldedLinear(folded(lambda w, a, b: w + self.scale * (a @ b), self.kernel, self.shared_a, self.shared_b), self.bias)


class SharedBase(Linear):
    """A layer whose task streams are W x + b plus a low-rank term of their own.

    Attributes:
      shares_base: whether x is the shared input for all of them.
    """

    shares_base = True

    def stacked(self) -> tuple[jax.Array, jax.Array]:
        """Factors A (T, I, R) and B (T, R, O) of all tasks, scales in them, with ranks zero-padded to the largest, R."""
        raise NotImplementedError

    def split(self, x: Streams, rngs: nnx.Rngs | None, low: jax.Array | None = None) -> tuple[jax.Array, jax.Array, jax.Array]:
        """What comes before the last product: the shared output (..., O), W x + b (..., O) and x_t A_t (T, ..., R), unless `low` is it."""
        raise NotImplementedError

    def streams(self, x: Streams, rngs: nnx.Rngs | None = None) -> Streams:
        """(..., I) -> (..., O) for the shared stream and all task streams."""
        return self.joined(*self.split(x, rngs))

    def joined(self, shared: jax.Array, base: jax.Array, low: jax.Array) -> Streams:
        """The streams of what `split` gives."""
        return Streams(shared, base + product_of_tasks(shared, low, self.stacked()[1]))


def through_hidden(first: SharedBase, second: SharedBase, x: Streams, rngs: nnx.Rngs | None) -> Streams:
    """second(gelu(first(x))), without ever holding the hidden maps of the tasks: their shared part and x_t A_t say it all."""
    shared, base, low = first.split(x, rngs)
    factors = first.stacked()[1], second.stacked()[0]
    low = hidden_low_rank(base, low, *(factor.astype(base.dtype) for factor in factors))
    return second.joined(*second.split(Streams(gelu(shared)), rngs, low))


class TaskLoRALinear(LoRALinear, SharedBase):
    """TA-LoRA and one TS branch per task.

        shared:  y   = x W + b + s (x A) B
        task t:  y_t = x W + b + s_t (x_t A_t) B_t      where x_t = x until task streams exist

    The TA term is not added to the task streams. With `ts_base="task"` the frozen weight of task t acts on x_t instead.

    Factors are stored by task name, so that tasks can be added, dropped and shipped singly; they are stacked with ranks
    zero-padded at trace time, so that all tasks run as one batched product.
    """

    specific = True

    def __init__(
        self, base: Linear, *, rank: int, scale: float, dropout: float, task_rank: Mapping[str, int], task_scale: Mapping[str, float],
        ts_base: str,
    ):  # fmt: skip
        super().__init__(base, rank=rank, scale=scale, dropout=dropout)
        in_features, out_features = base.kernel.shape
        init = fan_in_uniform(in_features)
        self.task_a = nnx.Dict({task: declare((in_features, r), init, TaskLoRA) for task, r in task_rank.items()})
        self.task_b = nnx.Dict({task: declare((r, out_features), ZEROS, TaskLoRA) for task, r in task_rank.items()})
        self.task_rank = tuple(task_rank.items())
        self.task_scale = tuple(task_scale[task] for task in task_rank)
        self.ts_base = ts_base
        self.shares_base = ts_base == "shared"

    def stacked(self) -> tuple[jax.Array, jax.Array]:
        tasks = [task for task, _ in self.task_rank]
        scaled = [scale * self.task_a[task][...] for task, scale in zip(tasks, self.task_scale, strict=True)]
        return stack_padded(scaled, 1), stack_padded([self.task_b[task][...] for task in tasks], 0)

    def split(self, x: Streams, rngs: nnx.Rngs | None, low: jax.Array | None = None) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Dropout acts on the shared input only. With `ts_base="task"` the second is (T, ..., O) once there are task streams."""
        base = Linear.__call__(self, x.shared)
        dropped = dropout(x.shared, self.dropout, rngs)
        shared = base + self.low_rank(dropped)
        low = product_of_tasks(dropped, x.tasks, self.stacked()[0]) if low is None else low
        task_base = Linear.__call__(self, x.tasks) if self.ts_base == "task" and x.tasks is not None else base
        return shared, task_base, low

    def merged(self, *, shared: bool = True, tasks: bool = True, streams: bool = False) -> Linear:
        """What is least where task outputs are read: `SharedBaseLinear` where all streams share W x, else `KernelPerStreamLinear`."""
        if not tasks:
            return super().merged()
        return KernelPerStreamLinear(self, shared) if streams and self.ts_base == "task" else SharedBaseLinear(self, shared)


class SharedBaseLinear(SharedBase):
    """A merged `TaskLoRALinear` whose streams all start from W x + b of the shared input, computed once.

    The shared pair cannot fold into W, which the task streams need as it is. Scales are folded into the factors B.

    Attributes:
      shared_a, shared_b: None where nothing reads the shared output; it is W x + b then.
    """

    specific = True

    def __init__(self, layer: TaskLoRALinear, shared: bool):
        self.kernel, self.bias = layer.kernel, layer.bias
        self.shared_a = layer.shared_a if shared else None
        self.shared_b = folded(lambda b: layer.scale * b, layer.shared_b) if shared else None
        self.tasks = tuple(task for task, _ in layer.task_rank)
        scales = zip(self.tasks, layer.task_scale, strict=True)
        self.task_a = layer.task_a
        self.task_b = nnx.Dict({task: folded(lambda b, s=scale: s * b, layer.task_b[task]) for task, scale in scales})

    def stacked(self) -> tuple[jax.Array, jax.Array]:
        a, b = self.task_a, self.task_b
        return stack_padded([a[task][...] for task in self.tasks], 1), stack_padded([b[task][...] for task in self.tasks], 0)

    def split(self, x: Streams, rngs: nnx.Rngs | None, low: jax.Array | None = None) -> tuple[jax.Array, jax.Array, jax.Array]:
        base = self(x.shared)
        shared = base
        if self.shared_a is not None and self.shared_b is not None:
            shared = base + product(product(x.shared, self.shared_a[...]), self.shared_b[...])
        return shared, base, product_of_tasks(x.shared, x.tasks, self.stacked()[0]) if low is None else low


class KernelPerStreamLinear(Linear):
    """A merged `TaskLoRALinear` with `ts_base="task"` whose streams differ before it: they share nothing, so that every pair folds.

    shared:  y   = x (W + s A B) + b           only where something reads it
    task t:  y_t = x_t (W + s_t A_t B_t) + b
    """

    specific = True

    def __init__(self, layer: TaskLoRALinear, shared: bool):
        self.kernel = LoRALinear.merged(layer).kernel if shared else None
        self.bias = layer.bias
        self.tasks = tuple(task for task, _ in layer.task_rank)
        self.task_kernel = nnx.Dict(
            {
                task: folded(lambda w, a, b, s=scale: w + s * (a @ b), layer.kernel, layer.task_a[task], layer.task_b[task])
                for task, scale in zip(self.tasks, layer.task_scale, strict=True)
            }
        )
        self.reads_shared = shared

    def streams(self, x: Streams, rngs: nnx.Rngs | None = None) -> Streams:
        """(..., I) -> (..., O) for the task streams, and for the shared one, which is zeros where nothing reads it."""
        kernels = jnp.stack([self.task_kernel[task][...] for task in self.tasks]).astype(x.shared.dtype)
        tasks = jax.vmap(lambda x, kernel: rows(x) @ kernel)(x.tasks, kernels)
        tasks = tasks.reshape(-1, *x.shared.shape[:-1], tasks.shape[-1])
        tasks = tasks if self.bias is None else biased(tasks, self.bias[...])
        return Streams(self(x.shared) if self.reads_shared else jnp.zeros_like(tasks[0]), tasks)
