"""Metrics of the tasks: `*_sums` per batch inside `jax.jit`, `compute_*_metrics` on the host from the totals.

Every array of `*_sums` is a sum over pixels or images, so metrics do not depend on batching. Pixels labelled `IGNORE`
and images whose `mask` (B,) is False are left out. Totals are float64 numpy arrays. Units are those of the papers'
tables: percent for IoU, F and fractions, degrees for angles, metres for depth. A mean over nothing is NaN.
"""

import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mtlora_jax.tasks import losses
from mtlora_jax.tasks.losses import IGNORE

THRESHOLDS = np.linspace(0.2, 0.9, 15)  # of the saliency probability
BINS_PER_DEGREE = 32  # a power of two, so that 11.25, 22.5 and 30 degrees are exact bin edges


def class_sums(logits: jax.Array, label: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
    """Compute the confusion matrix (C, C) int32; rows are labels.

    logits (B, H, W, C); label (B, H, W), integers in [0, C) or `IGNORE`.
    """
    classes = logits.shape[-1]
    valid = _valid(label, mask)
    cell = jnp.where(valid, label.astype(jnp.int32) * classes + jnp.argmax(logits, axis=-1), classes**2)
    counts = jnp.bincount(cell.ravel(), length=classes**2 + 1)
    return {"confusion": counts[:-1].reshape(classes, classes)}


def compute_class_metrics(totals: Mapping[str, np.ndarray], classes: Sequence[str]) -> dict[str, float]:
    """Compute `mIoU` and `IoU/<class>` in percent.

    A class that is neither labelled nor predicted anywhere counts as 0, as in the reference implementation.
    """
    confusion = totals["confusion"]
    hits = np.diagonal(confusion)
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - hits
    iou = 100 * hits / np.maximum(union, 1)
    names = classes or range(len(iou))
    return {"mIoU": float(iou.mean())} | {f"IoU/{name}": float(value) for name, value in zip(names, iou, strict=True)}


def saliency_sums(logits: jax.Array, label: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
    """Compute sums over images of IoU, precision and recall at each threshold, (15,) float32, and their number.

    An image with nothing salient and nothing predicted has IoU 1; an image without a valid pixel does not count.
    logits (B, H, W, 1); label (B, H, W), 0, 1 or `IGNORE`.
    """
    images, levels = label.shape[0], len(THRESHOLDS) + 1
    valid = _valid(label, mask)
    probability = jax.nn.sigmoid(logits[..., 0].astype(jnp.float32))
    # One histogram of thresholds exceeded, per image and label, instead of 15 comparisons with the label.
    level = sum((probability > threshold).astype(jnp.int32) for threshold in THRESHOLDS.astype(np.float32))
    cell = (jnp.arange(images)[:, None, None] * 2 + (label == 1)) * levels + level
    counts = jnp.bincount(jnp.where(valid, cell, images * 2 * levels).ravel(), length=images * 2 * levels + 1)
    counts = counts[:-1].reshape(images, 2, levels)

    above = jnp.cumsum(counts[..., ::-1], axis=-1)[..., -2::-1]  # (B, 2, 15): pixels above each threshold
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


def compute_saliency_metrics(totals: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Compute `mIoU`, `maxF` and `maxF_beta` in percent: means over images, then the best threshold of each.

    `maxF` is the balanced F of mean precision and mean recall. `maxF_beta` gives precision more weight (beta squared
    0.3, Achanta et al., 2009).
    """
    images = _or_nan(totals["images"])
    iou, precision, recall = (totals[name] / images for name in ("iou", "precision", "recall"))

    def best_f(beta_squared: float) -> float:
        return float(np.max((1 + beta_squared) * precision * recall / (beta_squared * precision + recall + 1e-12)))

    return {"mIoU": 100 * float(np.max(iou)), "maxF": 100 * best_f(1.0), "maxF_beta": 100 * best_f(0.3)}


def normals_sums(logits: jax.Array, label: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
    """Compute a histogram of the angular error, int32 with bins of 1/32 degree, and two float32 corrections.

    The corrections are added to the sum and the sum of squares of the bin centres. A float32 sum of the angles would
    lose digits over millions of pixels; counts are exact and the small corrections nearly so.
    logits and label (B, H, W, 3); a pixel is valid if no component is `IGNORE`.
    """
    valid = jnp.all(_valid(label, mask[:, None]), axis=-1)
    prediction, label = _unit(logits.astype(jnp.float32)), _unit(label)
    # Unlike the arc cosine of the dot product, this is accurate for small angles in float32 (Kahan). A zero vector
    # gives 90 degrees.
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


def compute_normals_metrics(totals: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Compute the angular error: `mean`, `median` and `rmse` in degrees, and shares of small errors.

    These are the percentages of pixels below 11.25, 22.5 and 30 degrees. Papers print the mean as "rmse"; `rmse` here
    is the true one. The median is interpolated linearly inside its bin of 1/32 degree; the others are exact.
    """
    histogram = totals["histogram"]
    edges = np.arange(len(histogram) + 1) / BINS_PER_DEGREE
    centre = (edges[:-1] + edges[1:]) / 2
    pixels = _or_nan(histogram.sum())
    below = np.concatenate([[0], np.cumsum(histogram)]) / pixels
    middle = max(np.searchsorted(below, 0.5), 1)  # the first bin edge with half of the pixels below it
    scores = {
        "mean": (histogram @ centre + totals["rest"]) / pixels,
        "median": edges[middle] - (below[middle] - 0.5) / (below[middle] - below[middle - 1]) / BINS_PER_DEGREE,
        "rmse": np.sqrt((histogram @ centre**2 + totals["rest_squares"]) / pixels),
    }
    scores |= {f"{angle:g}": 100 * below[int(angle * BINS_PER_DEGREE)] for angle in (11.25, 22.5, 30)}
    return {name: float(score) for name, score in scores.items()}


def depth_sums(logits: jax.Array, label: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
    """Compute sums of squared errors of depth and of its logarithm; predictions are clipped to at least 1e-9.

    logits (B, H, W, 1); label (B, H, W), metres or `IGNORE`.
    """
    valid = _valid(label, mask)
    prediction = jnp.maximum(logits[..., 0].astype(jnp.float32), 1e-9)
    label = jnp.where(valid, label, 1.0)
    return {
        "squares": jnp.sum(jnp.where(valid, (prediction - label) ** 2, 0.0)),
        "log_squares": jnp.sum(jnp.where(valid, (jnp.log(prediction) - jnp.log(label)) ** 2, 0.0)),
        "pixels": valid.sum(),
    }


def compute_depth_metrics(totals: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Compute `rmse` in metres and `log_rmse` of natural logarithms, over all pixels of the set, as in papers."""
    pixels = _or_nan(totals["pixels"])
    return {"rmse": math.sqrt(totals["squares"] / pixels), "log_rmse": math.sqrt(totals["log_squares"] / pixels)}


def edge_sums(logits: jax.Array, label: jax.Array, mask: jax.Array, positive_weight: float) -> dict[str, jax.Array]:
    """Compute the sum over pixels of the balanced cross-entropy, and their number.

    logits (B, H, W, 1); label (B, H, W), 0, 1 or `IGNORE`.
    """
    valid = _valid(label, mask)
    mean = losses.balanced_cross_entropy(logits, jnp.where(valid, label, IGNORE), positive_weight)
    return {"loss": mean * valid.sum(), "pixels": valid.sum()}


def compute_edge_metrics(totals: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Compute `loss`, the mean over the pixels of the set; papers print odsF (`tasks/boundary_metrics.py`)."""
    return {"loss": float(totals["loss"]) / _or_nan(totals["pixels"])}


def _valid(label: jax.Array, mask: jax.Array) -> jax.Array:
    return (label != IGNORE) & mask[:, None, None]


def _unit(vectors: jax.Array) -> jax.Array:
    length = jnp.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / jnp.where(length > 0, length, 1.0)


def _or_nan(count: np.ndarray) -> float:
    """A divisor that turns a mean over nothing into NaN."""
    return float(count) or math.nan
