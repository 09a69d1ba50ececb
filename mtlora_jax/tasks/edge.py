"""Edge detection: boundaries between objects."""

import dataclasses
from typing import ClassVar

import jax
import numpy as np

from mtlora_jax.tasks import boundary_metrics, losses, metrics
from mtlora_jax.tasks.binary import Binary
from mtlora_jax.tasks.label_images import grey_image, sigmoid
from mtlora_jax.tasks.legend import BAR_STEPS, Legend, ignored_swatch, pixel_colours
from mtlora_jax.tasks.task import IGNORE

POSITIVE_WEIGHT = 0.95  # about the fraction of pixels that are not on an edge


@dataclasses.dataclass(frozen=True)
class Edge(Binary):
    """Label (H, W) uint8: 1 on an edge, 0 elsewhere, or `IGNORE`."""

    name: str = "edge"
    weight: float = 50.0
    primary_metric: str = "loss"
    higher_is_better: bool = False
    score_scale: float = 0.1
    metric_notes: ClassVar = {
        "loss": "balanced cross-entropy",
        "odsF": "what papers print; always at the original size",
    }
    has_native_resolution_metrics: ClassVar = True
    ends: ClassVar = ("no edge", "edge")

    def loss(self, logits: jax.Array, label: jax.Array) -> jax.Array:
        return losses.balanced_cross_entropy(logits, label, POSITIVE_WEIGHT)

    def metric_sums(self, logits: jax.Array, label: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
        return metrics.edge_sums(logits, label, mask, POSITIVE_WEIGHT)

    def compute_metrics(self, totals: dict[str, np.ndarray]) -> dict[str, float]:
        return metrics.compute_edge_metrics(totals)

    def native_resolution_sums(self, logits: np.ndarray, label: np.ndarray, tolerance: float) -> dict[str, np.ndarray]:
        return boundary_metrics.boundary_sums(sigmoid(logits[..., 0]), label, tolerance)

    def compute_native_resolution_metrics(self, totals: dict[str, np.ndarray]) -> dict[str, float]:
        return boundary_metrics.compute_boundary_metrics(totals)

    def postprocess(self, logits: np.ndarray) -> dict[str, np.ndarray]:
        """Return "probabilities" (..., H, W)."""
        return {"probabilities": sigmoid(logits[..., 0])}

    def visualize(self, values: np.ndarray) -> np.ndarray:
        """Render the probability, white for an edge."""
        probability = values if values.ndim == 2 else sigmoid(values[..., 0])
        return grey_image(probability, ignored=probability == IGNORE)

    def legend(self, *shown: np.ndarray) -> Legend:
        return Legend(
            ignored_swatch(shown), bar=pixel_colours(self.visualize(np.linspace(0, 1, BAR_STEPS)[None])), ends=self.ends
        )
