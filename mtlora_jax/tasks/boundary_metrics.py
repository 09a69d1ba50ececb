"""The boundary F-measure of BSDS (Martin, Fowlkes and Malik, 2004) in Python.

A probability map is thinned and thresholded at 99 values. At each threshold, predicted pixels are matched one to one
with true pixels within a tolerance. The matches give precision and recall; odsF is F at the threshold that is best for
the whole set.

The multi-task papers (Maninis et al., 2019, and later ones) report odsF at native resolution, with a tolerance of
0.0075 of the diagonal on PASCAL-Context and 0.011 on NYUD. Differences from the MATLAB and C++ programs they use:

* The number of matches is maximal (a maximum flow, by scipy's Dinic). BSDS minimises the total distance, where an
  unmatched pixel costs 100 times the tolerance (Goldberg's CSA). Only the number counts. The two numbers agree unless
  one more match would require moving dozens of others.
* Non-maximum suppression compares with one pixel on each side of the ridge. The Hessian of the smoothed map gives the
  direction across it.

An image of 448x448 takes about two seconds on one core.
"""

import functools
import math
from collections.abc import Mapping

import cv2
import numpy as np
import scipy.sparse.csgraph
from skimage.morphology import thin

THRESHOLDS = np.arange(1, 100) / 100
SMOOTHING = 2.0  # pixels, standard deviation of the blur used to estimate edge directions only
BETWEEN = np.linspace(0, 1, 101)  # precision and recall are interpolated linearly between two thresholds


def suppress_non_maxima(probability: np.ndarray) -> np.ndarray:
    """Set values smaller than a neighbour across the edge to 0. probability (H, W) float; return (H, W) float32."""
    sharp = probability.astype(np.float32)
    smooth = cv2.GaussianBlur(sharp, (0, 0), SMOOTHING)
    xx, xy, yy = (cv2.Sobel(smooth, cv2.CV_32F, *order) for order in ((2, 0), (1, 1), (0, 2)))
    # The map is most curved across an edge: upwards on its flanks, downwards on its top.
    # `upwards` is the direction of the largest second derivative; the smallest is normal to it.
    upwards = 0.5 * np.arctan2(2 * xy, xx - yy)
    across = np.where(xx + yy > 0, upwards, upwards + np.float32(math.pi / 2))
    row, column = np.indices(sharp.shape, np.float32)
    right, down = np.cos(across), np.sin(across)
    beside = [
        cv2.remap(sharp, column + s * right, row + s * down, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        for s in (-1, 1)
    ]
    return np.where(sharp >= np.maximum(*beside), sharp, np.float32(0))


def count_matches(predicted: np.ndarray, true: np.ndarray, radius: float) -> int:
    """Count one-to-one matches of predicted and true pixels at most `radius` pixels apart; both are bool (H, W)."""
    offsets = _offsets(radius)
    reach = int(np.abs(offsets).max())
    number = np.pad(np.where(true, np.cumsum(true).reshape(true.shape), 0), reach)  # true pixels count from 1
    places = np.argwhere(predicted)[:, None] + reach + offsets  # (P, O, 2)
    near = number[places[..., 0], places[..., 1]]
    here, there = np.nonzero(near)[0], near[near > 0]
    # Edges of capacity 1: from a source to each predicted pixel, to the true pixels near it, and from these to a sink.
    p, t = len(places), np.count_nonzero(true)
    start = np.concatenate([np.zeros(p, int), here + 1, np.arange(t) + p + 1])
    end = np.concatenate([np.arange(p) + 1, there + p, np.full(t, p + t + 1)])
    graph = scipy.sparse.csr_array((np.ones(len(start), np.int32), (start, end)), shape=(p + t + 2,) * 2)
    return int(scipy.sparse.csgraph.maximum_flow(graph, 0, p + t + 1, method="dinic").flow_value)


def boundary_sums(probability: np.ndarray, label: np.ndarray, tolerance: float) -> dict[str, np.ndarray]:
    """Compute the sums of one image for `compute_boundary_metrics`.

    Args:
      probability: (H, W) float in [0, 1].
      label: (H, W), 1 on an edge, one pixel wide; pixels that are neither 0 nor 1 are left out.
      tolerance: largest distance of a match, as a fraction of the image diagonal.

    Returns:
      "matched" and "predicted" pixels at each threshold, (99,), and the number of "true" pixels, ().
    """
    true = label == 1
    ridges = np.where((label == 0) | true, suppress_non_maxima(probability), 0)
    radius = tolerance * math.hypot(*label.shape)
    matched, predicted = np.zeros((2, len(THRESHOLDS)))
    before = None
    for index, threshold in enumerate(THRESHOLDS):
        chosen = ridges >= threshold
        size = np.count_nonzero(chosen)
        if size == before:  # the maps are nested, so this one equals the previous one
            matched[index], predicted[index] = matched[index - 1], predicted[index - 1]
            continue
        before = size
        edges = thin(chosen)
        matched[index], predicted[index] = count_matches(edges, true, radius), np.count_nonzero(edges)
    return {"matched": matched, "predicted": predicted, "true": np.asarray(float(np.count_nonzero(true)))}


def compute_boundary_metrics(totals: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Compute `odsF` in percent and `odsF_threshold`, its probability threshold; both NaN without a true edge."""
    matched, predicted, true = (totals[name] for name in ("matched", "predicted", "true"))
    if not true:
        return {"odsF": math.nan, "odsF_threshold": math.nan}
    precision, recall, threshold = map(_between, (matched / np.maximum(predicted, 1), matched / true, THRESHOLDS))
    f = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    best = np.argmax(f)
    return {"odsF": 100 * float(f[best]), "odsF_threshold": float(threshold[best])}


def _between(values: np.ndarray) -> np.ndarray:
    return (values[:-1, None] * (1 - BETWEEN) + values[1:, None] * BETWEEN).ravel()


@functools.lru_cache
def _offsets(radius: float) -> np.ndarray:
    """Offsets (down, right) to the pixels within `radius`, nearest first, (O, 2) int."""
    reach = math.floor(radius)
    steps = np.argwhere(np.ones((2 * reach + 1,) * 2)) - reach
    squares = np.sum(steps**2, axis=1)
    order = np.argsort(squares, kind="stable")
    return steps[order[squares[order] <= radius**2]]
