"""The interface of a method, and of the parameters that it adds to a model."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from flax import nnx

from mtlora_jax.errors import UserError
from mtlora_jax.models.multitask import MultiTaskModel


class AdapterParam(nnx.Param):
    """A parameter that pre-trained weights do not have.

    Attributes:
      group: its group in tables of parameters and in logs.
      described: the words for such parameters in messages.
      per_task: whether it belongs to one task, whose name is the last part of its path.
    """

    group: ClassVar[str] = "adapters"
    described: ClassVar[str] = "adapters"
    per_task: ClassVar[bool] = False


class Method:
    """A way to fine-tune a model. Subclasses are frozen dataclasses whose fields are the method's options.

    Attributes:
      OPTIONS: {option: check}, by the checks of `mtlora_jax.schema`; options without one must be plain and bounded.
      TITLE: its name in model cards.
      PER_TASK_OPTIONS: options that may be {task: value}.
      TRAINING_OPTIONS: options that only matter during training.
      NO_ADAPTER: why its models cannot be shipped as an adapter; empty if they can.
      EXTENSIBLE: whether a task can be added to its models.
      MERGEABLE: whether `merge` works.
    """

    OPTIONS: ClassVar[Mapping[str, Any]] = {}
    TITLE: ClassVar[str] = ""
    PER_TASK_OPTIONS: ClassVar[tuple[str, ...]] = ()
    TRAINING_OPTIONS: ClassVar[tuple[str, ...]] = ()
    NO_ADAPTER: ClassVar[str] = ""
    EXTENSIBLE: ClassVar[bool] = True
    MERGEABLE: ClassVar[bool] = False

    def adapt(self, model: MultiTaskModel) -> None:
        """Replace layers of the model, in place; names and weights stay. Adapts nothing by default."""

    def is_trainable(self, path: str, variable: nnx.Variable) -> bool:
        """Return whether the parameter at `path` (names joined by dots) is trained."""
        raise NotImplementedError

    def merge(self, model: MultiTaskModel) -> None:
        """Change a model, in place, into one for evaluation alone, with the same results in fewer operations.

        Works on an abstract model too, and then only changes its structure. Raises UserError if the method cannot be
        merged exactly.
        """
        raise UserError(f"models of the method {self.TITLE or type(self).__name__} cannot be merged exactly")

    @classmethod
    def inference_options(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options that affect what a trained model computes."""
        return {key: value for key, value in options.items() if key not in cls.TRAINING_OPTIONS}

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Return {option: default value} of the options that have one."""
        fields = dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ()
        return {field.name: field.default for field in fields if field.default is not dataclasses.MISSING}
