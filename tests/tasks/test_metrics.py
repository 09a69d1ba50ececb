"""Scores against the reference's numbers and independent float64 formulas, for any batching."""

import json
import math

import jax
import numpy as np
import pytest
import tiny_data
from paths import GOLDEN

from mtlora_jax.defaults import PAPER_SINGLE_TASK
from mtlora_jax.errors import UserError
from mtlora_jax.eval import aggregate
from mtlora_jax.tasks import TASKS, make_tasks, metrics
from mtlora_jax.tasks.losses import IGNORE

SCORES = GOLDEN / "metrics"
IMAGES = 12
STATISTICS = {name: jax.jit(TASKS[name]().metric_sums) for name in tiny_data.TASKS}


@pytest.fixture(scope="module")
def arrays():
    """{task: (logits, label)} of twelve images; for tasks with classes, only the winner was stored."""
    with np.load(SCORES / "batches.npz") as file:
        return {
            name: (
                file[f"logits/{name}"]
                if f"logits/{name}" in file
                else np.eye(task.channels, dtype=np.float32)[file[f"class/{name}"]],
                file[f"label/{name}"],
            )
            for name, task in make_tasks(tiny_data.TASKS).items()
        }


@pytest.fixture(scope="module")
def golden():
    return json.loads((SCORES / "scores.json").read_text())


def score(name, logits, label, batch_size=None, mask=None):
    """Scores of a set in batches."""
    mask = np.ones(len(label), bool) if mask is None else mask
    batch_size = batch_size or len(label)
    totals = {}
    for start in range(0, len(label), batch_size):
        part = slice(start, start + batch_size)
        for key, value in STATISTICS[name](logits[part], label[part], mask[part]).items():
            totals[key] = totals.get(key, 0) + np.asarray(value, np.float64)
    return TASKS[name]().compute_metrics(totals)


@pytest.mark.parametrize("name", ["semseg", "human_parts"])
def test_golden_iou(name, arrays, golden):
    scores = score(name, *arrays[name])
    assert scores["mIoU"] / 100 == pytest.approx(golden[name]["mIoU"], abs=1e-12)
    per_class = [scores[f"IoU/{entry}"] / 100 for entry in TASKS[name]().classes]
    assert per_class == pytest.approx(golden[name]["jaccards_all_categs"], abs=1e-12)
    assert set(scores) == {"mIoU"} | {f"IoU/{entry}" for entry in TASKS[name]().classes}


def test_golden_saliency(arrays, golden):
    scores = score("sal", *arrays["sal"])
    for key in ("mIoU", "maxF"):
        assert scores[key] / 100 == pytest.approx(golden["sal"][key], abs=1e-7)


def test_golden_normals(arrays, golden):
    scores = score("normals", *arrays["normals"])
    assert scores["mean"] == pytest.approx(golden["normals"]["mean_v2"], abs=1e-6)
    # The reference's other formula, through 8-bit colours in float32, is itself 1.3e-6 off the mean in float64.
    assert scores["mean"] == pytest.approx(golden["normals"]["mean"], abs=2e-6)
    shares = {key: golden["normals_v1"][key] for key in ("11.25", "22.5", "30")}
    assert {key: scores[key] for key in shares} == pytest.approx(shares, abs=1e-9)


def test_golden_depth(arrays, golden):
    assert score("depth", *arrays["depth"]) == pytest.approx(golden["depth"], abs=1e-7)


def test_normals_against_float64(arrays, golden):
    logits, label = arrays["normals"]
    degrees = angles(logits, label)[np.all(label != IGNORE, axis=-1)]
    scores = score("normals", logits, label)
    assert scores["mean"] == pytest.approx(degrees.mean(), abs=1e-6)
    assert scores["rmse"] == pytest.approx(math.sqrt((degrees**2).mean()), abs=1e-6)
    assert scores["rmse"] > golden["normals"]["rmse"] + 1  # which is the mean
    assert scores["median"] == pytest.approx(np.median(degrees), abs=1 / metrics.BINS_PER_DEGREE)


def angles(logits, label):
    """Angle between vectors, degrees, float64."""
    logits, label = logits.astype(np.float64), label.astype(np.float64)
    return np.rad2deg(np.arctan2(np.linalg.norm(np.cross(logits, label), axis=-1), np.sum(logits * label, axis=-1)))


def test_edge_loss_against_float64(arrays, golden):
    logits, label = arrays["edge"]
    probability, positive = 1 / (1 + np.exp(-logits[..., 0].astype(np.float64))), label == 1
    expected = np.where(positive, -0.95 * np.log(probability), -0.05 * np.log(1 - probability)).mean()
    found = score("edge", logits, label)["loss"]
    assert found == pytest.approx(expected, rel=1e-6)
    assert abs(found - golden["edge"]["loss"]) > 0.01  # which squashes the logits twice


def test_saliency_against_float64_with_ignored_pixels(arrays):
    logits, label = arrays["sal"][0], arrays["sal"][1].copy()
    label[np.random.default_rng(0).random(label.shape) < 0.3] = IGNORE
    label[3] = np.where(label[3] == IGNORE, IGNORE, 0)  # nothing salient there
    curves = np.zeros((3, 15))
    for index, threshold in enumerate(np.linspace(0.2, 0.9, 15)):
        for image, truth in zip(logits[..., 0], label, strict=True):
            predicted = (1 / (1 + np.exp(-image.astype(np.float64))) > threshold)[truth != IGNORE]
            salient = truth[truth != IGNORE] == 1
            hits, either = np.sum(predicted & salient), np.sum(predicted | salient)
            one = [hits / either if either else 1, hits / max(predicted.sum(), 1), hits / max(salient.sum(), 1)]
            curves[:, index] += np.array(one) / IMAGES
    _, precision, recall = curves
    expected = {
        "mIoU": 100 * curves[0].max(),
        "maxF": 100 * max(2 * precision * recall / (precision + recall)),
        "maxF_beta": 100 * max(1.3 * precision * recall / (0.3 * precision + recall)),
    }
    assert score("sal", logits, label) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", tiny_data.TASKS)
def test_score_does_not_depend_on_batching_nor_on_padding(name, arrays):
    logits, label = arrays[name]
    whole = score(name, logits, label)
    for batch_size in (1, 4):
        assert score(name, logits, label, batch_size) == pytest.approx(whole, rel=2e-7)
    # The padding is wrong, yet masked out.
    padded = np.concatenate([logits, logits[:4]]), np.concatenate([label, 1 - label[:4]])
    assert score(name, *padded, 8, np.arange(IMAGES + 4) < IMAGES) == pytest.approx(whole, rel=2e-7)
    ignored = np.concatenate([label, np.full_like(label[:4], IGNORE)])
    assert score(name, padded[0], ignored, 8) == pytest.approx(whole, rel=2e-7)
    assert score(name, *padded, 8) != pytest.approx(whole, rel=2e-7)


@pytest.mark.parametrize("name", tiny_data.TASKS)
def test_ignored_pixels_count_nowhere(name, arrays):
    logits, label = arrays[name][0].copy(), arrays[name][1].copy()
    label[:, 10:30] = IGNORE
    before = score(name, logits, label)
    logits[:, 10:30] = logits[:, 30:50]
    assert score(name, logits, label) == before
    assert score(
        name, np.delete(logits, range(10, 30), axis=1), np.delete(label, range(10, 30), axis=1)
    ) == pytest.approx(before, rel=2e-7)


def test_perfect_and_absent_classes():
    label = np.array([[[0, 1, 1, IGNORE]]], np.uint8)
    logits = np.eye(7, dtype=np.float32)[[[[0, 1, 2, 5]]]]
    scores = score("human_parts", logits, label)
    assert scores["IoU/background"] == 100
    assert scores["IoU/head"] == 50
    assert scores["IoU/torso"] == 0
    assert scores["mIoU"] == pytest.approx(150 / 7)  # absent classes count as 0


def test_saliency_of_an_image_where_nothing_is_salient():
    empty, nothing = np.zeros((1, 4, 4), np.uint8), np.full((1, 4, 4, 1), -9, np.float32)
    assert score("sal", nothing, empty)["mIoU"] == 100
    assert score("sal", -nothing, empty)["mIoU"] == 0
    assert score("sal", nothing, 1 - empty)["mIoU"] == 0


@pytest.mark.parametrize("degrees", [0, 1e-3, 0.05, 11, 89.99, 180])
def test_small_angles_survive_float32(degrees):
    angle = math.radians(degrees)
    logits = 7 * np.array([math.sin(angle), 0, math.cos(angle)], np.float32).reshape(1, 1, 1, 3)
    scores = score("normals", logits, np.array([[[[0, 0, 1]]]], np.float32))
    assert scores["mean"] == pytest.approx(degrees, abs=2e-5) == scores["rmse"]
    assert scores["median"] == pytest.approx(degrees, abs=1 / metrics.BINS_PER_DEGREE)


def test_normals_without_direction_are_90_degrees_off():
    label = np.array([[[[0, 0, 1]]]], np.float32)
    assert score("normals", np.zeros_like(label), label)["mean"] == pytest.approx(90, abs=1e-5)


def test_median_of_an_even_spread():
    angle = np.deg2rad(np.arange(0.5, 90)).astype(np.float32)
    logits = np.stack([np.sin(angle), np.zeros_like(angle), np.cos(angle)], axis=-1)[None, None]
    label = np.broadcast_to(np.array([0, 0, 1], np.float32), logits.shape)
    assert score("normals", logits, label)["median"] == pytest.approx(45, abs=0.51)  # any value between the middle two


def test_depth_predictions_are_kept_positive():
    label = np.array([[[1.0, 2.0]]], np.float32)
    scores = score("depth", np.array([-3.0, 2.0], np.float32).reshape(1, 1, 2, 1), label)
    assert scores["rmse"] == pytest.approx(math.sqrt(0.5), rel=1e-6)
    assert scores["log_rmse"] == pytest.approx(math.log(1e9) / math.sqrt(2), rel=1e-6)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", tiny_data.TASKS)
def test_a_set_without_a_valid_pixel(name, arrays):
    logits, label = arrays[name]
    scores = score(name, logits, np.full_like(label, IGNORE))
    assert all(value == 0 if "IoU" in key and name != "sal" else math.isnan(value) for key, value in scores.items())


@pytest.mark.parametrize("name", tiny_data.TASKS)
def test_statistics_have_a_size_that_does_not_depend_on_the_images(name, arrays):
    logits, label = arrays[name]
    shapes = [
        {key: value.shape for key, value in STATISTICS[name](logits[:n, :m], label[:n, :m], np.ones(n, bool)).items()}
        for n, m in ((1, 64), (4, 32))
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("name", tiny_data.TASKS)
def test_primary_score_exists(name, arrays):
    task = TASKS[name]()
    assert task.primary_metric in score(name, *arrays[name])
    assert task.higher_is_better == (task.primary_metric == "mIoU")


@pytest.mark.parametrize("name", tiny_data.TASKS)
def test_notes_are_about_scores_that_exist(name, arrays):
    task = TASKS[name]()
    scores = score(name, *arrays[name])
    if task.has_native_resolution_metrics:
        label = np.eye(16, dtype=np.uint8)
        scores |= task.compute_native_resolution_metrics(
            task.native_resolution_sums(label[..., None].astype(np.float32), label, 0.01)
        )
    assert task.metric_notes.keys() <= scores.keys()


def test_which_angle_papers_call_rmse():
    assert 'papers of this family print as "rmse"' in TASKS["normals"]().metric_notes["mean"]
    assert "true root" in TASKS["normals"]().metric_notes["rmse"]
    assert "true root" in TASKS["depth"]().metric_notes["rmse"]


def test_totals_are_summed_in_float64():
    totals = {}
    for _ in range(3):
        aggregate.add(totals, {"a": {"n": jax.numpy.int32(2**31 - 1), "x": jax.numpy.ones(2)}})
    assert totals["a"]["n"] == 3 * (2**31 - 1)
    assert totals["a"]["x"].tolist() == [3, 3]
    assert totals["a"]["x"].dtype == np.float64


TABLE_1 = ("semseg", "human_parts", "sal", "normals")


def test_mean_score():
    """Each task counts by its share of the best possible score, so a bad start of one task does not dominate."""
    tasks = make_tasks(["semseg", "sal", "normals", "edge", "depth"])
    scores = {
        "semseg/mIoU": 40.0,
        "sal/mIoU": 60.0,
        "normals/mean": 30.0,
        "edge/loss": 0.1,
        "depth/rmse": 3.0,
        "sal/maxF": 99.0,
    }
    assert aggregate.mean_score(scores, tasks) == pytest.approx((0.4 + 0.6 + 0.5 + 0.5 + 0.25) / 5)
    assert aggregate.add_ranking_score(scores, tasks, {}) == scores | {"mean_score": pytest.approx(0.45)}
    assert aggregate.add_ranking_score(scores, tasks, {"depth": 4.0}) == scores | {"delta_m": pytest.approx(25)}
    perfect = {"semseg/mIoU": 100.0, "sal/mIoU": 100.0, "normals/mean": 0.0, "edge/loss": 0.0, "depth/rmse": 0.0}
    assert aggregate.mean_score(perfect, tasks) == 1
    hopeless = {
        "semseg/mIoU": 0.0,
        "sal/mIoU": 0.0,
        "normals/mean": 180.0,
        "edge/loss": 1e9,
        "depth/rmse": float("inf"),
    }
    assert 0 < aggregate.mean_score(hopeless, tasks) < 0.05
    assert np.isnan(aggregate.mean_score(perfect | {"sal/mIoU": float("nan")}, tasks))


def test_delta_m_of_the_paper():
    """Table 1, MTLoRA with rank 64."""
    scores = dict(zip(TABLE_1, (67.9, 59.84, 65.40, 16.60), strict=True))
    assert aggregate.delta_m(scores, PAPER_SINGLE_TASK, make_tasks(TABLE_1)) == pytest.approx(2.54, abs=0.01)


def test_delta_m_properties():
    tasks = make_tasks(TABLE_1)
    assert aggregate.delta_m(PAPER_SINGLE_TASK, PAPER_SINGLE_TASK, tasks) == 0
    only = make_tasks(["normals"])
    assert aggregate.delta_m({"normals": 9.0}, {"normals": 10.0}, only) == pytest.approx(10)
    assert aggregate.delta_m({"semseg": 45.0}, {"semseg": 50.0}, make_tasks(["semseg"])) == pytest.approx(-10)


@pytest.mark.parametrize(
    ("scores", "single", "names", "message"),
    [
        ({"semseg": 1.0}, {"semseg": 1.0}, ["semseg", "sal"], "no score for task 'sal'"),
        ({"semseg": 1.0, "edge": 1.0}, {"semseg": 1.0}, ["semseg", "edge"], "no single-task score for task 'edge'"),
        ({"semseg": 1.0}, {"semseg": 0.0}, ["semseg"], "single-task score of 'semseg' is 0.0"),
        ({}, {}, [], "no tasks"),
    ],
)
def test_delta_m_errors(scores, single, names, message):
    with pytest.raises(UserError, match=message):
        aggregate.delta_m(scores, single, make_tasks(names))
