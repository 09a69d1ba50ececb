"""Saliency: which pixels catch the eye."""

import dataclasses
from typing import ClassVar

import jax
import numpy as np

from mtlora_jax.tasks import losses, metrics
from mtlora_jax.tasks.binary import Binary
from mtlora_jax.tasks.label_images import heat_picture, sigmoid
from mtlora_jax.tasks.legend import STEPS, Legend, colours, ignored
from mtlora_jax.tasks.task import IGNORE


@dataclasses.dataclass(frozen=True)
class Saliency(Binary):
    """Label (H, W) uint8: 1 salient, 0 not, or `IGNORE`."""

    name: str = "sal"
    weight: float = 5.0
    primary: str = "mIoU"
    ends: ClassVar = ("not salient", "salient")

    def loss(self, logits: jax.Array, label: jax.Array) -> jax.Array:
        return losses.balanced_cross_entropy(logits, label)

    def statistics(self, logits: jax.Array, label: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
        return metrics.saliency_statistics(logits, label, mask)

    def scores(self, totals: dict[str, np.ndarray]) -> dict[str, float]:
        return metrics.saliency_scores(totals)

    def results(self, logits: np.ndarray) -> dict[str, np.ndarray]:
        """ "probabilities" (..., H, W)."""
        return {"probabilities": sigmoid(logits[..., 0])}

    def picture(self, values: np.ndarray) -> np.ndarray:
        """Heat map of the probability."""
        probability = values if values.ndim == 2 else sigmoid(values[..., 0])
        return heat_picture(probability, ignored=probability == IGNORE)

    def legend(self, *shown: np.ndarray) -> Legend:
        return Legend(ignored(shown), bar=colours(self.picture(np.linspace(0, 1, STEPS)[None])), ends=self.ends)
