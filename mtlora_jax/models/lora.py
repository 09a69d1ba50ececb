"""Linear layers with task-agnostic (TA) and task-specific (TS) low-rank branches; MTLoRA section 3.1, Eq. 1 and 2."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from mtlora_jax.models.initializers import fan_in_uniform
from mtlora_jax.models.layers import ZEROS, Linear, declare, dropout, rows
from mtlora_jax.models.streams import Streams


class SharedLoRA(nnx.Param):
    """A factor of a task-agnostic branch."""


class TaskLoRA(nnx.Param):
    """A factor of a task-specific branch."""


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
        a, b = self.scale * self.shared_a[...], self.shared_b[...]
        y = (rows(x) @ a.astype(x.dtype)) @ b.astype(x.dtype)
        return y.reshape(*x.shape[:-1], -1)


class TaskLoRALinear(LoRALinear):
    """TA-LoRA and one TS branch per task.

        shared:  y   = x W + b + s (x A) B
        task t:  y_t = x W + b + s_t (x_t A_t) B_t      where x_t = x until task streams exist

    The TA term is not added to the task streams. With `ts_base="task"` the frozen weight of task t acts on x_t instead.

    Factors are stored by task name, so that tasks can be added, dropped and shipped singly; they are stacked with ranks
    zero-padded at trace time, so that all tasks run as one batched product.
    """

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

    def stacked(self) -> tuple[jax.Array, jax.Array]:
        """s A (T, I, R) and B (T, R, O), zero-padded to the largest rank R: the padding adds exact zeros to the product."""
        widest = max(r for _, r in self.task_rank)
        a = [
            scale * jnp.pad(self.task_a[task][...], ((0, 0), (0, widest - r)))
            for (task, r), scale in zip(self.task_rank, self.task_scale, strict=True)
        ]
        b = [jnp.pad(self.task_b[task][...], ((0, widest - r), (0, 0))) for task, r in self.task_rank]
        return jnp.stack(a), jnp.stack(b)

    def streams(self, x: Streams, rngs: nnx.Rngs | None = None) -> Streams:
        """(..., I) -> (..., O) for the shared stream and all task streams. Dropout acts on the shared input only."""
        base = Linear.__call__(self, x.shared)
        dropped = dropout(x.shared, self.dropout, rngs)
        shared = base + self.low_rank(dropped)
        a, b = (factor.astype(base.dtype) for factor in self.stacked())
        if x.tasks is None:
            low = jax.vmap(lambda a, b: (rows(dropped) @ a) @ b)(a, b)
        else:
            low = jax.vmap(lambda x, a, b: (rows(x) @ a) @ b)(x.tasks, a, b)
        task_base = Linear.__call__(self, x.tasks) if self.ts_base == "task" and x.tasks is not None else base
        return Streams(shared, task_base + low.reshape(-1, *base.shape))
