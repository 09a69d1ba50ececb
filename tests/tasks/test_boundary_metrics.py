"""The boundary F of edges against counts by hand, and against a matching found another way."""

import math

import numpy as np
import pytest
import scipy.sparse
from scipy.sparse.csgraph import min_weight_full_bipartite_matching

from mtlora_jax.tasks import make_tasks
from mtlora_jax.tasks.boundary_metrics import (
    THRESHOLDS,
    boundary_sums,
    compute_boundary_metrics,
    count_matches,
    suppress_non_maxima,
)


def mask_of(*points, shape=(12, 12)):
    mask = np.zeros(shape, bool)
    for point in points:
        mask[point] = True
    return mask


@pytest.mark.parametrize(
    ("predicted", "true", "radius", "pairs"),
    [
        ([(3, 3)], [(3, 3)], 0, 1),
        ([(3, 3)], [(3, 4)], 0.9, 0),
        ([(3, 3)], [(3, 4)], 1, 1),
        ([(3, 3)], [(4, 4)], 1.4, 0),
        ([(3, 3)], [(4, 4)], 1.5, 1),
        ([(3, 3)], [(3, 2), (3, 4)], 1, 1),  # one prediction matches one pixel only
        ([(3, 2), (3, 4)], [(3, 3)], 1, 1),
        # Nearest pairs first would match the middle two, and omit both ends.
        ([(5, 4), (5, 7)], [(5, 2), (5, 5)], 2, 2),
        ([(0, 0), (11, 11)], [(0, 1), (10, 11)], 1, 2),  # at the rim
        ([(0, 0)], [(0, 11)], 2, 0),  # no way around the rim
        ([], [(1, 1)], 2, 0),
        ([(1, 1)], [], 2, 0),
        ([], [], 2, 0),
    ],
)
def test_pairs_counted_by_hand(predicted, true, radius, pairs):
    assert count_matches(mask_of(*predicted), mask_of(*true), radius) == pairs


def cheapest_pairs(predicted, true, radius):
    """The number of pairs with the least total distance, if an omitted pixel costs 100 times the radius, as in BSDS."""
    a, b = np.argwhere(predicted), np.argwhere(true)
    distance = np.hypot(*(a[:, None] - b[None]).transpose(2, 0, 1))
    near = np.where(distance <= radius, distance + 1e-3, 0)
    out = scipy.sparse.diags_array(np.full(len(a), 100.0 * radius))
    graph = scipy.sparse.hstack([scipy.sparse.csr_array(near), out]).tocsr()
    _, columns = min_weight_full_bipartite_matching(graph)
    return np.count_nonzero(columns < len(b))


@pytest.mark.parametrize("density", [0.01, 0.1, 0.4])
def test_as_many_pairs_as_the_costs_of_bsds_give(density):
    rng = np.random.default_rng(0)
    predicted, true = rng.random((2, 40, 30)) < density
    for radius in (1, 2.3, 4):
        assert count_matches(predicted, true, radius) == cheapest_pairs(predicted, true, radius)


def test_ridges_are_thinned_to_their_tops():
    row, column = np.mgrid[:40, :40]
    for angle in (0, 30, 45, 90, 120):
        down, right = math.sin(math.radians(angle)), math.cos(math.radians(angle))
        across = (row - 19.5) * down + (column - 19.5) * right + 0.2
        kept = suppress_non_maxima(np.exp(-(across**2) / 18)) > 0
        inside = kept[6:34, 6:34]
        assert np.abs(across[6:34, 6:34][inside]).max() < 1.01
        assert inside.any(axis=0 if abs(down) > 0.5 else 1).all()  # without gaps


def test_statistics_of_a_line():
    """A line of 20 pixels, predicted with 0.8 one pixel beside it, and a false one with 0.4."""
    label, probability = np.zeros((30, 40), np.uint8), np.zeros((30, 40), np.float32)
    label[10, 10:30] = 1
    probability[11, 10:30] = 0.8
    probability[22, 10:20] = 0.4
    sums = boundary_sums(probability, label, tolerance=1 / 50)  # the diagonal is 50
    assert sums["true"] == 20
    by_threshold = {threshold: (sums["matched"][i], sums["predicted"][i]) for i, threshold in enumerate(THRESHOLDS)}
    assert by_threshold[0.4] == (20, 30)
    assert by_threshold[0.41] == (20, 20)
    assert by_threshold[0.8] == (20, 20)
    assert by_threshold[0.81] == (0, 0)
    assert compute_boundary_metrics(sums) == {"odsF": 100, "odsF_threshold": pytest.approx(0.41)}
    assert compute_boundary_metrics(boundary_sums(probability, label, tolerance=0.9 / 50))["odsF"] == 0


def test_f_of_a_set_comes_from_its_sums():
    """One threshold for all images: 30 of 40 predicted and of 60 true pixels."""
    sums = {"matched": np.full(99, 30.0), "predicted": np.full(99, 40.0), "true": np.asarray(60.0)}
    assert compute_boundary_metrics(sums)["odsF"] == pytest.approx(100 * 2 * 0.75 * 0.5 / 1.25)


def test_precision_and_recall_are_linear_between_thresholds():
    """(P, R) goes from (1/2, 1) to (1, 1/4): F in between exceeds that of both ends, 2/3 and 2/5."""
    matched, predicted = np.zeros((2, 99))
    matched[:50], predicted[:50] = 40, 80
    matched[50:], predicted[50:] = 10, 10
    share = np.linspace(0, 1, 10001)
    precision, recall = 0.5 + 0.5 * share, 1 - 0.75 * share
    expected = np.max(2 * precision * recall / (precision + recall))
    scores = compute_boundary_metrics({"matched": matched, "predicted": predicted, "true": np.asarray(40.0)})
    assert scores["odsF"] == pytest.approx(100 * expected, abs=1e-2)
    assert 0.5 < scores["odsF_threshold"] < 0.51


def test_nothing_true_or_nothing_predicted():
    empty = np.zeros((20, 20), np.uint8)
    assert math.isnan(compute_boundary_metrics(boundary_sums(np.full((20, 20), 0.5), empty, 0.01))["odsF"])
    assert compute_boundary_metrics(boundary_sums(np.zeros((20, 20)), np.eye(20, dtype=np.uint8), 0.01))["odsF"] == 0


def test_what_is_neither_edge_nor_none_counts_nowhere():
    label = np.zeros((30, 40), np.uint8)
    label[10, 10:30] = 1
    probability = np.zeros((30, 40), np.float32)
    probability[10, 10:30] = 0.8
    probability[20, 10:30] = 0.9
    label[18:23] = 255
    sums = boundary_sums(probability, label, 0.02)
    assert sums["predicted"].max() == 20 == sums["matched"].max()


def test_the_task_takes_logits():
    edge = make_tasks(["edge"])["edge"]
    assert edge.has_native_resolution_metrics
    label = np.zeros((30, 40), np.uint8)
    label[10, 10:30] = 1
    logits = np.where(label == 1, 1.0, -6.0).astype(np.float32)[..., None]  # probabilities 0.73 and 0.002
    scores = edge.compute_native_resolution_metrics(edge.native_resolution_sums(logits, label, 0.0075))
    assert scores["odsF"] == 100
