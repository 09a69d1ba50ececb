"""Scores of whole data sets: at original size, for any batch size and number of devices, beside single-task models."""

import json
import math
import os
import pathlib
import shutil
import subprocess
import sys

import cv2
import jax
import numpy as np
import pytest
from paths import SUPPORT
from tiny_data import write_tiny_dataset

import mtlora_jax
from mtlora_jax import experiment as experiments
from mtlora_jax.data.native_resolution import MAX_LOGITS_BYTES, band_height, canvas_size, group_rows, place_on_canvas
from mtlora_jax.data.pipeline import eval_batches
from mtlora_jax.data.transforms import resize
from mtlora_jax.defaults import default
from mtlora_jax.errors import UserError
from mtlora_jax.eval import aggregate, native_resolution
from mtlora_jax.eval.evaluator import Evaluator
from mtlora_jax.eval.visualize import Pictures, logits_of
from mtlora_jax.tasks import make_tasks
from mtlora_jax.tasks.losses import IGNORE
from mtlora_jax.train.evaluate_run import evaluate_only

TASKS = ("semseg", "sal", "normals", "edge")
SIZES = {(40, 56): 3, (140, 30): 2}  # of the images' files, and how many have it


def write_dataset(root):
    """Validation images of two sizes, one of which needs a larger canvas."""
    write_tiny_dataset(root, TASKS, train=1, val=sum(SIZES.values()), size=(40, 56))
    write_tiny_dataset(root / "other", TASKS, train=1, val=2, size=(140, 30), seed=1)
    for folder in ("images", *TASKS):
        for index in (3, 4):
            shutil.copy(root / "other" / folder / f"val00{index - 3}.png", root / folder / f"val00{index}.png")
    return root


def config_for(root, **changes):
    """A model that compiles in a second or two."""
    config = default("decoders_only")
    with config.unlocked():
        config.backbone = {
            "name": "swin",
            "embed_dim": 8,
            "depths": (1,),
            "num_heads": (1,),
            "window_size": 4,
            "drop_path_rate": 0.0,
        }
        config.update(changes)
    config.tasks = TASKS
    config.image_size = (32, 32)
    config.decoder.channels = (4,)
    config.data.update({"name": "folder", "root": str(root), "num_workers": 0})
    config.batch_size = 4
    config.eval_batch_size = 4
    return config


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("evaluate") / "data")


@pytest.fixture(scope="module")
def made(root, tmp_path_factory):
    """(config, experiment, data set)."""
    config = config_for(root)
    config.evaluation.boundaries = True
    data = experiments.open_dataset(config, "val")
    return config, experiments.build_experiment(config, data.tasks, tmp_path_factory.mktemp("evaluate") / "run"), data


@pytest.fixture(scope="module")
def logits(made):
    """[{task: (32, 32, C)}] of each image."""
    _, experiment, data = made
    batch = next(eval_batches(data, image_size=(32, 32), batch_size=5))
    graph = experiment.graph
    forward = jax.jit(
        lambda images: logits_of(experiment.trainable, experiment.batch_stats, experiment.frozen, images, graph=graph)
    )
    found = jax.device_get(forward(batch["image"]))
    return [{name: found[name][row] for name in TASKS} for row in range(5)]


@pytest.fixture(scope="module")
def at_original_size(made):
    _, experiment, _ = made
    return native_resolution.NativeResolutionEvaluator(*made)(experiment.trainable, experiment.batch_stats)[0]


@pytest.fixture(scope="module")
def evaluator(made):
    return Evaluator(*made)


def test_images_differ_in_size(made):
    assert {data["image"].shape[:2] for data in (made[2][i] for i in range(5))} == set(SIZES)


def test_scores_at_original_size_against_numpy(made, logits, at_original_size):
    """Predictions resized by OpenCV, one image at a time, and textbook formulas in float64."""
    _, _, data = made
    confusion = np.zeros((4, 4))
    degrees = []
    for index, prediction in enumerate(logits):
        example = data[index]
        height, width = example["image"].shape[:2]
        large = {
            name: cv2.resize(values, (width, height), interpolation=cv2.INTER_LINEAR)
            for name, values in prediction.items()
        }
        np.add.at(confusion, (example["semseg"], large["semseg"].argmax(-1)), 1)
        normals, true = large["normals"].astype(np.float64), example["normals"].astype(np.float64)
        cosine = np.sum(normals * true, -1) / np.linalg.norm(normals, axis=-1) / np.linalg.norm(true, axis=-1)
        degrees.append(np.rad2deg(np.arccos(cosine))[true[..., 0] != IGNORE])
    hits = np.diagonal(confusion)
    iou = 100 * hits / (confusion.sum(0) + confusion.sum(1) - hits)
    assert at_original_size["semseg/mIoU"] == pytest.approx(iou.mean(), rel=1e-6)
    assert at_original_size["semseg/IoU/red"] == pytest.approx(iou[1], rel=1e-6)
    degrees = np.concatenate(degrees)
    # Labels are sent to the device as integers, which turns them by up to 0.0016 degrees.
    assert at_original_size["normals/mean"] == pytest.approx(degrees.mean(), abs=2e-3)
    assert at_original_size["normals/rmse"] == pytest.approx(math.sqrt(np.mean(degrees**2)), abs=2e-3)


def test_slow_scores_are_those_of_the_task(made, logits, at_original_size):
    _, _, data = made
    task = data.tasks["edge"]
    totals = {}
    for index, prediction in enumerate(logits):
        label = data[index]["edge"]
        large = cv2.resize(prediction["edge"], label.shape[::-1], interpolation=cv2.INTER_LINEAR)[..., None]
        for name, value in task.native_resolution_sums(large, label, 0.0075).items():
            totals[name] = totals.get(name, 0) + value
    expected = task.compute_native_resolution_metrics(totals)
    assert at_original_size["edge/odsF"] == pytest.approx(expected["odsF"], rel=1e-6)
    assert 0 < expected["odsF"] < 100


@pytest.mark.parametrize("size", [(32, 32), (16, 64), (70, 100), (7, 5)])
def test_resizing_is_that_of_opencv(size):
    values = np.random.default_rng(0).normal(size=(32, 32, 3)).astype(np.float32)
    canvas = np.asarray(native_resolution.resize_into(values, np.array(size, np.int32), (128, 128)))
    expected = cv2.resize(values, size[::-1], interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(canvas[: size[0], : size[1]], expected, atol=1e-5)  # places are rounded to float32


def test_little_memory_changes_no_score(made, at_original_size, monkeypatch):
    """Images are scored one at a time and, if one has several channels, in bands."""
    monkeypatch.setattr("mtlora_jax.data.native_resolution.MAX_LOGITS_BYTES", 2**17)
    _, experiment, _ = made
    scores, _ = native_resolution.NativeResolutionEvaluator(*made)(experiment.trainable, experiment.batch_stats)
    assert scores == pytest.approx(at_original_size, rel=2e-6)


@pytest.mark.parametrize(
    ("sizes", "channels", "groups"),
    [
        ([(375, 500)] * 32, 21, 1),
        ([(16000, 8), (8, 16000)], 21, 2),
        ([(4000, 6000), (6000, 4000)] * 16, 21, 32),
        ([(4000, 6000), *[(375, 500)] * 31], 21, 6),
        ([(20000, 8000)], 21, 1),
    ],
)
def test_groups_take_bounded_memory(sizes, channels, groups):
    found = group_rows(np.array([sizes]), channels)
    assert sorted(row for rows, _ in found for row in rows) == list(range(len(sizes)))
    assert len(found) <= groups
    for rows, (height, width) in found:
        assert all(sizes[row][0] <= height and sizes[row][1] <= width for row in rows)
        assert len(rows) * band_height((height, width), len(rows), channels) * width * channels * 4 <= MAX_LOGITS_BYTES


def test_devices_score_the_same_rows():
    sizes = np.array([[(4000, 6000), (10, 10)], [(10, 10), (10, 10)]])
    assert group_rows(sizes, 21) == [([1], (128, 128)), ([0], (4096, 6016))]


def test_canvas():
    assert canvas_size(np.array([[500, 375], [333, 500]])).tolist() == [512, 512]
    assert canvas_size(np.array([[128, 129]])).tolist() == [128, 256]
    labels = [{"a": np.ones((2, 3), np.uint8)}, {"a": np.zeros((1, 4), np.uint8)}]
    placed = place_on_canvas(labels, (3, 4))["a"]
    assert placed.shape == (2, 3, 4)
    assert placed[0].tolist() == [[1, 1, 1, 255], [1, 1, 1, 255], [255] * 4]
    assert placed[1].tolist() == [[0] * 4, [255] * 4, [255] * 4]


def test_pictures(made, evaluator):
    _, experiment, data = made
    pictures = evaluator.pictures(experiment.trainable, experiment.batch_stats)
    assert set(pictures) == {f"{task}/val00{index}" for task in TASKS for index in (0, 1, 3, 4)}
    assert {(picture.shape, picture.dtype.name) for picture in pictures.values()} == {((32, 96, 3), "uint8")}
    example = resize(data[1], data.tasks, (32, 32))
    shown = pictures["semseg/val001"]
    assert np.array_equal(shown[:, :32], example["image"])
    assert np.array_equal(shown[:, 32:64], data.tasks["semseg"].visualize(example["semseg"]))
    with jax.no_tracing(True):  # the second call compiles nothing
        again = evaluator.pictures(experiment.trainable, experiment.batch_stats)
    assert all(np.array_equal(again[tag], pictures[tag]) for tag in pictures)


def test_pictures_leave_out_what_cannot_be_read(made, tmp_path):
    root = write_dataset(tmp_path / "data")
    (root / "images" / "val003.png").write_bytes(b"no image")
    pictures = Pictures(made[0], made[1], experiments.open_dataset(config_for(root), "val"))
    assert [example["image_id"] for example in pictures.examples] == ["val000", "val001", "val004"]


def test_a_second_evaluation_compiles_nothing(made, evaluator):
    _, experiment, _ = made
    first, seconds = evaluator(experiment.trainable, experiment.batch_stats)
    with jax.no_tracing(True):
        second, _ = evaluator(experiment.trainable, experiment.batch_stats)
    assert first == second
    assert seconds > 0


DEVICES = """
import json, sys
import jax, numpy as np
from jax.sharding import AxisType, Mesh
import test_evaluate as t
from mtlora_jax import experiment
from mtlora_jax.data import native_resolution as sizes_of_data
from mtlora_jax.distributed import sharding
from mtlora_jax.eval import evaluator, native_resolution
import pathlib

found = {}
for devices, sizes in {1: (1, 3, 5), 4: (4, 8)}.items():
    sharding.make_mesh = lambda: Mesh(np.array(jax.devices()[:devices]), ("data",), axis_types=(AxisType.Auto,))
    for size in sizes:
        config = t.config_for(sys.argv[1])
        config.batch_size = config.eval_batch_size = size
        config.evaluation.boundaries = True
        config.data.num_workers = 2 if size == 8 else 0
        sizes_of_data.MAX_LOGITS_BYTES = 2**17 if size in (5, 8) else 2**31
        data = experiment.open_dataset(config, "val")
        made = experiment.build_experiment(config, data.tasks, pathlib.Path("nowhere"))
        for kind in (evaluator.Evaluator, native_resolution.NativeResolutionEvaluator):
            scores, _ = kind(config, made, data)(made.trainable, made.batch_stats)
            found[f"{kind.__name__}, {devices} devices, batches of {size}"] = scores
print(json.dumps(found))
"""


def test_scores_are_the_same_for_any_batch_size_and_number_of_devices(root, tmp_path):
    (tmp_path / "devices.py").write_text(
        f"if __name__ == '__main__':\n{''.join(f'    {line}' for line in DEVICES.splitlines(True))}"
    )
    more = {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(
            [str(SUPPORT), str(pathlib.Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
        ),
    }
    command = [sys.executable, str(tmp_path / "devices.py"), str(root)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | more)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == 10
    for kind in ("Evaluator", "NativeResolutionEvaluator"):
        (_, one), *others = ((name, scores) for name, scores in found.items() if name.startswith(f"{kind},"))
        assert ("edge/odsF" in one) == (kind == "NativeResolutionEvaluator")
        for name, scores in others:
            assert scores == pytest.approx(one, rel=2e-6), name


def test_a_model_folder_evaluated_alone(made, tmp_path, capsys):
    config, experiment, _ = made
    experiment.save(tmp_path / "model", experiment.trainable, experiment.batch_stats, {})
    config = config_for(config.data.root, init_from=str(tmp_path / "model"))
    scores = evaluate_only(config, tmp_path / "evaluated")
    printed = capsys.readouterr().out
    scores_told = ("semseg/IoU per class", "green", "delta_m", "normals/rmse", 'print as "rmse"')
    for told in ("at 32x32", "at original size", *scores_told, "5 images in"):
        assert told in printed
    report = json.loads((tmp_path / "evaluated" / "evaluation.json").read_text())
    assert report["scores"] == scores
    assert report["original_size"].keys() == scores.keys()
    assert (report["split"], report["images"], report["model"]) == ("val", 5, str(tmp_path / "model"))


def test_a_merged_model_is_evaluated_like_any_other(made, tmp_path):
    config, experiment, _ = made
    experiment.save(tmp_path / "model", experiment.trainable, experiment.batch_stats, {})
    mtlora_jax.merge(mtlora_jax.load(tmp_path / "model")).save(tmp_path / "merged")
    scores = {}
    for name in ("model", "merged"):
        config = config_for(config.data.root, init_from=str(tmp_path / name))
        scores[name] = evaluate_only(config, tmp_path / f"{name}_evaluated")
    assert scores["merged"] == pytest.approx(scores["model"], rel=1e-3)  # a pixel or two of 5,120 may change sides
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["architecture"]["method"]["name"] == "merged"


def write_metrics(folder, **scores):
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(
        json.dumps({"step": 9, **{name.replace("_", "/"): value for name, value in scores.items()}})
    )
    return str(folder)


def test_single_task_files(root, tmp_path):
    tasks = make_tasks(TASKS)
    config = config_for(root)
    assert aggregate.delta_m_baseline(config, tasks) == {"semseg": 67.21, "sal": 62.35, "normals": 17.97}
    semseg = write_metrics(tmp_path / "semseg", semseg_mIoU=50.0, semseg_other=1.0)
    normals = write_metrics(tmp_path / "normals", normals_mean=20.0, depth_rmse=1.0)
    config.delta_m_baseline_runs = (semseg, f"{normals}/metrics.json")
    assert aggregate.delta_m_baseline(config, tasks) == {"semseg": 50.0, "normals": 20.0}
    scores = {"semseg/mIoU": 55.0, "normals/mean": 19.0, "sal/mIoU": 1.0, "edge/loss": 1.0}
    gain = aggregate.add_ranking_score(scores, tasks, aggregate.delta_m_baseline(config, tasks))["delta_m"]
    assert gain == pytest.approx((10 + 5) / 2)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, r"a.metrics.json: cannot be read .No such file or directory.; expected the workdir of a finished run"),
        ("{", r"is not valid JSON: "),
        ("[1]", r"is not valid JSON: |no score of these tasks"),
        ('{"depth/rmse": 1}', r"has no score of these tasks; expected a number for one of semseg/mIoU, sal/mIoU"),
        ('{"sal/mIoU": null}', r"expected a number"),
        ('{"semseg/mIoU": 4}', r"has semseg again; give each task once"),
    ],
)
def test_bad_single_task_files(root, tmp_path, content, told):
    (tmp_path / "a").mkdir()
    if content:
        (tmp_path / "a" / "metrics.json").write_text(content)
    config = config_for(root)
    config.delta_m_baseline_runs = (write_metrics(tmp_path / "whole", semseg_mIoU=5.0), str(tmp_path / "a"))
    with pytest.raises(UserError, match=told):
        aggregate.delta_m_baseline(config, make_tasks(TASKS))
