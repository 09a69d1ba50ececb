"""Edge detection: boundaries between things."""

import dataclasses
from typing import ClassVar

import jax
import numpy as np

from mtlora_jax.tasks import boundary_metrics, losses, metrics
from mtlora_jax.tasks.binary import Binary
from mtlora_jax.tasks.label_images import grey_picture, sigmoid
from mtlora_jax.tasks.legend import STEPS, Legend, colours, ignored
from mtlora_jax.tasks.task import IGNORE

POSITIVE_WEIGHT = 0.95  # about the share of pixels that are no edge


@dataclasses.dataclass(frozen=True)
class Edge(Binary):
    """Label (H, W) uint8: 1 on an edge, 0 elsewhere, or `IGNORE`."""

    name: str = "edge"
    weight: float = 50.0
    primary: str = "loss"
    higher_is_better: bool = False
    score_scale: float = 0.1
    notes: ClassVar = {"loss": "balanced cross-entropy", "odsF": "what papers print; always at the original size"}
    has_slow_scores: ClassVar = True
    ends: ClassVar = ("no edge", "edge")

    def loss(self, logits: jax.Array, label: jax.Array) -> jax.Array:
        return losses.balanced_cross_entropy(logits, label, POSITIVE_WEIGHT)

    def statistics(self, logits: jax.Array, label: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
        return metrics.edge_statistics(logits, label, mask, POSITIVE_WEIGHT)

    def scores(self, totals: dict[str, np.ndarray]) -> dict[str, float]:
        return metrics.edge_scores(totals)

    def slow_statistics(self, logits: np.ndarray, label: np.ndarray, tolerance: float) -> dict[str, np.ndarray]:
        return boundary_metrics.boundary_statistics(sigmoid(logits[..., 0]), label, tolerance)

    def slow_scores(self, totals: dict[str, np.ndarray]) -> dict[str, float]:
        return boundary_metrics.boundary_scores(totals)

    def results(self, logits: np.ndarray) -> dict[str, np.ndarray]:
        """ "probabilities" (..., H, W)."""
        return {"probabilities": sigmoid(logits[..., 0])}

    def picture(self, values: np.ndarray) -> np.ndarray:
        """The probability, white for an edge."""
        probability = values if values.ndim == 2 else sigmoid(values[..., 0])
        return grey_picture(probability, ignored=probability == IGNORE)

    def legend(self, *shown: np.ndarray) -> Legend:
        return Legend(ignored(shown), bar=colours(self.picture(np.linspace(0, 1, STEPS)[None])), ends=self.ends)
