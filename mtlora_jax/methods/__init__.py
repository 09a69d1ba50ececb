"""Fine-tuning methods: each adapts a model and says what of it trains."""

from collections.abc import Mapping
from typing import Any, Protocol

from flax import nnx

from mtlora_jax.methods.decoders_only import DecodersOnly
from mtlora_jax.methods.full import Full
from mtlora_jax.methods.merged import Merged
from mtlora_jax.methods.mtlora import MTLoRA
from mtlora_jax.methods.single_task import SingleTask
from mtlora_jax.models.multitask import MultiTaskModel
from mtlora_jax.registry import choose


class Method(Protocol):
    """What a method is; its options are its constructor's arguments."""

    def adapt(self, model: MultiTaskModel) -> None:
        """Changes the model in place: new layers that keep the names and weights of those they replace."""

    def trainable(self, path: str, variable: nnx.Variable) -> bool:
        """Whether the parameter at `path` (names joined by dots) is trained."""
        ...


METHODS = {"mtlora": MTLoRA, "full": Full, "decoders_only": DecodersOnly, "single_task": SingleTask, "merged": Merged}


def make_method(options: Mapping[str, Any]) -> Method:
    """The method that `options["name"]` names. Raises UserError for an unknown name or option, or a wrong value."""
    method, options = choose(METHODS, "method", options)
    return method(**options)
