"""The values that pass through an encoder: features that all tasks share, and features of each task."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TaskFeatures:
    """Features of one layer. The T tasks are an axis of their own, so that a sharded batch stays where it is.

    Attributes:
      shared: (..., C), or None if every task has features of its own and nothing reads shared ones.
      tasks: (T, ..., C) in the model's task order, or None while every task still reads `shared`.
      projection: (C, D), or None. A matrix that readers of `tasks` still have to apply; see
        `methods.mtlora.layers.DeferredLinear`.
    """

    shared: jax.Array | None
    tasks: jax.Array | None = None
    projection: jax.Array | None = None

    def map(self, fn: Callable[[jax.Array], jax.Array]) -> "TaskFeatures":
        """Apply `fn`, which takes one (..., C) array, to the shared features and to those of each task."""
        return TaskFeatures(
            None if self.shared is None else fn(self.shared), None if self.tasks is None else jax.vmap(fn)(self.tasks)
        )

    def map_random(
        self, fn: Callable[[jax.Array, nnx.Rngs | None], jax.Array], rngs: nnx.Rngs | None
    ) -> "TaskFeatures":
        """As `map`, for an `fn` that draws random numbers: the shared features and each task draw their own.

        With `rngs`, `fn` gets the features of all tasks as one array, and must take any number of leading axes.
        """
        if rngs is None:
            return self.map(lambda x: fn(x, None))
        shared = None if self.shared is None else fn(self.shared, rngs)
        return TaskFeatures(shared, None if self.tasks is None else fn(self.tasks, rngs))

    def combine(self, fn: Callable[[jax.Array, jax.Array], jax.Array], other: "TaskFeatures") -> "TaskFeatures":
        """Apply `fn` to two features, task by task.

        If one side has no task features, its shared ones take their place for every task.
        """
        shared = None if self.shared is None or other.shared is None else fn(self.shared, other.shared)
        if self.tasks is None and other.tasks is None:
            return TaskFeatures(shared)
        sides: list[Any] = [side.shared if side.tasks is None else side.tasks for side in (self, other)]
        axes = [None if side.tasks is None else 0 for side in (self, other)]
        return TaskFeatures(shared, jax.vmap(fn, axes)(*sides))

    def __add__(self, other: "TaskFeatures") -> "TaskFeatures":
        return self.combine(jnp.add, other)

    def projected(self) -> "TaskFeatures":
        """Return the features with `projection` applied."""
        if self.projection is None or self.tasks is None:
            return self
        return TaskFeatures(self.shared, jnp.matmul(self.tasks, self.projection.astype(self.tasks.dtype)))

    def task(self, index: int) -> "jax.Array":
        """Return the features (..., C) that the decoder of task number `index` reads."""
        features = self.shared if self.tasks is None else self.tasks[index]
        assert features is not None
        return features

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of feature maps (..., H, W, C)."""
        features = self.tasks if self.shared is None else self.shared
        assert features is not None
        return features.shape[-3], features.shape[-2]
