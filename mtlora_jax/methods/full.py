"""Full fine-tuning: every parameter of encoder and decoders ("MTL - Full FT" of Table 1)."""

import dataclasses

from flax import nnx

from mtlora_jax.models.multitask import MultiTaskModel


@dataclasses.dataclass(frozen=True)
class Full:
    """Adapts nothing, trains all."""

    def adapt(self, model: MultiTaskModel) -> None:
        """Leaves the model as it is."""

    def trainable(self, path: str, variable: nnx.Variable) -> bool:
        """Everything."""
        return True
