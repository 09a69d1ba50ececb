"""The shared stream and the task streams that travel through an encoder together."""

import dataclasses
from collections.abc import Callable

import jax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Streams:
    """Activations of one layer: the shared stream, and one stream per task once a task-specific layer was met.

    Attributes:
      shared: (..., C).
      tasks: (T, ..., C) in the model's task order, or None before the first task-specific layer. A stream that does not exist
        yet equals the shared one.
    """

    shared: jax.Array
    tasks: jax.Array | None = None

    def map(self, fn: Callable[[jax.Array], jax.Array]) -> "Streams":
        """Applies an operation that knows no tasks to every stream; `fn` must accept any number of leading axes."""
        return Streams(fn(self.shared), None if self.tasks is None else fn(self.tasks))

    def task(self, index: int) -> jax.Array:
        """The stream (..., C) that the decoder of task number `index` reads."""
        return self.shared if self.tasks is None else self.tasks[index]

    def __add__(self, other: "Streams") -> "Streams":
        """Adds stream by stream; where one side has no task streams its shared stream stands in for them."""
        if self.tasks is None and other.tasks is None:
            return Streams(self.shared + other.shared)
        left = self.shared if self.tasks is None else self.tasks
        right = other.shared if other.tasks is None else other.tasks
        return Streams(self.shared + other.shared, left + right)
