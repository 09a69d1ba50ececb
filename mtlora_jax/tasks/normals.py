"""Surface normals: the direction that the surface at each pixel faces."""

import dataclasses
import math
from typing import Any, ClassVar

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from mtlora_jax.tasks import losses, metrics
from mtlora_jax.tasks.affine import AffineTransform
from mtlora_jax.tasks.label_images import decode_image, vector_image
from mtlora_jax.tasks.legend import Legend, ignored_swatch, pixel_colours
from mtlora_jax.tasks.task import IGNORE, Task

BYTE_TO_COMPONENT = (2 * np.arange(256) / 255 - 1).astype(np.float32)
# A component n is sent to the device as the integer UINT16_ZERO + UINT16_SCALE n, which is never IGNORE.
# Its error is at most 1 / (2 UINT16_SCALE); a direction is off by at most 0.0016 degrees.
UINT16_ZERO, UINT16_SCALE = 32768, 32000
DIRECTIONS = {
    "right": (1, 0, 0),
    "left": (-1, 0, 0),
    "up": (0, -1, 0),
    "down": (0, 1, 0),
    "towards the viewer": (0, 0, 1),
}
MIN_LENGTH = 1e-6  # shorter vectors have no direction


@dataclasses.dataclass(frozen=True)
class Normals(Task):
    """Label (H, W, 3) float32: unit vectors with x right and y down, or `IGNORE` in all components.

    The device format is (H, W, 3) uint16, see `UINT16_ZERO`; `loss`, `metric_sums` and `visualize` take both.
    """

    name: str = "normals"
    channels: int = 3
    weight: float = 10.0
    interpolation: int = cv2.INTER_CUBIC
    primary_metric: str = "mean"
    higher_is_better: bool = False
    score_scale: float = 30.0  # degrees
    metric_notes: ClassVar = {
        "mean": 'degrees; what the papers of this family print as "rmse"',
        "rmse": "degrees; true root of the mean square, larger than the mean",
    }

    def decode(self, data: bytes, source: str) -> np.ndarray:
        """Decode an RGB PNG, n = 2 v / 255 - 1. Vectors far from unit length (black, white, mid grey) are `IGNORE`."""
        vectors = cv2.LUT(decode_image(data, source, ("RGB",), "an RGB PNG of 8 bits"), BYTE_TO_COMPONENT)
        return _fill(vectors, cv2.inRange(_squares(vectors), 0.5**2, 1.5**2))

    def warp(self, label: np.ndarray, transform: AffineTransform, size: tuple[int, int]) -> np.ndarray:
        """Warp the map and rotate its vectors with the image; zoom and stretch do not change them."""
        known = _known(label)
        vectors = transform(cv2.copyTo(label, known), size, self.interpolation)  # unknown vectors are 0
        return _fill(cv2.transform(vectors, transform.vector_matrix()), transform(known, size, cv2.INTER_NEAREST))

    def resize(self, label: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        known = _known(label)
        vectors = cv2.resize(cv2.copyTo(label, known), size[::-1], interpolation=self.interpolation)
        return _fill(vectors, cv2.resize(known, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT))

    def to_device_format(self, label: np.ndarray) -> np.ndarray:
        """Scale to unit length, as uint16; `IGNORE` where a vector has no direction."""
        squares = _squares(label)
        lengths = cv2.cvtColor(cv2.sqrt(squares), cv2.COLOR_GRAY2RGB)
        # OpenCV can divide, scale and round to integers at once, but not add.
        codes = cv2.divide(label, lengths, scale=UINT16_SCALE, dtype=cv2.CV_16S).view(np.uint16)
        # A vector of three `IGNORE` is longer than `IGNORE`, so it stays ignored.
        return _fill(np.add(codes, UINT16_ZERO, out=codes), cv2.inRange(squares, MIN_LENGTH**2, IGNORE**2))

    def random_label(self, rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
        return self.to_device_format(rng.normal(size=(*size, 3)).astype(np.float32))

    def loss(self, logits: jax.Array, label: jax.Array) -> jax.Array:
        return losses.normals_l1(logits, to_vectors(label, jnp))

    def metric_sums(self, logits: jax.Array, label: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
        return metrics.normals_sums(logits, to_vectors(label, jnp), mask)

    def compute_metrics(self, totals: dict[str, np.ndarray]) -> dict[str, float]:
        return metrics.compute_normals_metrics(totals)

    def postprocess(self, logits: np.ndarray) -> dict[str, np.ndarray]:
        """Return "normals" (..., H, W, 3) of length 1, towards the viewer where the logits have no direction."""
        length = np.linalg.norm(logits, axis=-1, keepdims=True)
        return {
            "normals": np.where(
                length > MIN_LENGTH, logits / np.maximum(length, MIN_LENGTH), np.array([0, 0, 1], np.float32)
            )
        }

    def visualize(self, values: np.ndarray) -> np.ndarray:
        """Render (n + 1) / 2 as RGB, like the label files."""
        vectors, known = _unit(to_vectors(np.asarray(values), np))
        return vector_image(vectors, ignored=known == 0)

    def legend(self, *shown: np.ndarray) -> Legend:
        painted = pixel_colours(self.visualize(np.array([list(DIRECTIONS.values())], np.float32)))
        return Legend(dict(zip(DIRECTIONS, painted, strict=True)) | ignored_swatch(shown))


def to_vectors(label: Any, xp: Any = np) -> Any:
    """Convert a uint16 label to float32 vectors, keeping `IGNORE`; return other labels unchanged.

    `xp` is numpy or jax.numpy.
    """
    if label.dtype != np.uint16:
        return label
    return xp.where(label == IGNORE, np.float32(IGNORE), (label.astype(np.float32) - UINT16_ZERO) / UINT16_SCALE)


# Masks are (H, W) uint8 with 255 for valid pixels, as OpenCV expects; numpy takes several times as long for the same.


def _known(label: np.ndarray) -> np.ndarray:
    return cv2.bitwise_not(cv2.inRange(cv2.extractChannel(label, 0), IGNORE, IGNORE))  # the others are equal


def _fill(label: np.ndarray, known: np.ndarray) -> np.ndarray:
    """`label`, with `IGNORE` wherever it is not `known`."""
    return cv2.copyTo(label, known, np.full_like(label, IGNORE))


def _squares(vectors: np.ndarray) -> np.ndarray:
    """Squared lengths (H, W)."""
    return cv2.transform(cv2.multiply(vectors, vectors), np.ones((1, 3), np.float32))


def _unit(label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return vectors of length 1, and the mask of those that have a direction; the others are finite."""
    squares = _squares(label)
    known = cv2.bitwise_and(_known(label), cv2.inRange(squares, MIN_LENGTH**2, math.inf))
    return cv2.divide(label, cv2.merge([np.sqrt(np.maximum(squares, MIN_LENGTH**2))] * 3)), known
