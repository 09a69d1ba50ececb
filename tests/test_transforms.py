import cv2
import numpy as np
import pytest

from mtlora_jax.data.transforms import Augmentation, augment, flip, resize, warp
from mtlora_jax.errors import UserError
from mtlora_jax.tasks import IGNORE, make_tasks

TASKS = make_tasks(["semseg", "human_parts", "sal", "normals", "edge", "depth"])


def random_example(seed=0, size=(40, 56)):
    """Noise: every pixel differs from its neighbours, so that a wrong interpolation shows."""
    rng = np.random.default_rng(seed)
    normals = rng.normal(size=(*size, 3)).astype(np.float32)
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    normals[rng.random(size) < 0.2] = IGNORE
    return {
        "image_id": "noise",
        "image": rng.integers(0, 256, (*size, 3), np.uint8),
        "semseg": rng.choice(np.array([0, 3, 20, IGNORE], np.uint8), size),
        "human_parts": rng.choice(np.array([0, 6, IGNORE], np.uint8), size),
        "sal": rng.integers(0, 2, size, np.uint8),
        "edge": rng.integers(0, 2, size, np.uint8),
        "depth": rng.choice(np.array([1.5, 8, IGNORE], np.float32), size),
        "normals": normals,
    }


def square_example(size=(80, 120)):
    """A white square, off the centre, and its mask."""
    mask = np.zeros(size, np.uint8)
    mask[20:50, 60:90] = 1
    normals = np.full((*size, 3), IGNORE, np.float32)
    normals[mask > 0] = (0, 0, 1)
    example = {"image": np.repeat(mask[..., None] * 255, 3, axis=-1), "image_id": "square", "normals": normals}
    return (
        example
        | {name: mask for name in ("semseg", "human_parts", "sal", "edge")}
        | {"depth": np.where(mask, 2, IGNORE).astype(np.float32)}
    )


def assert_equal(actual, expected):
    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(actual[key], value, err_msg=key)


def test_flip_moves_columns_and_turns_normals():
    example = random_example()
    flipped = flip(example, TASKS)
    for name in ("image", "semseg", "human_parts", "sal", "edge", "depth"):
        np.testing.assert_array_equal(flipped[name], example[name][:, ::-1])
    valid = np.all(example["normals"] != IGNORE, axis=-1)
    np.testing.assert_array_equal(flipped["normals"][:, ::-1][valid], example["normals"][valid] * (-1, 1, 1))
    assert np.all(flipped["normals"][:, ::-1][~valid] == IGNORE)


def test_flip_twice_is_identity():
    example = random_example()
    assert_equal(flip(flip(example, TASKS), TASKS), example)


def test_no_rotation_and_no_zoom_is_identity():
    example = random_example()
    still = warp(example, TASKS, degrees=0, scale=1)
    np.testing.assert_allclose(still.pop("normals"), example.pop("normals"), atol=1e-6)
    assert_equal(still, example)


def test_half_turn_is_exact():
    """180 degrees map pixels onto pixels only if the centre of rotation is the centre of the image."""
    example = random_example()
    turned = warp(example, TASKS, degrees=180, scale=1)
    for name in ("semseg", "human_parts", "sal", "edge", "depth"):
        np.testing.assert_array_equal(turned[name], example[name][::-1, ::-1], err_msg=name)
    # OpenCV interpolates images at 1/32 of a pixel, where half a turn is one of the grid points.
    np.testing.assert_array_equal(turned["image"], example["image"][::-1, ::-1])


def test_mirror_then_rotate_is_rotate_back_then_mirror():
    example = random_example()
    one = warp(flip(example, TASKS), TASKS, degrees=13, scale=1.1)
    other = flip(warp(example, TASKS, degrees=-13, scale=1.1), TASKS)
    # Positions are rounded to 1/32 pixel: a few values on the rounding edge may differ.
    for name in ("semseg", "sal", "depth"):
        assert np.mean(one[name] != other[name]) < 0.01, name
    assert np.mean(np.abs(one["image"].astype(int) - other["image"])) < 4


def test_rotation_is_counter_clockwise_and_scale_above_one_enlarges():
    example = square_example()
    rows, columns = np.nonzero(warp(example, TASKS, degrees=90, scale=1)["semseg"] == 1)
    # The square sits right of and above the centre (39.5, 59.5), at (-5, +15); a quarter turn to the left brings it to (-15, -5).
    assert abs(rows.mean() - 39.5 + 15) < 0.6
    assert abs(columns.mean() - 59.5 + 5) < 0.6
    area = [np.sum(warp(example, TASKS, degrees=0, scale=scale)["semseg"] == 1) for scale in (0.75, 1.0, 1.25)]
    np.testing.assert_allclose(area, 900 * np.array([0.75, 1, 1.25]) ** 2, rtol=0.06)  # one pixel of 22 to 37 per side


@pytest.mark.parametrize("seed", range(6))
def test_image_and_labels_stay_aligned(seed):
    example = augment(square_example(), TASKS, Augmentation(), np.random.default_rng(seed))
    example = resize(example, TASKS, (64, 72))
    white = example["image"][..., 0] > 127
    assert white.sum() > 50
    for name in ("semseg", "sal", "edge"):
        label = example[name] == 1
        assert not np.any(label & ~cv2.dilate(white.astype(np.uint8), np.ones((3, 3))).astype(bool)), name
        assert not np.any(white & ~cv2.dilate(label.astype(np.uint8), np.ones((3, 3))).astype(bool)), name
    known = np.all(example["normals"] != IGNORE, axis=-1)
    assert np.mean(known != white) < 0.02
    np.testing.assert_allclose(example["normals"][known] @ (0, 0, 1), 1, atol=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_labels_hold_no_value_that_was_not_there(seed):
    example = random_example(seed)
    moved = resize(augment(example, TASKS, Augmentation(), np.random.default_rng(seed)), TASKS, (33, 47))
    for name in ("semseg", "human_parts", "sal", "edge"):
        assert set(np.unique(moved[name])) <= {*np.unique(example[name]), IGNORE}, name
        assert moved[name].dtype == np.uint8
        assert moved[name].shape == (33, 47)
    normals = moved["normals"]
    known = np.all(normals != IGNORE, axis=-1)
    assert np.all(normals[~known] == IGNORE)
    assert 0 < known.mean() < 1
    np.testing.assert_allclose(np.linalg.norm(normals[known], axis=-1), 1, atol=1e-5)


def test_outside_is_ignored_and_black():
    example = square_example() | {"semseg": np.zeros((80, 120), np.uint8), "image": np.full((80, 120, 3), 200, np.uint8)}
    small = warp(example, TASKS, degrees=0, scale=0.5)
    for name in TASKS:
        assert np.all(small[name][0, 0] == IGNORE), name
    assert np.all(small["semseg"][25:55, 35:85] == 0)
    assert np.all(small["image"][0, 0] == 0)
    assert np.all(small["image"][25:55, 35:85] == 200)


def test_ignored_stays_ignored():
    ignored = {name: np.full_like(label, IGNORE) for name, label in random_example().items() if name in TASKS}
    moved = resize(augment(random_example() | ignored, TASKS, Augmentation(), np.random.default_rng(1)), TASKS, (32, 32))
    for name in TASKS:
        assert np.all(moved[name] == IGNORE), name


def test_cubic_overshoot_is_clipped():
    """A cubic spline leaves [0, 255] beside a step; in bytes that would wrap around to the other colour."""
    example = square_example()
    image = resize(example, TASKS, (160, 240))["image"]
    exact = cv2.resize(example["image"].astype(np.float32), (240, 160), interpolation=cv2.INTER_CUBIC)
    assert exact.min() < -5
    assert exact.max() > 260
    np.testing.assert_allclose(image, np.clip(exact, 0, 255), atol=1)


def test_resize_gives_the_size_asked_for_and_keeps_the_rest():
    example = random_example()
    resized = resize(example, TASKS, (24, 80))
    assert resized["image"].shape == (24, 80, 3)
    assert {name: resized[name].shape[:2] for name in TASKS} == {name: (24, 80) for name in TASKS}
    assert resized["image_id"] == "noise"
    assert_equal(example, random_example())  # the example given is left alone


def test_same_seed_same_result_other_seed_other_result():
    def run(seed):
        return augment(random_example(), TASKS, Augmentation(), np.random.default_rng(seed))

    assert_equal(run(5), run(5))
    assert np.any(run(5)["image"] != run(6)["image"])


def test_random_numbers_are_uniform_in_their_ranges(monkeypatch):
    drawn = []
    monkeypatch.setattr("mtlora_jax.data.transforms.warp", lambda example, tasks, degrees, scale: drawn.append((degrees, scale)) or example)
    monkeypatch.setattr("mtlora_jax.data.transforms.flip", lambda example, tasks: flips.append(1) or example)
    flips = []
    rng = np.random.default_rng(0)
    for _ in range(2000):
        augment({}, {}, Augmentation(), rng)
    low, high = np.min(drawn, axis=0), np.max(drawn, axis=0)
    np.testing.assert_allclose(low, (-20, 0.75), rtol=0.01)
    np.testing.assert_allclose(high, (20, 1.25), rtol=0.01)
    assert np.all(low >= (-20, 0.75))
    assert np.all(high <= (20, 1.25))
    np.testing.assert_allclose(np.mean(drawn, axis=0), (0, 1), atol=4 * 40 / np.sqrt(12 * 2000))  # four standard errors
    assert abs(len(flips) / 2000 - 0.5) < 4 * 0.5 / np.sqrt(2000)


@pytest.mark.parametrize("wrong", [{"flip": 1.5}, {"degrees": -1}, {"scale": (1.2, 0.8)}, {"scale": (0, 1)}, {"scale": (1,)}])
def test_augmentation_refuses_what_makes_no_sense(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        Augmentation(**wrong)
