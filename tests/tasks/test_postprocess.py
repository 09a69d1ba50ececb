"""Predictions from logits, by hand."""

import numpy as np
import pytest

import mtlora_jax
from mtlora_jax.errors import UserError
from mtlora_jax.tasks import TASKS, make_tasks

LEAD = [(), (2,), (2, 3)]


def logits_of(task: str, lead: tuple[int, ...] = ()) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(*lead, 4, 5, TASKS[task]().channels)).astype(np.float32)


@pytest.mark.parametrize("task", ["semseg", "human_parts"])
def test_classes(task):
    found = mtlora_jax.postprocess(task, np.float32([[[0, 0, np.log(2)], [0, 100, -1000]]]))
    np.testing.assert_array_equal(found["labels"], [[2, 1]])
    assert found["labels"].dtype == np.uint8
    np.testing.assert_allclose(found["probabilities"], [[[0.25, 0.25, 0.5], [0, 1, 0]]], atol=1e-7)


@pytest.mark.parametrize("task", ["sal", "edge"])
def test_probabilities(task):
    found = mtlora_jax.postprocess(task, np.float32([[[0], [np.log(3)], [-1000]]]))
    np.testing.assert_allclose(found["probabilities"], [[0.5, 0.75, 0]], atol=1e-7)


def test_normals_have_length_one_and_face_the_viewer_where_there_is_none():
    found = mtlora_jax.postprocess("normals", np.float32([[[3, 0, -4], [0, 0, 0], [1e-3, 0, 0]]]))
    np.testing.assert_allclose(found["normals"], [[[0.6, 0, -0.8], [0, 0, 1], [1, 0, 0]]], atol=1e-7)


def test_depth_is_in_metres():
    np.testing.assert_array_equal(
        mtlora_jax.postprocess("depth", np.float32([[[1.5], [2]]]))["depth"], np.float32([[1.5, 2]])
    )


@pytest.mark.parametrize("lead", LEAD)
@pytest.mark.parametrize("task", TASKS)
def test_any_number_of_leading_axes(task, lead):
    logits = logits_of(task, lead)
    found = mtlora_jax.postprocess(task, logits)
    one = mtlora_jax.postprocess(make_tasks([task])[task], logits[(0,) * len(lead)])
    assert found.keys() == one.keys()
    for name, array in found.items():
        assert array.shape[: len(lead) + 2] == (*lead, 4, 5)
        assert array.dtype == (np.uint8 if name == "labels" else np.float32)
        np.testing.assert_allclose(array[(0,) * len(lead)], one[name], rtol=1e-6)


@pytest.mark.parametrize(
    ("task", "shape", "message"),
    [
        ("sal", (4, 5, 2), r"logits of sal must be \(\.\.\., H, W, C\) with C = 1; got \(4, 5, 2\)"),
        ("normals", (4, 3), r"logits of normals .* with C = 3; got \(4, 3\)"),
        ("semseg", (5, 3), r"logits of semseg .* with C classes; got \(5, 3\)"),
        ("segmentation", (4, 5, 3), "unknown task 'segmentation'"),
    ],
)
def test_wrong_logits(task, shape, message):
    with pytest.raises(UserError, match=message):
        mtlora_jax.postprocess(task, np.zeros(shape, np.float32))
