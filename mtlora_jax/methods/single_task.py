"""One fully fine-tuned model per task ("Single Task" of Table 1): the denominator of Delta_m."""

import dataclasses

from mtlora_jax.errors import UserError
from mtlora_jax.methods.full import Full
from mtlora_jax.models.multitask import MultiTaskModel


@dataclasses.dataclass(frozen=True)
class SingleTask(Full):
    """Full fine-tuning of a model with exactly one task; Table 1 counts one such model per task."""

    def adapt(self, model: MultiTaskModel) -> None:
        """Leaves the model as it is. Raises UserError if it has several tasks."""
        if len(model.tasks) != 1:
            raise UserError(f"method single_task trains one task at a time; the config has {len(model.tasks)}: {', '.join(model.tasks)}")
