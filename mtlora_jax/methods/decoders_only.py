"""Decoders on a frozen encoder ("MTL - Tuning Decoders Only" of Table 1)."""

import dataclasses

from flax import nnx

from mtlora_jax.models.multitask import MultiTaskModel


@dataclasses.dataclass(frozen=True)
class DecodersOnly:
    """Adapts nothing; norms and position tables of the encoder are frozen too."""

    def adapt(self, model: MultiTaskModel) -> None:
        """Leaves the model as it is."""

    def trainable(self, path: str, variable: nnx.Variable) -> bool:
        """The decoders."""
        return path.startswith("decoders.")
