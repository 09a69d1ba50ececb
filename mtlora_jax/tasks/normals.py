"""Surface normals: which way the surface at each pixel faces."""

import dataclasses
import math
import pathlib

import cv2
import jax
import numpy as np

from mtlora_jax import losses, metrics
from mtlora_jax.tasks.images import read_image, vector_picture
from mtlora_jax.tasks.task import IGNORE, Task


@dataclasses.dataclass(frozen=True)
class Normals(Task):
    """Label (H, W, 3) float32: unit vectors, x to the right and y down as the pixels of the image, or `IGNORE` in all components."""

    name: str = "normals"
    channels: int = 3
    weight: float = 10.0
    interpolation: int = cv2.INTER_CUBIC
    primary: str = "mean"
    higher_is_better: bool = False

    def read(self, path: pathlib.Path) -> np.ndarray:
        """Decodes an RGB PNG, n = 2 v / 255 - 1. What is far from unit length (black, white, mid grey) marks no normal: `IGNORE`."""
        vectors = 2 * read_image(path, ("RGB",), "an RGB PNG of 8 bits").astype(np.float32) / 255 - 1
        vectors[np.abs(np.linalg.norm(vectors, axis=-1) - 1) > 0.5] = IGNORE
        return vectors

    def flip(self, label: np.ndarray) -> np.ndarray:
        mirrored = label[:, ::-1].copy()
        mirrored[_valid(mirrored), 0] *= -1
        return mirrored

    def warp(self, label: np.ndarray, matrix: np.ndarray, degrees: float, scale: float) -> np.ndarray:
        """Moves the vectors with their pixels and turns them in the image plane as the image turns; scaling does not turn them."""
        del scale
        size = label.shape[1::-1]
        cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        # Counter-clockwise for the eye, which is clockwise in coordinates whose y points down.
        turn = np.array([[cosine, sine, 0], [-sine, cosine, 0], [0, 0, 1]], np.float32)
        valid = _valid(label)
        vectors = cv2.warpAffine(_zeroed(label, valid) @ turn.T, matrix, size, flags=self.interpolation)
        return _unit(vectors, cv2.warpAffine(valid.astype(np.uint8), matrix, size, flags=cv2.INTER_NEAREST) > 0)

    def resize(self, label: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        valid = _valid(label)
        vectors = cv2.resize(_zeroed(label, valid), size[::-1], interpolation=self.interpolation)
        return _unit(vectors, cv2.resize(valid.astype(np.uint8), size[::-1], interpolation=cv2.INTER_NEAREST_EXACT) > 0)

    def finish(self, label: np.ndarray) -> np.ndarray:
        """Scales to unit length; `IGNORE` where there is no direction."""
        return _unit(label, _valid(label))

    def loss(self, logits: jax.Array, label: jax.Array) -> jax.Array:
        return losses.normals_l1(logits, label)

    def statistics(self, logits: jax.Array, label: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
        return metrics.normals_statistics(logits, label, mask)

    def scores(self, totals: dict[str, np.ndarray]) -> dict[str, float]:
        return metrics.normals_scores(totals)

    def picture(self, values: np.ndarray) -> np.ndarray:
        """RGB of (n + 1) / 2, as the label files."""
        vectors = _unit(values, _valid(values))
        return vector_picture(vectors, ignored=~_valid(vectors))


def _valid(label: np.ndarray) -> np.ndarray:
    return np.all(label != IGNORE, axis=-1)


def _zeroed(label: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Zero vectors in place of `IGNORE`: interpolation then shortens a neighbour, which `_unit` undoes, and never bends it."""
    return np.where(valid[..., None], label, 0).astype(np.float32)


def _unit(vectors: np.ndarray, valid: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    known = valid[..., None] & (length > 1e-6)
    return np.where(known, vectors / np.where(known, length, 1), IGNORE).astype(np.float32)
