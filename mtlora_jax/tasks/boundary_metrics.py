"""The boundary F of BSDS (Martin, Fowlkes and Malik, 2004) in Python: how well predicted edges lie on the true ones.

A map of probabilities is thinned, cut at 99 thresholds, and at each of them the predicted pixels are paired with true ones that are no
further away than a tolerance, every pixel at most once. The pairs give precision and recall; odsF is F at the threshold that is best for
the whole set.

The multi-task papers (Maninis et al., 2019, and those after it) report odsF at the size of the original image, with a tolerance of 0.0075
of the diagonal on PASCAL-Context and 0.011 on NYUD. What differs here from the MATLAB and C++ programs they use:

* Pairs are as many as there can be (a maximum flow, by scipy's Dinic). BSDS looks for those of the smallest total distance, where leaving
  out a pixel costs 100 times the tolerance (Goldberg's CSA). Only their number counts, and that is the same unless one more pair would
  take dozens of others being moved.
* Non-maximum suppression looks one pixel to each side across the ridge, whose direction the Hessian of the smoothed map tells.

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
SMOOTHING = 2.0  # pixels, the standard deviation with which the direction of an edge is estimated; the edge itself stays sharp
BETWEEN = np.linspace(0, 1, 101)  # precision and recall are taken as linear between two thresholds


def suppress_non_maxima(probability: np.ndarray) -> np.ndarray:
    """Sets to 0 what is smaller than a neighbour across the edge. probability (H, W) float; returns the same shape in float32."""
    sharp = probability.astype(np.float32)
    smooth = cv2.GaussianBlur(sharp, (0, 0), SMOOTHING)
    xx, xy, yy = (cv2.Sobel(smooth, cv2.CV_32F, *order) for order in ((2, 0), (1, 1), (0, 2)))
    # Across an edge the map bends most: upwards on its flanks, downwards on its top.
    upwards = 0.5 * np.arctan2(2 * xy, xx - yy)  # where the second derivative is largest; at right angles to it, smallest
    across = np.where(xx + yy > 0, upwards, upwards + np.float32(math.pi / 2))
    row, column = np.indices(sharp.shape, np.float32)
    right, down = np.cos(across), np.sin(across)
    beside = [cv2.remap(sharp, column + s * right, row + s * down, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE) for s in (-1, 1)]
    return np.where(sharp >= np.maximum(*beside), sharp, np.float32(0))


def count_matches(predicted: np.ndarray, true: np.ndarray, radius: float) -> int:
    """The largest number of pairs of a predicted and a true pixel that are at most `radius` pixels apart, each used once; bool (H, W)."""
    offsets = _offsets(radius)
    reach = int(np.abs(offsets).max())
    number = np.pad(np.where(true, np.cumsum(true).reshape(true.shape), 0), reach)  # true pixels count from 1
    places = np.argwhere(predicted)[:, None] + reach + offsets  # (P, O, 2)
    near = number[places[..., 0], places[..., 1]]
    here, there = np.nonzero(near)[0], near[near > 0]
    # From a source to each predicted pixel, on to the true ones near it, from these to a sink, one unit through each.
    p, t = len(places), np.count_nonzero(true)
    start = np.concatenate([np.zeros(p, int), here + 1, np.arange(t) + p + 1])
    end = np.concatenate([np.arange(p) + 1, there + p, np.full(t, p + t + 1)])
    graph = scipy.sparse.csr_array((np.ones(len(start), np.int32), (start, end)), shape=(p + t + 2,) * 2)
    return int(scipy.sparse.csgraph.maximum_flow(graph, 0, p + t + 1, method="dinic").flow_value)


def boundary_statistics(probability: np.ndarray, label: np.ndarray, tolerance: float) -> dict[str, np.ndarray]:
    """Sums of one image, at each threshold: `matched` and `predicted` pixels, (99,); and the number of `true` ones, ().

    Args:
      probability: (H, W) float in [0, 1].
      label: (H, W), 1 on an edge, one pixel wide; what is neither 0 nor 1 counts nowhere.
      tolerance: largest distance of a pair, as a share of the image's diagonal.
    """
    true = label == 1
    ridges = np.where((label == 0) | true, suppress_non_maxima(probability), 0)
    radius = tolerance * math.hypot(*label.shape)
    matched, predicted = np.zeros((2, len(THRESHOLDS)))
    before = None
    for index, threshold in enumerate(THRESHOLDS):
        chosen = ridges >= threshold
        size = np.count_nonzero(chosen)
        if size == before:  # the maps are nested: this is the one before
            matched[index], predicted[index] = matched[index - 1], predicted[index - 1]
            continue
        before = size
        edges = thin(chosen)
        matched[index], predicted[index] = count_matches(edges, true, radius), np.count_nonzero(edges)
    return {"matched": matched, "predicted": predicted, "true": np.asarray(float(np.count_nonzero(true)))}


def boundary_scores(totals: Mapping[str, np.ndarray]) -> dict[str, float]:
    """`odsF` in percent and `odsF_threshold`, the probability where it is reached, from sums over the set; NaN without a true edge."""
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
    """Steps (down, right) to the pixels within `radius`, nearest first, (O, 2) int."""
    reach = math.floor(radius)
    steps = np.argwhere(np.ones((2 * reach + 1,) * 2)) - reach
    squares = np.sum(steps**2, axis=1)
    order = np.argsort(squares, kind="stable")
    return steps[order[squares[order] <= radius**2]]
