"""Joint transforms of image and labels: hand-computed cases, SciPy and OpenCV used independently, and properties."""

import cv2
import numpy as np
import pytest
import scipy.ndimage

from mtlora_jax.data import transforms
from mtlora_jax.data.transforms import Augmentation, resize
from mtlora_jax.errors import UserError
from mtlora_jax.tasks import IGNORE, make_tasks
from mtlora_jax.tasks.affine import AffineTransform
from mtlora_jax.tasks.normals import to_vectors

TASKS = make_tasks(["semseg", "human_parts", "sal", "normals", "edge", "depth"])
NEAREST = ("semseg", "human_parts", "sal", "edge", "depth")
STEP = 1 / 60000  # error of a component of a normal in its compact form: half of 1/32000, and rounding of float32


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


def warp(example, size=None, **transform):
    return transforms.warp(example, TASKS, AffineTransform(**transform), size or example["image"].shape[:2])


def assert_equal(actual, expected):
    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(actual[key], value, err_msg=key)


def assert_same_normals(actual, expected):
    """Compare normals; `actual` is in its compact form."""
    np.testing.assert_allclose(to_vectors(actual), expected, atol=STEP)


def test_mirroring_moves_columns_and_turns_normals():
    example = random_example()
    flipped = warp(example, flip=True)
    for name in ("image", *NEAREST):
        np.testing.assert_array_equal(flipped[name], example[name][:, ::-1], err_msg=name)
    expected = np.where(example["normals"] == IGNORE, IGNORE, example["normals"] * (-1, 1, 1))
    assert_same_normals(flipped["normals"], expected[:, ::-1])


def test_no_motion_is_identity():
    example = random_example()
    still = warp(example)
    assert_same_normals(still.pop("normals"), example.pop("normals"))
    assert_equal(still, example)


def test_half_turn_is_exact():
    """180 degrees map pixels onto pixels only if the centre of rotation is the centre of the image."""
    example = random_example()
    turned = warp(example, degrees=180)
    for name in ("image", *NEAREST):
        np.testing.assert_array_equal(turned[name], example[name][::-1, ::-1], err_msg=name)
    expected = np.where(example["normals"] == IGNORE, IGNORE, example["normals"] * (-1, -1, 1))
    assert_same_normals(turned["normals"], expected[::-1, ::-1])


def test_mirror_then_rotate_is_rotate_back_then_mirror():
    example = random_example()
    one = warp(example, flip=True, degrees=13, scale=1.1)
    turned = warp(example, degrees=-13, scale=1.1)
    turned["normals"] = example["normals"]  # a compact label cannot be warped again
    other = warp(turned, flip=True)
    # Positions are rounded to 1/32 pixel: a few values on the rounding edge may differ.
    for name in ("semseg", "sal"):
        assert np.mean(one[name] != other[name]) < 0.01, name
    assert np.mean(np.abs(one["image"].astype(int) - other["image"])) < 4


def test_rotation_is_counter_clockwise_and_scale_above_one_enlarges():
    example = square_example()
    rows, columns = np.nonzero(warp(example, degrees=90)["semseg"] == 1)
    # The square is right of and above the centre (39.5, 59.5), at (-5, +15); a quarter turn to the left moves it to
    # (-15, -5).
    assert abs(rows.mean() - 39.5 + 15) < 0.6
    assert abs(columns.mean() - 59.5 + 5) < 0.6
    area = [np.sum(warp(example, scale=scale)["semseg"] == 1) for scale in (0.75, 1.0, 1.25)]
    np.testing.assert_allclose(area, 900 * np.array([0.75, 1, 1.25]) ** 2, rtol=0.06)  # one pixel of 22 to 37 per side


@pytest.mark.parametrize(
    ("transform", "size"),
    [
        ({"degrees": 17.0, "scale": 1.1}, (40, 56)),
        ({"degrees": -12.0, "scale": 0.8, "flip": True}, (40, 56)),
        ({"degrees": 20.0, "scale": 1.25}, (64, 64)),
        ({"flip": True}, (56, 81)),
    ],
)
def test_labels_come_from_where_scipy_finds_them(transform, size):
    """The map from its definition, point by point: mirror, turn and zoom about the centre, stretch edge to edge."""
    example = random_example()
    height, width = example["sal"].shape
    rows, columns = np.mgrid[: size[0], : size[1]]
    x = (columns + 0.5) * width / size[
        1
    ] - width / 2  # of the target's pixel, seen from the centre of the unstretched image
    y = (rows + 0.5) * height / size[0] - height / 2
    angle, scale = np.deg2rad(transform.get("degrees", 0)), transform.get("scale", 1)
    source_x = (x * np.cos(angle) - y * np.sin(angle)) / scale * (-1 if transform.get("flip") else 1) + width / 2 - 0.5
    source_y = (x * np.sin(angle) + y * np.cos(angle)) / scale + height / 2 - 0.5
    moved = warp(example, size, **transform)
    # Half-way between two pixels the nearest is a matter of rounding.
    clear = (np.abs(source_x % 1 - 0.5) > 0.01) & (np.abs(source_y % 1 - 0.5) > 0.01)
    assert clear.mean() > 0.9
    inside = (source_x > -0.5) & (source_x < width - 0.5) & (source_y > -0.5) & (source_y < height - 0.5)
    for name in ("semseg", "human_parts", "sal", "edge"):
        expected = np.where(
            inside, scipy.ndimage.map_coordinates(example[name], [source_y, source_x], order=0, mode="nearest"), IGNORE
        )
        np.testing.assert_array_equal(moved[name][clear], expected[clear], err_msg=name)


@pytest.mark.parametrize("seed", range(6))
def test_image_and_labels_stay_aligned(seed):
    transform = Augmentation().draw(np.random.default_rng(seed))
    example = transforms.warp(square_example(), TASKS, transform, (64, 72))
    white = example["image"][..., 0] > 127
    assert white.sum() > 50
    for name in ("semseg", "sal", "edge"):
        label = example[name] == 1
        assert not np.any(label & ~cv2.dilate(white.astype(np.uint8), np.ones((3, 3))).astype(bool)), name
        assert not np.any(white & ~cv2.dilate(label.astype(np.uint8), np.ones((3, 3))).astype(bool)), name
    normals = to_vectors(example["normals"])
    known = np.all(normals != IGNORE, axis=-1)
    assert np.mean(known != white) < 0.02
    np.testing.assert_allclose(normals[known] @ (0, 0, 1), 1, atol=STEP)


@pytest.mark.parametrize("seed", range(4))
def test_labels_hold_no_value_that_was_not_there(seed):
    example = random_example(seed)
    transform = Augmentation().draw(np.random.default_rng(seed))
    moved = transforms.warp(example, TASKS, transform, (33, 47))
    for name in ("semseg", "human_parts", "sal", "edge"):
        assert set(np.unique(moved[name])) <= {*np.unique(example[name]), IGNORE}, name
        assert moved[name].dtype == np.uint8
        assert moved[name].shape == (33, 47)
    depths = [1.5 / np.float32(transform.scale), 8 / np.float32(transform.scale), IGNORE]
    assert np.isclose(moved["depth"][..., None], depths, rtol=1e-6).any(axis=-1).all()
    normals = to_vectors(moved["normals"])
    known = np.all(normals != IGNORE, axis=-1)
    assert np.all(normals[~known] == IGNORE)
    assert 0 < known.mean() < 1
    np.testing.assert_allclose(np.linalg.norm(normals[known], axis=-1), 1, atol=2 * STEP)


def test_outside_is_ignored_and_black():
    example = square_example() | {
        "semseg": np.zeros((80, 120), np.uint8),
        "image": np.full((80, 120, 3), 200, np.uint8),
    }
    small = warp(example, scale=0.5)
    for name in TASKS:
        assert np.all(small[name][0, 0] == IGNORE), name
    assert np.all(small["semseg"][25:55, 35:85] == 0)
    assert np.all(small["image"][0, 0] == 0)
    assert np.all(small["image"][25:55, 35:85] == 200)


def test_ignored_stays_ignored():
    ignored = {name: np.full_like(label, IGNORE) for name, label in random_example().items() if name in TASKS}
    example = random_example() | ignored
    for moved in (warp(example, (32, 32), flip=True, degrees=9, scale=1.2), resize(example, TASKS, (32, 32))):
        for name in TASKS:
            assert np.all(moved[name] == IGNORE), name


@pytest.mark.parametrize("move", ["warp", "resize"])
def test_cubic_overshoot_is_clipped(move):
    """A cubic spline leaves [0, 255] beside a step; in bytes that would wrap around to the other colour."""
    example = square_example()
    floats = example["image"].astype(np.float32)
    if move == "warp":
        image = warp(example, degrees=10)["image"]
        exact = cv2.warpAffine(floats, cv2.getRotationMatrix2D((59.5, 39.5), 10, 1), (120, 80), flags=cv2.INTER_CUBIC)
    else:
        image = resize(example, TASKS, (160, 240))["image"]
        exact = cv2.resize(floats, (240, 160), interpolation=cv2.INTER_CUBIC)
    assert exact.min() < -5
    assert exact.max() > 260
    np.testing.assert_allclose(image, np.clip(exact, 0, 255), atol=1)


def test_evaluation_resizes_as_the_reference():
    """Image cubic, labels by OpenCV's nearest neighbour, which takes floor(i * H / H'), by hand."""
    example = random_example()
    small = resize(example, TASKS, (25, 70))
    rows, columns = np.floor(np.arange(25) * 40 / 25).astype(int), np.floor(np.arange(70) * 56 / 70).astype(int)
    for name in NEAREST:
        np.testing.assert_array_equal(small[name], example[name][rows][:, columns], err_msg=name)
    np.testing.assert_array_equal(small["image"], cv2.resize(example["image"], (70, 25), interpolation=cv2.INTER_CUBIC))


def test_normals_are_interpolated_by_cubic_splines_of_their_components():
    """Against OpenCV in float64, where all values are known."""
    vectors = scipy.ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(40, 56, 3)), (4, 4, 0)) + (0, 0, 0.1)
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    exact = cv2.resize(vectors, (70, 25), interpolation=cv2.INTER_CUBIC)
    found = resize(random_example() | {"normals": vectors.astype(np.float32)}, TASKS, (25, 70))["normals"]
    assert_same_normals(found, exact / np.linalg.norm(exact, axis=-1, keepdims=True))


def test_resize_gives_the_size_asked_for_and_keeps_the_rest():
    example = random_example()
    resized = resize(example, TASKS, (24, 80))
    assert resized["image"].shape == (24, 80, 3)
    assert {name: resized[name].shape[:2] for name in TASKS} == {name: (24, 80) for name in TASKS}
    assert resized["image_id"] == "noise"
    assert_equal(example, random_example())  # the input example is not changed


def test_labels_are_compact():
    """In the form that is sent to the device."""
    for moved in (warp(random_example()), resize(random_example(), TASKS, (24, 80))):
        types = {name: moved[name].dtype.name for name in ("image", *TASKS)}
        assert types == dict.fromkeys(("image", "semseg", "human_parts", "sal", "edge"), "uint8") | {
            "normals": "uint16",
            "depth": "float32",
        }


def test_same_seed_same_motion_other_seed_other_motion():
    first, again, other = (Augmentation().draw(np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert first == again != other


def test_random_numbers_are_uniform_in_their_ranges():
    rng = np.random.default_rng(0)
    samples = [Augmentation().draw(rng) for _ in range(2000)]
    drawn = [(transform.degrees, transform.scale) for transform in samples]
    low, high = np.min(drawn, axis=0), np.max(drawn, axis=0)
    np.testing.assert_allclose(low, (-20, 0.75), rtol=0.01)
    np.testing.assert_allclose(high, (20, 1.25), rtol=0.01)
    assert np.all(low >= (-20, 0.75))
    assert np.all(high <= (20, 1.25))
    np.testing.assert_allclose(np.mean(drawn, axis=0), (0, 1), atol=4 * 40 / np.sqrt(12 * 2000))  # four standard errors
    assert abs(np.mean([transform.flip for transform in samples]) - 0.5) < 4 * 0.5 / np.sqrt(2000)


def test_discrete_scales_are_each_as_likely():
    rng = np.random.default_rng(0)
    augmentation = Augmentation(degrees=0, scale=(1.0, 1.2, 1.5), discrete_scales=True)
    samples = [augmentation.draw(rng) for _ in range(3000)]
    assert {transform.degrees for transform in samples} == {0}
    scales, counts = np.unique([transform.scale for transform in samples], return_counts=True)
    np.testing.assert_array_equal(scales, [1.0, 1.2, 1.5])
    assert np.all(np.abs(counts - 1000) < 4 * np.sqrt(3000 * 2 / 9))


@pytest.mark.parametrize(
    "wrong",
    [
        {"flip": 1.5},
        {"degrees": -1},
        {"scale": (1.2, 0.8)},
        {"scale": (0, 1)},
        {"scale": (1,)},
        {"scale": (1, 2, 3)},
        {"scale": (), "discrete_scales": True},
        {"scale": (1, -1), "discrete_scales": True},
    ],
)
def test_augmentation_refuses_what_makes_no_sense(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        Augmentation(**wrong)
