"""A model of another method after `mtlora_jax.merge`, for prediction alone."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from flax import nnx

from mtlora_jax.errors import UserError
from mtlora_jax.methods.base import Method
from mtlora_jax.models.multitask import MultiTaskModel


@dataclasses.dataclass(frozen=True)
class Merged(Method):
    """Adapts as the original method, then merges.

    Attributes:
      of: name and options of the original method.
    """

    TITLE: ClassVar = "Merged"
    NO_ADAPTER: ClassVar = "its low-rank factors are in the weights"
    EXTENSIBLE: ClassVar = False

    of: Mapping[str, Any]

    def __post_init__(self):
        if not isinstance(self.of, Mapping):
            raise UserError(f"method.of = {self.of!r} must be the name and options of the method that was merged")
        if self.of.get("name") == "merged":
            raise UserError("method.of: a merged model cannot be merged again")

    def adapt(self, model: MultiTaskModel) -> None:
        """Build the merged structure; a model with values gets the merged values."""
        from mtlora_jax.methods import make_method  # here, because that module imports this one

        method = make_method(self.of)
        method.adapt(model)
        method.merge(model)

    def is_trainable(self, path: str, variable: nnx.Variable) -> bool:
        return False

    def merge(self, model: MultiTaskModel) -> None:
        raise UserError("the model is merged already; merge the one it was made from")
