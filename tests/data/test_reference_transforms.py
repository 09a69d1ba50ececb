"""The reference's transforms, against OpenCV called as the reference is described, and cases by hand; in float64."""

import cv2
import numpy as np
import pytest
from test_transforms import random_example, square_example

from mtlora_jax.data import reference_transforms
from mtlora_jax.tasks import IGNORE, make_tasks
from mtlora_jax.tasks.affine import AffineTransform

TASKS = make_tasks(["semseg", "human_parts", "sal", "normals", "edge", "depth"])
CLASSES = ("semseg", "human_parts", "sal", "edge")
SIZE = (33, 47)
TRANSFORMS = [
    AffineTransform(True, 17.0, 0.8),
    AffineTransform(False, -20.0, 1.25),
    AffineTransform(True, 0.0, 1.0),
    AffineTransform(False, 5.0, 1.2),
]


def by_opencv(pixels, transform, flags):
    """Mirror, rotate around (w / 2, h / 2) with a border of zeros, resize; or the resize alone."""
    pixels = pixels.astype(float)
    if transform:
        pixels = pixels[:, ::-1].copy() if transform.flip else pixels
        height, width = pixels.shape[:2]
        around = cv2.getRotationMatrix2D((width / 2, height / 2), transform.degrees, transform.scale)
        pixels = cv2.warpAffine(pixels, around, (width, height), flags=flags)
    return cv2.resize(pixels, SIZE[::-1], interpolation=flags)


def run(example, transform):
    return (
        reference_transforms.warp(example, TASKS, transform, SIZE)
        if transform
        else reference_transforms.resize(example, TASKS, SIZE)
    )


@pytest.mark.parametrize("transform", [*TRANSFORMS, None])
def test_labels(transform):
    example = random_example()
    moved = run(example, transform)
    for name in CLASSES:
        assert moved[name].dtype == np.uint8
        np.testing.assert_array_equal(moved[name], by_opencv(example[name], transform, cv2.INTER_NEAREST), err_msg=name)
    metres = by_opencv(np.where(example["depth"] == IGNORE, 0, example["depth"]), transform, cv2.INTER_NEAREST)
    metres /= transform.scale if transform else 1
    assert np.any(metres == 0)
    np.testing.assert_allclose(moved["depth"], np.where(metres == 0, 255, metres), rtol=1e-7)


@pytest.mark.parametrize("transform", [*TRANSFORMS, None])
def test_image_wraps_around(transform):
    exact = by_opencv(random_example()["image"], transform, cv2.INTER_CUBIC)
    assert exact.min() < -5
    assert exact.max() > 260
    expected = np.where(exact < 0, np.ceil(exact), np.floor(exact)) % 256
    image = run(random_example(), transform)["image"]
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, expected)


def test_wrapping_by_hand():
    image = np.array([-256.0, -1.5, -0.9, 0.99, 254.9999, 256.0, 300.7])
    np.testing.assert_array_equal(reference_transforms.FINISH["image"](image), [0, 255, 0, 0, 254, 0, 44])


@pytest.mark.parametrize("transform", [*TRANSFORMS, None])
def test_normals(transform):
    example = random_example()
    vectors = np.where(example["normals"] == IGNORE, 0, example["normals"]).astype(float)
    if transform:
        vectors[..., 0] *= -1 if transform.flip else 1
        turn = np.exp(-1j * np.deg2rad(transform.degrees))  # y points down, so the other way round
        turned = (vectors[..., 0] + 1j * vectors[..., 1]) * turn
        vectors = np.stack([turned.real, turned.imag, vectors[..., 2]], axis=-1)
    vectors = by_opencv(vectors, transform, cv2.INTER_CUBIC)
    length = np.sqrt((vectors**2).sum(axis=-1, keepdims=True))
    found = run(example, transform)["normals"]
    np.testing.assert_array_equal(found == 255, np.broadcast_to(length == 0, found.shape))
    known = length[..., 0] > 1e-12
    np.testing.assert_allclose(found[known], (vectors / (length + np.finfo(float).eps))[known], atol=1e-7)


def test_what_comes_from_outside():
    white = square_example() | {
        "image": np.full((80, 120, 3), 200, np.uint8),
        "semseg": np.full((80, 120), 3, np.uint8),
    }
    moved = reference_transforms.warp(white, TASKS, AffineTransform(scale=0.5), (80, 120))
    for name in CLASSES:
        assert moved[name][0, 0] == 0, name
    assert np.all(moved["normals"][0, 0] == IGNORE)
    assert moved["depth"][0, 0] == IGNORE
    assert np.all(moved["image"][0, 0] == 0)
    assert np.all(moved["semseg"][25:55, 35:85] == 3)


def test_known_normals_reach_over_their_rim():
    """A cubic spline has a support of two pixels to each side."""
    normals = np.full((9, 9, 3), IGNORE, np.float32)
    normals[:, :3] = 0, 0, 1
    example = random_example(size=(9, 9)) | {"normals": normals}
    known = np.any(reference_transforms.resize(example, TASKS, (9, 18))["normals"] != IGNORE, axis=-1)
    # Column i of the target lies at i / 2 - 1 / 4 of the source, and column 2 is the last known: below 4 means i < 8.5.
    np.testing.assert_array_equal(known[0], np.arange(18) / 2 - 0.25 < 4)


@pytest.mark.parametrize(("parts", "expected"), [([], "ignored"), ([IGNORE], "kept"), ([3], "kept")])
def test_a_map_of_background_is_ignored(parts, expected):
    label = np.zeros((40, 56), np.uint8)
    label[10:30, 10:30] = [*parts, 0][0]
    found = reference_transforms.resize(random_example() | {"human_parts": label}, TASKS, (40, 56))["human_parts"]
    np.testing.assert_array_equal(found, label if expected == "kept" else np.full_like(label, IGNORE))


def test_the_example_given_is_left_alone():
    example = random_example()
    run(example, TRANSFORMS[0])
    for key, value in random_example().items():
        np.testing.assert_array_equal(example[key], value)
