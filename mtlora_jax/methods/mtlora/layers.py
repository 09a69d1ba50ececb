"""Linear layers with task-agnostic (TA) and task-specific (TS) low-rank branches; MTLoRA section 3.1, Eq. 1 and 2."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from mtlora_jax.methods.base import AdapterParam
from mtlora_jax.models.initializers import fan_in_uniform
from mtlora_jax.models.layers import (
    ZEROS,
    Linear,
    abstract_param,
    add_bias,
    dropout,
    flatten_leading,
    map_weights,
    matmul,
)
from mtlora_jax.models.task_features import TaskFeatures


class SharedLoRAParam(AdapterParam):
    """A factor of a task-agnostic branch."""

    group: ClassVar = "ta_lora"
    described: ClassVar = "low-rank factors"


class TaskLoRAParam(AdapterParam):
    """A factor of a task-specific branch."""

    group: ClassVar = "ts_lora"
    described: ClassVar = "task-specific factors"
    per_task: ClassVar = True


def stack_padded(factors: Sequence[jax.Array], axis: int) -> jax.Array:
    """Stack factors of several ranks, (T, ...), zero-padded along `axis` to the largest.

    Padding adds exact zeros to a product.
    """
    widest = max(factor.shape[axis] for factor in factors)
    pads = [[(0, widest - factor.shape[axis] if i == axis else 0) for i in range(2)] for factor in factors]
    return jnp.stack([jnp.pad(factor, pad) for factor, pad in zip(factors, pads, strict=True)])


def task_matmul(x: TaskFeatures, factors: jax.Array) -> jax.Array:
    """Compute x_t F_t of all tasks in one batched product; x_t is x.shared if there are no features of tasks yet.

    Args:
      x: features of (..., I).
      factors: (T, I, O).

    Returns:
      (T, ..., O).
    """
    inputs, axis = (x.shared, None) if x.tasks is None else (x.tasks, 0)
    assert inputs is not None
    return jax.vmap(matmul, (axis, 0))(inputs, factors)


class LoRALinear(Linear):
    """TA-LoRA: y = x W + b + s (x A) B, with A (I, r) and B (r, O); s is never divided by the rank."""

    def __init__(self, base: Linear, *, rank: int, scale: float, dropout: float):
        self.kernel, self.bias = base.kernel, base.bias
        in_features, out_features = base.kernel.shape
        self.shared_a = abstract_param((in_features, rank), fan_in_uniform(in_features), SharedLoRAParam)
        self.shared_b = abstract_param((rank, out_features), ZEROS, SharedLoRAParam)
        self.scale = scale
        self.dropout = dropout

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        """x (..., I) -> (..., O)."""
        return super().__call__(x) + self.low_rank(dropout(x, self.dropout, rngs))

    def forward(self, x: TaskFeatures, rngs: nnx.Rngs | None = None) -> TaskFeatures:
        return x.map_random(self, rngs)

    def low_rank(self, x: jax.Array) -> jax.Array:
        """s (x A) B, (..., I) -> (..., O)."""
        return matmul(matmul(x, self.scale * self.shared_a[...]), self.shared_b[...])

    def merged(self) -> Linear:
        """Return x (W + s A B) + b as a plain layer."""
        kernel = map_weights(lambda w, a, b: w + self.scale * (a @ b), self.kernel, self.shared_a, self.shared_b)
        return Linear.from_weights(kernel, self.bias)


class SharedInputLinear(Linear):
    """A layer without branches between layers that have them: Eq. 2 with an empty low-rank term.

    The frozen weight acts on the shared input, so every task continues from the shared output.
    """

    def __init__(self, base: Linear):
        self.kernel, self.bias = base.kernel, base.bias

    def forward(self, x: TaskFeatures, rngs: nnx.Rngs | None = None) -> TaskFeatures:
        return TaskFeatures(self(shared(x)))


class DeferredLinear(Linear):
    """A bias-free layer that leaves its product with task features to their readers.

    They multiply by the product of both matrices, which is far smaller: 4C channels go to 18, 36 or 72 instead of to 2C
    first.

    Attributes:
      absorbed: whether readers have taken the kernel into their own.
      fused: False runs the layer like any other.
    """

    def __init__(self, base: Linear, absorbed: bool = False):
        self.kernel, self.bias = base.kernel, None
        self.absorbed = absorbed
        self.fused = True

    def forward(self, x: TaskFeatures, rngs: nnx.Rngs | None = None) -> TaskFeatures:
        if self.absorbed:
            return TaskFeatures(self(shared(x)), x.tasks)
        if not self.fused or x.tasks is None:
            return x.map(self)
        return TaskFeatures(self(shared(x)), x.tasks, self.kernel[...])


class TaskBranchLinear(Linear):
    """A layer whose features of task t are W x + b plus a low-rank term of x_t; W acts on the shared input x."""

    def stacked_factors(self) -> tuple[jax.Array, jax.Array]:
        """Return A (T, I, R) and B (T, R, O) of all tasks, with scales, zero-padded to the largest rank R."""
        raise NotImplementedError

    def pre_b(
        self, x: TaskFeatures, rngs: nnx.Rngs | None, low: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Return the shared output (..., O), the frozen output (..., O) and x_t A_t (T, ..., R).

        Pass `low` if the last is known.
        """
        raise NotImplementedError

    def apply_b(self, shared: jax.Array, base: jax.Array, low: jax.Array) -> TaskFeatures:
        """Compute the features from the results of `pre_b`."""
        return TaskFeatures(shared, base + task_matmul(TaskFeatures(None, low), self.stacked_factors()[1]))

    def forward(self, x: TaskFeatures, rngs: nnx.Rngs | None = None) -> TaskFeatures:
        return self.apply_b(*self.pre_b(x, rngs))


class TaskLoRALinear(LoRALinear, TaskBranchLinear):
    """TA-LoRA and one TS branch per task.

        shared:  y   = x W + b + s (x A) B
        task t:  y_t = x W + b + s_t (x_t A_t) B_t      where x_t = x until there are features of tasks

    The TA term is not added to features of tasks. With `ts_base="task"` the frozen weight of task t acts on x_t
    instead.

    Factors are stored by task name, so that tasks can be added, dropped and shipped singly. Tracing stacks them, with
    zero-padded ranks, so that all tasks run as one batched product.
    """

    def __init__(
        self,
        base: Linear,
        *,
        rank: int,
        scale: float,
        dropout: float,
        task_rank: Mapping[str, int],
        task_scale: Mapping[str, float],
        ts_base: str,
    ):
        super().__init__(base, rank=rank, scale=scale, dropout=dropout)
        in_features, out_features = base.kernel.shape
        init = fan_in_uniform(in_features)
        self.task_a = nnx.Dict(
            {task: abstract_param((in_features, r), init, TaskLoRAParam) for task, r in task_rank.items()}
        )
        self.task_b = nnx.Dict(
            {task: abstract_param((r, out_features), ZEROS, TaskLoRAParam) for task, r in task_rank.items()}
        )
        self.task_rank = tuple(task_rank.items())
        self.task_scale = tuple(task_scale[task] for task in task_rank)
        self.ts_base = ts_base

    def forward(self, x: TaskFeatures, rngs: nnx.Rngs | None = None) -> TaskFeatures:
        return TaskBranchLinear.forward(self, x, rngs)

    def stacked_factors(self) -> tuple[jax.Array, jax.Array]:
        scaled = [
            scale * self.task_a[task][...] for (task, _), scale in zip(self.task_rank, self.task_scale, strict=True)
        ]
        return stack_padded(scaled, 1), stack_padded([self.task_b[task][...] for task, _ in self.task_rank], 0)

    def pre_b(
        self, x: TaskFeatures, rngs: nnx.Rngs | None, low: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """As in the base class; dropout acts on the shared input only.

        With `ts_base="task"` the frozen output is (T, ..., O) once there are task features.
        """
        base = Linear.__call__(self, shared(x))
        dropped = dropout(shared(x), self.dropout, rngs)
        output = base + self.low_rank(dropped)
        low = task_matmul(TaskFeatures(dropped, x.tasks), self.stacked_factors()[0]) if low is None else low
        if self.ts_base == "task" and x.tasks is not None:
            base = jax.vmap(lambda y: Linear.__call__(self, y))(x.tasks)
        return output, base, low


class MergedTaskLoRALinear(TaskBranchLinear):
    """A merged `TaskLoRALinear` whose features of tasks all start from W x + b, computed once from the shared input.

    The shared pair cannot fold into W, since the tasks need W unchanged. Scales are folded into the factors B.

    Attributes:
      shared_a, shared_b: None if nothing reads the shared output, which is then W x + b.
    """

    def __init__(self, layer: TaskLoRALinear, needs_shared: bool):
        self.kernel, self.bias = layer.kernel, layer.bias
        self.shared_a = layer.shared_a if needs_shared else None
        self.shared_b = map_weights(lambda b: layer.scale * b, layer.shared_b) if needs_shared else None
        self.tasks = tuple(task for task, _ in layer.task_rank)
        scales = zip(self.tasks, layer.task_scale, strict=True)
        self.task_a = layer.task_a
        self.task_b = nnx.Dict(
            {task: map_weights(lambda b, s=scale: s * b, layer.task_b[task]) for task, scale in scales}
        )

    def stacked_factors(self) -> tuple[jax.Array, jax.Array]:
        a, b = ([factors[task][...] for task in self.tasks] for factors in (self.task_a, self.task_b))
        return stack_padded(a, 1), stack_padded(b, 0)

    def pre_b(
        self, x: TaskFeatures, rngs: nnx.Rngs | None, low: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        base = self(shared(x))
        output = base
        if self.shared_a is not None and self.shared_b is not None:
            output = base + matmul(matmul(shared(x), self.shared_a[...]), self.shared_b[...])
        return output, base, task_matmul(x, self.stacked_factors()[0]) if low is None else low


class PerTaskLinear(Linear):
    """A merged `TaskLoRALinear` with `ts_base="task"` that reads features of tasks.

    Nothing is shared, so every pair folds:

        shared:  y   = x (W + s A B) + b           only if something reads it
        task t:  y_t = x_t (W + s_t A_t B_t) + b
    """

    def __init__(self, layer: TaskLoRALinear, needs_shared: bool):
        self.kernel = LoRALinear.merged(layer).kernel if needs_shared else None
        self.bias = layer.bias
        self.tasks = tuple(task for task, _ in layer.task_rank)
        self.task_kernel = nnx.Dict(
            {
                task: map_weights(
                    lambda w, a, b, s=scale: w + s * (a @ b), layer.kernel, layer.task_a[task], layer.task_b[task]
                )
                for task, scale in zip(self.tasks, layer.task_scale, strict=True)
            }
        )

    def forward(self, x: TaskFeatures, rngs: nnx.Rngs | None = None) -> TaskFeatures:
        assert x.tasks is not None
        kernels = jnp.stack([self.task_kernel[task][...] for task in self.tasks])
        tasks = jax.vmap(self.product)(x.tasks, kernels)
        return TaskFeatures(None if self.kernel is None else self(shared(x)), tasks)

    def product(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        """x K + b, (..., I) and (I, O) -> (..., O)."""
        y = flatten_leading(x) @ kernel.astype(x.dtype)
        y = y if self.bias is None else add_bias(y, self.bias[...])
        return y.reshape(*x.shape[:-1], -1)


def shared(x: TaskFeatures) -> jax.Array:
    """Return the shared features, which MTLoRA's layers always read."""
    assert x.shared is not None
    return x.shared
