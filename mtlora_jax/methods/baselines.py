"""The rows of Table 1 that adapt nothing: single task, full fine-tuning, decoders only."""

import dataclasses

from flax import nnx

from mtlora_jax.errors import UserError
from mtlora_jax.models.multitask import MultiTaskModel


@dataclasses.dataclass(frozen=True)
class Full:
    """Adapts nothing, trains all."""

    def adapt(self, model: MultiTaskModel) -> None:
        """Leaves the model as it is."""

    def trainable(self, path: str, variable: nnx.Variable) -> bool:
        """Everything."""
        return True


@dataclasses.dataclass(frozen=True)
class DecodersOnly:
    """Adapts nothing; norms and position tables of the encoder are frozen too."""

    def adapt(self, model: MultiTaskModel) -> None:
        """Leaves the model as it is."""

    def trainable(self, path: str, variable: nnx.Variable) -> bool:
        """The decoders."""
        return path.startswith("decoders.")


@dataclasses.dataclass(frozen=True)
class SingleTask(Full):
    """Full fine-tuning of a model with exactly one task; Table 1 counts one such model per task."""

    def adapt(self, model: MultiTaskModel) -> None:
        """Leaves the model as it is. Raises UserError if it has several tasks."""
        if len(model.tasks) != 1:
            raise UserError(f"method single_task trains one task at a time; the config has {len(model.tasks)}: {', '.join(model.tasks)}")
