"""The rows of Table 1 that adapt nothing: single task, full fine-tuning, decoders only."""

import dataclasses
from typing import ClassVar

from flax import nnx

from mtlora_jax.errors import UserError
from mtlora_jax.methods.base import Method
from mtlora_jax.models.multitask import MultiTaskModel


@dataclasses.dataclass(frozen=True)
class Full(Method):
    """Full fine-tuning: every parameter of encoder and decoders ("MTL - Full FT" of Table 1)."""

    TITLE: ClassVar = "Full fine-tuning"
    NO_ADAPTER: ClassVar = "it trains every weight"
    MERGEABLE: ClassVar = True

    def is_trainable(self, path: str, variable: nnx.Variable) -> bool:
        return True

    def merge(self, model: MultiTaskModel) -> None:
        """Fold BatchNorm into the decoders' layers."""
        model.fold_batch_norm()


@dataclasses.dataclass(frozen=True)
class SingleTask(Full):
    """Full fine-tuning of a model with exactly one task; Table 1 counts one such model per task."""

    TITLE: ClassVar = "Single-task fine-tuning"

    def adapt(self, model: MultiTaskModel) -> None:
        """Leave the model as it is. Raises UserError if it has several tasks."""
        if len(model.tasks) != 1:
            raise UserError(
                f"method single_task trains one task at a time; the config has {len(model.tasks)}: "
                f"{', '.join(model.tasks)}"
            )


@dataclasses.dataclass(frozen=True)
class DecodersOnly(Method):
    """Decoders on an encoder frozen with its norms and position tables ("MTL - Tuning Decoders Only" of Table 1)."""

    TITLE: ClassVar = "Decoders"
    MERGEABLE: ClassVar = True

    def is_trainable(self, path: str, variable: nnx.Variable) -> bool:
        return path.startswith("decoders.")

    def merge(self, model: MultiTaskModel) -> None:
        """Fold BatchNorm into the decoders' layers."""
        model.fold_batch_norm()
