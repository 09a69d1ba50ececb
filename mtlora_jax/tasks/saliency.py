"""Saliency: the pixels that catch the eye."""

import dataclasses
from typing import ClassVar

import jax
import numpy as np

from mtlora_jax.tasks import losses, metrics
from mtlora_jax.tasks.binary import Binary
from mtlora_jax.tasks.label_images import heatmap, sigmoid
from mtlora_jax.tasks.legend import BAR_STEPS, Legend, ignored_swatch, pixel_colours
from mtlora_jax.tasks.task import IGNORE


@dataclasses.dataclass(frozen=True)
class Saliency(Binary):
    """Label (H, W) uint8: 1 salient, 0 not, or `IGNORE`."""

    name: str = "sal"
    weight: float = 5.0
    primary_metric: str = "mIoU"
    ends: ClassVar = ("not salient", "salient")

    def loss(self, logits: jax.Array, label: jax.Array) -> jax.Array:
        return losses.balanced_cross_entropy(logits, label)

    def metric_sums(self, logits: jax.Array, label: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
        return metrics.saliency_sums(logits, label, mask)

    def compute_metrics(self, totals: dict[str, np.ndarray]) -> dict[str, float]:
        return metrics.compute_saliency_metrics(totals)

    def postprocess(self, logits: np.ndarray) -> dict[str, np.ndarray]:
        """Return "probabilities" (..., H, W)."""
        return {"probabilities": sigmoid(logits[..., 0])}

    def visualize(self, values: np.ndarray) -> np.ndarray:
        """Render the probability as a heat map."""
        probability = values if values.ndim == 2 else sigmoid(values[..., 0])
        return heatmap(probability, ignored=probability == IGNORE)

    def legend(self, *shown: np.ndarray) -> Legend:
        return Legend(
            ignored_swatch(shown), bar=pixel_colours(self.visualize(np.linspace(0, 1, BAR_STEPS)[None])), ends=self.ends
        )
