"""The contract of a method."""

from typing import Protocol

from flax import nnx

from mtlora_jax.models.multitask import MultiTaskModel


class Method(Protocol):
    """What a method is; its options are its constructor's arguments."""

    def adapt(self, model: MultiTaskModel) -> None:
        """Changes the model in place: new layers that keep the names and weights of those they replace."""

    def trainable(self, path: str, variable: nnx.Variable) -> bool:
        """Whether the parameter at `path` (names joined by dots) is trained."""
        ...
