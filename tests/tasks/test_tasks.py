"""Host side of tasks: moving and showing labels; test_label_files is about reading files."""

import math
import subprocess
import sys

import numpy as np
import pytest
import tiny_data
from PIL import Image

from mtlora_jax.errors import UserError
from mtlora_jax.tasks import IGNORE, TASKS, make_tasks
from mtlora_jax.tasks.affine import AffineTransform
from mtlora_jax.tasks.normals import to_vectors

STEP = 1 / 60000  # error of a component of a normal in its compact form: half of 1/32000, and rounding of float32
LENGTH = 3**0.5 * STEP


def save(path, pixels):
    Image.fromarray(np.asarray(pixels)).save(path)
    return path


def decode(name, path):
    return TASKS[name]().decode(path.read_bytes(), str(path))


def moved_by(name, label, size=None, **transform):
    return TASKS[name]().warp(label, AffineTransform(**transform), size or label.shape[:2])


def finished(name, label):
    """The label as loss and scores get it."""
    label = TASKS[name]().to_device_format(label)
    return to_vectors(label) if name == "normals" else label


def sphere(size=65):
    """Normals of a ball seen from the front, x right and y down; ignored outside. It looks the same in any rotation."""
    y, x = np.mgrid[:size, :size] / (size - 1) * 2 - 1
    squares = x**2 + y**2
    normals = np.stack([x, y, np.sqrt(np.maximum(1 - squares, 0))], axis=-1)
    normals[squares >= 0.9] = IGNORE
    return normals.astype(np.float32)


def known(label):
    return np.all(label != IGNORE, axis=-1)


def test_recipe():
    """Channels, loss weights and primary scores of the published recipe."""
    table = {
        name: (task.channels, task.weight, task.primary_metric, task.higher_is_better)
        for name, task in make_tasks(tiny_data.TASKS).items()
    }
    assert table == {
        "semseg": (21, 1, "mIoU", True),
        "human_parts": (7, 2, "mIoU", True),
        "sal": (1, 5, "mIoU", True),
        "normals": (3, 10, "mean", False),
        "edge": (1, 50, "loss", False),
        "depth": (1, 1, "rmse", False),
    }


def test_make_tasks():
    tasks = make_tasks(
        ["sal", "semseg"], {"semseg": ["sky", "ground"], "sal": ["background", "person"], "depth": ["unused"]}
    )
    assert list(tasks) == ["sal", "semseg"]
    assert tasks["semseg"].channels == 2
    assert tasks["semseg"].classes == ("sky", "ground")
    assert tasks["sal"].channels == 1
    assert tasks["sal"].classes == ("background", "person")
    assert [name for name, task in make_tasks(tiny_data.TASKS).items() if task.name == name] == list(tiny_data.TASKS)


@pytest.mark.parametrize(
    ("names", "classes", "message"),
    [
        (["semsek"], None, "unknown task 'semsek'; did you mean 'semseg'"),
        (["zzz"], None, "expected one of semseg, human_parts"),
        (["sal", "sal"], None, "'sal' is given twice"),
        (["segmentation"], None, "unknown task 'segmentation'; did you mean 'semseg'"),
        (["Surface Normals"], None, "did you mean 'normals'"),
        (["semseg"], {"semseg": ["thing"]}, "semseg: 'thing' is the only class; expected at least two"),
        (["human_parts"], {"human_parts": ["person"]}, "human_parts: 'person' is the only class"),
        (["semseg"], {"semseg": ["sky", ""]}, "name 1 is empty"),
        (["semseg"], {"semseg": []}, "'semseg': .*at least one name"),
        (["semseg"], {"semseg": "sky"}, "'semseg': \"sky\""),
        (["semseg"], {"semseg": ["sky", 3]}, "'semseg'"),
        (["semseg"], {"semseg": ["sky", "sky"]}, "given twice"),
        (["semseg"], {"semseg": [str(i) for i in range(256)]}, "256 class names .* at most 255"),
    ],
)
def test_make_tasks_errors(names, classes, message):
    with pytest.raises(UserError, match=message):
        make_tasks(names, classes)


def test_normals_of_a_png(tmp_path):
    black, white, grey = (0, 0, 0), (255, 255, 255), (127, 128, 127)
    pixels = np.array([[(255, 128, 128), (128, 0, 128), black], [(128, 128, 255), white, grey]], np.uint8)
    label = decode("normals", save(tmp_path / "n.png", pixels))
    assert label.dtype == np.float32
    np.testing.assert_allclose(label[known(label)], [[1, 0, 0], [0, -1, 0], [0, 0, 1]], atol=1 / 255 + 1e-6)
    np.testing.assert_array_equal(known(label), [[True, True, False], [True, False, False]])
    assert TASKS["normals"]().to_device_format(label).dtype == np.uint16
    unit = finished("normals", label)
    np.testing.assert_array_equal(known(unit), known(label))
    np.testing.assert_allclose(np.linalg.norm(unit[known(unit)], axis=-1), 1, atol=LENGTH)


def examples(size=33):
    """A label of each task."""
    rng = np.random.default_rng(0)
    return {
        "semseg": rng.integers(0, 21, (size, size)).astype(np.uint8),
        "human_parts": rng.integers(1, 7, (size, size)).astype(np.uint8),
        "sal": rng.integers(0, 2, (size, size)).astype(np.uint8),
        "normals": sphere(size),
        "edge": rng.integers(0, 2, (size, size)).astype(np.uint8),
        "depth": rng.uniform(1, 9, (size, size)).astype(np.float32),
    }


@pytest.mark.parametrize("name", tiny_data.TASKS)
def test_labels_hold_what_they_held_after_the_whole_chain(name):
    label = examples()[name]
    before = label.copy()
    moved = finished(name, moved_by(name, label, (28, 56), flip=True, degrees=15, scale=0.75))
    assert moved.shape == (28, 56, *label.shape[2:])
    assert moved.dtype == label.dtype
    np.testing.assert_array_equal(label, before)
    assert np.all(moved[0, 0] == IGNORE), "the corner comes from outside of the image"
    assert np.any(moved != IGNORE)
    if name == "depth":
        moved = np.where(moved == IGNORE, IGNORE, moved * np.float32(0.75))
    if name == "normals":
        np.testing.assert_allclose(np.linalg.norm(moved[known(moved)], axis=-1), 1, atol=LENGTH)
    else:
        values = {*label.ravel(), label.dtype.type(IGNORE)}
        assert (
            values.issuperset(moved.ravel())
            if name != "depth"
            else np.isclose(moved.ravel()[:, None], sorted(values)).any(axis=1).all()
        )


@pytest.mark.parametrize("name", tiny_data.TASKS)
def test_mirroring_twice_changes_nothing(name):
    label = examples()[name]
    flipped = moved_by(name, label, flip=True)
    np.testing.assert_array_equal(moved_by(name, flipped, flip=True), label)
    assert name == "normals" or np.any(flipped != label)  # a ball is its own mirror image


@pytest.mark.parametrize("name", tiny_data.TASKS)
def test_resizing_to_the_same_size_changes_nothing(name):
    task, label = TASKS[name](), examples()[name]
    np.testing.assert_allclose(task.resize(label, label.shape[:2]), label, atol=1e-6)


@pytest.mark.parametrize(("degrees", "scale"), [(30, 1), (-75, 1), (180, 1), (0, 0.6), (20, 0.75)])
def test_a_ball_looks_the_same_however_it_is_turned(degrees, scale):
    size = 65
    moved = moved_by("normals", sphere(size), degrees=degrees, scale=scale)
    expected = np.full_like(moved, IGNORE)
    shrunk = (
        TASKS["normals"]().resize(sphere(size), (round((size - 1) * scale) + 1,) * 2) if scale != 1 else sphere(size)
    )
    start = (size - len(shrunk)) // 2
    expected[start : start + len(shrunk), start : start + len(shrunk)] = shrunk
    moved, expected = finished("normals", moved), finished("normals", expected)
    both = known(moved) & known(expected)
    assert both.sum() > 0.95 * known(expected).sum()
    assert np.abs(moved - expected)[both].max() < 0.06  # a turn the wrong way, or none, is off by up to 1.9
    assert np.abs(moved - expected)[both].mean() < 0.01


def test_a_ball_is_its_own_mirror_image():
    np.testing.assert_allclose(moved_by("normals", sphere(), flip=True), sphere(), atol=1e-6)
    lopsided = np.full((1, 2, 3), IGNORE, np.float32)
    lopsided[0, 0] = 0.6, 0, 0.8
    flipped = moved_by("normals", lopsided, flip=True)
    np.testing.assert_allclose(flipped[0, 1], [-0.6, 0, 0.8], rtol=1e-6)
    assert np.all(flipped[0, 0] == IGNORE)


@pytest.mark.parametrize("size", [(20, 20), (33, 50)])
def test_resizing_normals_is_even_handed(size):
    task, label = TASKS["normals"](), sphere(33)
    flipped = [
        task.resize(moved_by("normals", label, flip=True), size),
        moved_by("normals", task.resize(label, size), flip=True),
        moved_by("normals", label, size, flip=True),
    ]
    for other in flipped[1:]:
        both = known(flipped[0]) & known(other)
        assert both.sum() > 0.99 * known(flipped[0]).sum()
        np.testing.assert_allclose(flipped[0][both], other[both], atol=0.02)  # warps interpolate at 1/32 of a pixel


def test_a_quarter_turn_counter_clockwise_lets_what_faces_right_face_up():
    size = 9
    label = np.broadcast_to(np.array([0.6, 0, 0.8], np.float32), (size, size, 3)).copy()
    moved = moved_by("normals", label, degrees=90)
    np.testing.assert_allclose(moved[4, 4], [0, -0.6, 0.8], atol=1e-6)  # y points down
    mirrored_first = moved_by("normals", label, flip=True, degrees=90)
    np.testing.assert_allclose(mirrored_first[4, 4], [0, 0.6, 0.8], atol=1e-6)
    image = np.zeros((size, size), np.uint8)
    image[4, 8] = 1  # a mark at the right ...
    assert moved_by("sal", image, degrees=90)[0, 4] == 1  # ... comes up too
    assert moved_by("sal", image, flip=True, degrees=90)[8, 4] == 1


@pytest.mark.parametrize("move", ["warp", "resize up", "resize down"])
def test_ignored_normals_do_not_bend_their_neighbours(move):
    task, size = TASKS["normals"](), 40
    direction = np.array([0.48, -0.6, 0.64], np.float32)
    label = np.broadcast_to(direction, (size, size, 3)).copy()
    label[10:20, 15:30] = IGNORE
    label[30, ::3] = IGNORE
    if move == "warp":
        angle = math.radians(17)
        x, y, z = direction
        direction = np.array([x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle), z])
        moved = moved_by("normals", label, degrees=17, scale=1.2)
    else:
        moved = task.resize(label, (70, 90) if move == "resize up" else (23, 31))
    moved = finished("normals", moved)
    valid = known(moved)
    assert 0.5 < valid.mean() < 0.95
    np.testing.assert_allclose(moved[valid], np.broadcast_to(direction, moved[valid].shape), atol=STEP)
    assert np.all(moved[~valid] == IGNORE)


def test_compact_normals_give_the_loss_and_the_scores_of_the_vectors():
    task, rng = TASKS["normals"](), np.random.default_rng(0)
    label, logits = sphere(64), rng.normal(size=(1, 64, 64, 3)).astype(np.float32)
    assert (label == IGNORE).any()
    compact, mask = task.to_device_format(label)[None], np.ones(1, bool)
    assert float(task.loss(logits, compact)) == pytest.approx(float(task.loss(logits, label[None])), abs=STEP)
    scores = [
        task.compute_metrics(
            {name: np.asarray(value, np.float64) for name, value in task.metric_sums(logits, given, mask).items()}
        )
        for given in (compact, label[None])
    ]
    assert scores[0]["mean"] == pytest.approx(scores[1]["mean"], abs=math.degrees(LENGTH))
    # A zero prediction and a perfect one: every code is decoded to the right end.
    assert float(task.loss(label[None], compact)) == pytest.approx(0, abs=STEP)


def test_normals_without_direction_are_ignored_at_last():
    label = np.array([[[0, 0, 0], [0, 3, 4]]], np.float32)
    np.testing.assert_allclose(finished("normals", label), [[[IGNORE] * 3, [0, 0.6, 0.8]]], atol=STEP)


def test_depth_shrinks_where_the_image_grows():
    label = np.full((9, 9), 3.0, np.float32)
    label[4, 4] = IGNORE
    moved = moved_by("depth", label, scale=1.5)
    assert moved.dtype == np.float32
    assert moved[0, 0] == 2
    assert moved[4, 4] == IGNORE
    assert set(np.unique(moved)) == {2, IGNORE}


def test_a_human_part_map_without_parts_says_nothing():
    task = TASKS["human_parts"]()
    background = np.zeros((4, 4), np.uint8)
    assert np.all(task.to_device_format(background) == IGNORE)
    warped = background.copy()
    warped[0] = IGNORE
    assert np.all(task.to_device_format(warped) == IGNORE)
    warped[3, 3] = 1
    np.testing.assert_array_equal(task.to_device_format(warped), warped)
    np.testing.assert_array_equal(TASKS["semseg"]().to_device_format(background), background)


def test_pictures_of_classes_use_the_colours_of_pascal_voc():
    colours = {
        0: (0, 0, 0),
        1: (128, 0, 0),
        2: (0, 128, 0),
        8: (64, 0, 0),
        15: (192, 128, 128),
        20: (0, 64, 128),
        IGNORE: (224, 224, 192),
    }
    label = np.array([list(colours)], np.uint8)
    np.testing.assert_array_equal(TASKS["semseg"]().visualize(label)[0], list(colours.values()))
    logits = np.eye(21)[label[:, :-1]]
    np.testing.assert_array_equal(TASKS["semseg"]().visualize(logits)[0], list(colours.values())[:-1])


@pytest.mark.parametrize("name", tiny_data.TASKS)
@pytest.mark.filterwarnings("error")
def test_pictures(name):
    task, label = TASKS[name](), examples()[name]
    label[:5] = IGNORE
    picture = task.visualize(label)
    assert picture.shape == (33, 33, 3)
    assert picture.dtype == np.uint8
    assert np.all(picture[:5] == (224, 224, 192))
    assert len(np.unique(picture[5:].reshape(-1, 3), axis=0)) > 1
    logits = np.random.default_rng(0).normal(size=(33, 33, task.channels)).astype(np.float32) * 1000
    shown = task.visualize(logits)
    assert shown.shape == (33, 33, 3)
    assert shown.dtype == np.uint8
    assert not np.any(np.all(shown == (224, 224, 192), axis=-1))


def test_pictures_of_label_and_of_a_perfect_prediction_are_alike():
    for name, label in examples().items():
        logits = {
            "semseg": lambda label: np.eye(21)[label],
            "human_parts": lambda label: np.eye(7)[label],
            "normals": lambda label: 5 * label,
            "depth": lambda label: label[..., None],
        }.get(name, lambda label: (200.0 * label - 100)[..., None])(label)
        there = known(label) if name == "normals" else label != IGNORE
        np.testing.assert_array_equal(
            TASKS[name]().visualize(label)[there], TASKS[name]().visualize(logits)[there], err_msg=name
        )


def test_normal_pictures_are_what_label_files_hold(tmp_path):
    task = TASKS["normals"]()
    again = decode("normals", save(tmp_path / "n.png", task.visualize(sphere())))
    inside = known(sphere())
    np.testing.assert_allclose(again[inside], sphere()[inside], atol=1 / 255 + 1e-6)


def test_importing_tasks_needs_neither_torch_nor_tensorflow():
    code = "import sys, mtlora_jax.tasks; print([name for name in ('torch', 'tensorflow') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
