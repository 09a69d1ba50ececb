"""Surface normals: which way the surface at each pixel faces."""

import dataclasses
import math
from typing import Any, ClassVar

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from mtlora_jax.tasks import losses, metrics
from mtlora_jax.tasks.affine import Motion
from mtlora_jax.tasks.label_images import decode_image, vector_picture
from mtlora_jax.tasks.legend import Legend, colours, ignored
from mtlora_jax.tasks.task import IGNORE, Task

COMPONENT = (2 * np.arange(256) / 255 - 1).astype(np.float32)  # of a byte
# A component n travels to the device as the whole number ZERO + STEPS n, which is never IGNORE; it is off by at most 1 / (2 STEPS),
# a direction by 0.0016 degrees.
ZERO, STEPS = 32768, 32000
DIRECTIONS = {"right": (1, 0, 0), "left": (-1, 0, 0), "up": (0, -1, 0), "down": (0, 1, 0), "towards the viewer": (0, 0, 1)}
SHORT = 1e-6  # a vector of this length has no direction


@dataclasses.dataclass(frozen=True)
class Normals(Task):
    """Label (H, W, 3) float32: unit vectors, x to the right and y down as the pixels of the image, or `IGNORE` in all components.

    `finish` gives (H, W, 3) uint16, see `ZERO`; loss, statistics and picture take both.
    """

    name: str = "normals"
    channels: int = 3
    weight: float = 10.0
    interpolation: int = cv2.INTER_CUBIC
    primary: str = "mean"
    higher_is_better: bool = False
    score_scale: float = 30.0  # degrees
    notes: ClassVar = {
        "mean": 'degrees; what the papers of this family print as "rmse"',
        "rmse": "degrees; true root of the mean square, larger than the mean",
    }

    def decode(self, data: bytes, origin: str) -> np.ndarray:
        """Decodes an RGB PNG, n = 2 v / 255 - 1. What is far from unit length (black, white, mid grey) marks no normal: `IGNORE`."""
        vectors = cv2.LUT(decode_image(data, origin, ("RGB",), "an RGB PNG of 8 bits"), COMPONENT)
        return _fill(vectors, cv2.inRange(_squares(vectors), 0.5**2, 1.5**2))

    def warp(self, label: np.ndarray, motion: Motion, size: tuple[int, int]) -> np.ndarray:
        """Moves the vectors with their pixels and turns them in the image plane as the image turns; zoom and stretch do not turn them."""
        known = _known(label)
        vectors = motion(cv2.copyTo(label, known), size, self.interpolation)  # what is not known is 0
        return _fill(cv2.transform(vectors, motion.turn()), motion(known, size, cv2.INTER_NEAREST))

    def resize(self, label: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        known = _known(label)
        vectors = cv2.resize(cv2.copyTo(label, known), size[::-1], interpolation=self.interpolation)
        return _fill(vectors, cv2.resize(known, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT))

    def finish(self, label: np.ndarray) -> np.ndarray:
        """Scales to unit length, in the compact form; `IGNORE` where there is no direction."""
        squares = _squares(label)
        lengths = cv2.cvtColor(cv2.sqrt(squares), cv2.COLOR_GRAY2RGB)
        # OpenCV can divide, scale and round to whole numbers at once, but not add.
        codes = cv2.divide(label, lengths, scale=STEPS, dtype=cv2.CV_16S).view(np.uint16)
        # `IGNORE` in all components makes a vector too long to count.
        return _fill(np.add(codes, ZERO, out=codes), cv2.inRange(squares, SHORT**2, IGNORE**2))

    def noise(self, rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
        return self.finish(rng.normal(size=(*size, 3)).astype(np.float32))

    def loss(self, logits: jax.Array, label: jax.Array) -> jax.Array:
        return losses.normals_l1(logits, vectors_of(label, jnp))

    def statistics(self, logits: jax.Array, label: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
        return metrics.normals_statistics(logits, vectors_of(label, jnp), mask)

    def scores(self, totals: dict[str, np.ndarray]) -> dict[str, float]:
        return metrics.normals_scores(totals)

    def results(self, logits: np.ndarray) -> dict[str, np.ndarray]:
        """ "normals" (..., H, W, 3) of length 1; towards the viewer where the logits have no direction."""
        length = np.linalg.norm(logits, axis=-1, keepdims=True)
        return {"normals": np.where(length > SHORT, logits / np.maximum(length, SHORT), np.array([0, 0, 1], np.float32))}

    def picture(self, values: np.ndarray) -> np.ndarray:
        """RGB of (n + 1) / 2, as the label files."""
        vectors, known = _unit(vectors_of(np.asarray(values), np))
        return vector_picture(vectors, ignored=known == 0)

    def legend(self, *shown: np.ndarray) -> Legend:
        painted = colours(self.picture(np.array([list(DIRECTIONS.values())], np.float32)))
        return Legend(dict(zip(DIRECTIONS, painted, strict=True)) | ignored(shown))


def vectors_of(label: Any, xp: Any = np) -> Any:
    """float32 vectors of a label in its compact form, `IGNORE` kept; any other label as it is. `xp` is numpy or jax.numpy."""
    if label.dtype != np.uint16:
        return label
    return xp.where(label == IGNORE, np.float32(IGNORE), (label.astype(np.float32) - ZERO) / STEPS)


# Masks are (H, W) uint8, 255 where a pixel counts, as OpenCV wants them; numpy takes several times as long for the same.


def _known(label: np.ndarray) -> np.ndarray:
    return cv2.bitwise_not(cv2.inRange(cv2.extractChannel(label, 0), IGNORE, IGNORE))  # one component tells of all


def _fill(label: np.ndarray, known: np.ndarray) -> np.ndarray:
    """`label`, with `IGNORE` wherever it is not `known`."""
    return cv2.copyTo(label, known, np.full_like(label, IGNORE))


def _squares(vectors: np.ndarray) -> np.ndarray:
    """Squared lengths (H, W)."""
    return cv2.transform(cv2.multiply(vectors, vectors), np.ones((1, 3), np.float32))


def _unit(label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of length 1, and the mask of those that have a direction; the others are finite."""
    squares = _squares(label)
    known = cv2.bitwise_and(_known(label), cv2.inRange(squares, SHORT**2, math.inf))
    return cv2.divide(label, cv2.merge([np.sqrt(np.maximum(squares, SHORT**2))] * 3)), known
