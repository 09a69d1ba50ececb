"""Scores of the tasks: `*_statistics` inside `jax.jit` per batch, `*_scores` on the host from their sums over the set.

Every statistic is a sum over pixels or over images, so a score does not depend on how the images were batched. Pixels labelled
`IGNORE` and images whose `mask` (B,) is False count nowhere. Totals are float64 numpy arrays. Units are those of the papers'
tables: percent for IoU, F and shares, degrees for angles, the label's unit (metres) for depth. A mean over nothing is NaN.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from mtlora_jax.tasks import losses
from mtlora_jax.tasks.losses import IGNORE

if TYPE_CHECKING:
    pass

THRESHOLDS = np.linspace(0.2, 0.9, 15)  # of the saliency probability
BINS_PER_DEGREE = 32  # a power of two: 11.25, 22.5 and 30 degrees are exact edges of the histogram of angles


def class_statistics(logits: jax.Array, label: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
    """Confusion counts (C, C) int32, rows the label. logits (B, H, W, C); label (B, H, W), integers in [0, C) or `IGNORE`."""
    classes = logits.shape[-1]
    valid = _valid(label, mask)
    cell = jnp.where(valid, label.astype(jnp.int32) * classes + jnp.argmax(logits, axis=-1), classes**2)
    counts = jnp.bincount(cell.ravel(), length=classes**2 + 1)
    return {"confusion": counts[:-1].reshape(classes, classes)}


def class_scores(totals: Mapping[str, np.ndarray], classes: Sequence[str]) -> dict[str, float]:
    """`mIoU` and `IoU/<class>` in percent. A class neither labelled nor predicted anywhere counts as 0, as in the reference."""
    confusion = totals["confusion"]
    hits = np.diagonal(confusion)
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - hits
    iou = 100 * hits / np.maximum(union, 1)
    names = classes or range(len(iou))
    return {"mIoU": float(iou.mean())} | {f"IoU/{name}": float(value) for name, value in zip(names, iou, strict=True)}


def saliency_statistics(logits: jax.Array, label: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
    """Sums over images of IoU, precision and recall at each threshold, (15,) float32, and the number of images.

    logits (B, H, W, 1); label (B, H, W), 0, 1 or `IGNORE`. An image where nothing is salient and nothing predicted has IoU 1;
    an image without a valid pixel does not count.
    """
    images, levels = label.shape[0], len(THRESHOLDS) + 1
    valid = _valid(label, mask)
    probability = jax.nn.sigmoid(logits[..., 0].astype(jnp.float32))
    # One histogram of the level each probability reaches, per image and label, instead of 15 comparisons with the label.
    level = sum((probability > threshold).astype(jnp.int32) for threshold in THRESHOLDS.astype(np.float32))
    cell = (jnp.arange(images)[:, None, None] * 2 + (label == 1)) * levels + level
    counts = jnp.bincount(jnp.where(valid, cell, images * 2 * levels).ravel(), length=images * 2 * levels + 1)
    counts = counts[:-1].reshape(images, 2, levels)

    above = jnp.cumsum(counts[..., ::-1], axis=-1)[..., -2::-1]  # (B, 2, 15): pixels with a probability above each threshold
    hits, predicted = above[:, 1], above.sum(axis=1)
    salient = counts[:, 1].sum(axis=-1, keepdims=True)
    union = predicted + salient - hits
    counted = mask & valid.any(axis=(1, 2))
    per_image = {
        "iou": jnp.where(union == 0, 1.0, hits / jnp.maximum(union, 1)),
        "precision": hits / jnp.maximum(predicted, 1),
        "recall": hits / jnp.maximum(salient, 1),
    }
    sums = {name: jnp.sum(jnp.where(counted[:, None], values, 0.0), axis=0) for name, values in per_image.items()}
    return sums | {"images": counted.sum()}


def saliency_scores(totals: Mapping[str, np.ndarray]) -> dict[str, float]:
    """`mIoU` and `maxF` in percent: means over images at each threshold, then the best threshold.

    `maxF` is the balanced F of mean precision and mean recall; `maxF_beta` weighs precision more (beta squared 0.3, Achanta et al., 2009).
    """
    images = _or_nan(totals["images"])
    iou, precision, recall = (totals[name] / images for name in ("iou", "precision", "recall"))

    def best_f(beta_squared: float) -> float:
        return float(np.max((1 + beta_squared) * precision * recall / (beta_squared * precision + recall + 1e-12)))

    return {"mIoU": 100 * float(np.max(iou)), "maxF": 100 * best_f(1.0), "maxF_beta": 100 * best_f(0.3)}


def normals_statistics(logits: jax.Array, label: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
    """Histogram of the angular error, int32 with 1/32 degree bins, and what the bins' centres miss of the sum and of the sum of squares.

    logits and label (B, H, W, 3); a pixel is valid if no component is `IGNORE`. Sums in float32 lose digits over millions of
    pixels; counts are exact and the small remainders nearly so.
    """
    valid = jnp.all(_valid(label, mask[:, None]), axis=-1)
    prediction, label = _unit(logits.astype(jnp.float32)), _unit(label)
    # Unlike the arc cosine of the dot product, exact for small angles also in float32 (Kahan); a zero prediction is 90 degrees off.
    half = jnp.arctan2(jnp.linalg.norm(prediction - label, axis=-1), jnp.linalg.norm(prediction + label, axis=-1))
    degrees = jnp.rad2deg(2 * half)
    bins = 180 * BINS_PER_DEGREE
    bin_ = jnp.clip((degrees * BINS_PER_DEGREE).astype(jnp.int32), 0, bins - 1)
    centre = (bin_ + 0.5) / BINS_PER_DEGREE
    return {
        "histogram": jnp.bincount(jnp.where(valid, bin_, bins).ravel(), length=bins + 1)[:-1],
        "rest": jnp.sum(jnp.where(valid, degrees - centre, 0.0)),
        "rest_squares": jnp.sum(jnp.where(valid, (degrees - centre) * (degrees + centre), 0.0)),
    }


def normals_scores(totals: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Angular error in degrees: `mean` (what papers print as "rmse"), `median`, true `rmse`; percent of pixels below 11.25, 22.5 and 30.

    The median is interpolated linearly inside its bin of 1/32 degree; the others are exact.
    """
    histogram = totals["histogram"]
    edges = np.arange(len(histogram) + 1) / BINS_PER_DEGREE
    centre = (edges[:-1] + edges[1:]) / 2
    pixels = _or_nan(histogram.sum())
    below = np.concatenate([[0], np.cumsum(histogram)]) / pixels
    middle = max(np.searchsorted(below, 0.5), 1)  # the first edge with half of the pixels below it
    scores = {
        "mean": (histogram @ centre + totals["rest"]) / pixels,
        "median": edges[middle] - (below[middle] - 0.5) / (below[middle] - below[middle - 1]) / BINS_PER_DEGREE,
        "rmse": np.sqrt((histogram @ centre**2 + totals["rest_squares"]) / pixels),
    }
    scores |= {f"{angle:g}": 100 * below[int(angle * BINS_PER_DEGREE)] for angle in (11.25, 22.5, 30)}
    return {name: float(score) for name, score in scores.items()}


def depth_statistics(logits: jax.Array, label: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
    """Sums of squared errors of depth and of its logarithm. logits (B, H, W, 1); label (B, H, W). A prediction is at least 1e-9."""
    valid = _valid(label, mask)
    prediction = jnp.maximum(logits[..., 0].astype(jnp.float32), 1e-9)
    label = jnp.where(valid, label, 1.0)
    return {
        "squares": jnp.sum(jnp.where(valid, (prediction - label) ** 2, 0.0)),
        "log_squares": jnp.sum(jnp.where(valid, (jnp.log(prediction) - jnp.log(label)) ** 2, 0.0)),
        "pixels": valid.sum(),
    }


def depth_scores(totals: Mapping[str, np.ndarray]) -> dict[str, float]:
    """True root mean squares over all pixels, as papers print: `rmse` in the label's unit (metres), `log_rmse` of natural logarithms."""
    pixels = _or_nan(totals["pixels"])
    return {"rmse": math.sqrt(totals["squares"] / pixels), "log_rmse": math.sqrt(totals["log_squares"] / pixels)}


def edge_statistics(logits: jax.Array, label: jax.Array, mask: jax.Array, positive_weight: float) -> dict[str, jax.Array]:
    """Sum over pixels of the balanced cross-entropy, and their number. logits (B, H, W, 1); label (B, H, W), 0, 1 or `IGNORE`."""
    valid = _valid(label, mask)
    mean = losses.balanced_cross_entropy(logits, jnp.where(valid, label, IGNORE), positive_weight)
    return {"loss": mean * valid.sum(), "pixels": valid.sum()}


def edge_scores(totals: Mapping[str, np.ndarray]) -> dict[str, float]:
    """`loss`: mean over the pixels of the set. (Papers print odsF, see `mtlora_jax.tasks.boundary_metrics`.)"""
    return {"loss": float(totals["loss"]) / _or_nan(totals["pixels"])}


def _valid(label: jax.Array, mask: jax.Array) -> jax.Array:
    return (label != IGNORE) & mask[:, None, None]


def _unit(vectors: jax.Array) -> jax.Array:
    length = jnp.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / jnp.where(length > 0, length, 1.0)


def _or_nan(count: np.ndarray) -> float:
    """A divisor that turns a mean over nothing into NaN."""
    return float(count) or math.nan
