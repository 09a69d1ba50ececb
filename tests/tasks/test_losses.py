"""Losses against cases worked out by hand and against independent float64 formulas."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_data

from mtlora_jax.tasks import TASKS, losses
from mtlora_jax.tasks.losses import IGNORE

SIZE = (3, 8, 10)  # B H W
FLOAT32 = 1e-6  # relative: a mean of a few hundred float32 terms
LOSSES = {name: jax.jit(jax.value_and_grad(TASKS[name]().loss)) for name in tiny_data.TASKS}


def random_case(name, seed=0, ignored=0.2):
    """Logits and label of one batch, as the task's loss takes them."""
    rng = np.random.default_rng(seed)
    channels = TASKS[name]().channels
    logits = rng.normal(size=(*SIZE, channels)).astype(np.float32) * 3
    label = {
        "semseg": lambda: rng.integers(0, 21, SIZE).astype(np.uint8),
        "human_parts": lambda: rng.integers(0, 7, SIZE).astype(np.uint8),
        "sal": lambda: (rng.random(SIZE) < 0.3).astype(np.uint8),
        "edge": lambda: (rng.random(SIZE) < 0.1).astype(np.uint8),
        "normals": lambda: unit(rng.normal(size=(*SIZE, 3))).astype(np.float32),
        "depth": lambda: rng.uniform(0.5, 10, SIZE).astype(np.float32),
    }[name]()
    label[rng.random(label.shape) < ignored] = IGNORE  # also single components of normals
    return logits, label


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def numpy_loss(name, logits, label):
    """The loss in float64, written from its equation with boolean indexing."""
    logits, valid = logits.astype(np.float64), label != IGNORE
    if name in ("semseg", "human_parts"):
        probability = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
        return -np.log(probability[valid][np.arange(valid.sum()), label[valid]]).mean()
    if name in ("sal", "edge"):
        probability, positive = 1 / (1 + np.exp(-logits[..., 0][valid])), label[valid] == 1
        weight = 0.95 if name == "edge" else 1 - positive.mean()
        return (
            -weight * np.log(probability[positive]).sum() - (1 - weight) * np.log(1 - probability[~positive]).sum()
        ) / valid.sum()
    prediction = unit(logits) if name == "normals" else logits[..., 0]
    return np.abs(prediction - label)[valid].mean()


@pytest.mark.parametrize("name", tiny_data.TASKS)
@pytest.mark.parametrize("ignored", [0, 0.4])
def test_equals_the_equation(name, ignored):
    logits, label = random_case(name, ignored=ignored)
    loss, _ = LOSSES[name](logits, label)
    assert loss.dtype == jnp.float32
    assert loss.shape == ()
    assert float(loss) == pytest.approx(numpy_loss(name, logits, label), rel=FLOAT32)


def test_cross_entropy_by_hand():
    logits = np.log(np.array([1, 3, 4], np.float32)).reshape(1, 1, 1, 3).repeat(3, axis=2)
    label = np.array([[[1, 2, IGNORE]]], np.uint8)  # probabilities 3/8 and 4/8
    assert float(losses.cross_entropy(logits, label)) == pytest.approx((math.log(8 / 3) + math.log(2)) / 2, rel=FLOAT32)


def test_balanced_cross_entropy_by_hand():
    logits = np.zeros((1, 1, 5, 1), np.float32)  # every pixel costs log 2
    label = np.array([[[1, 0, 0, 0, IGNORE]]], np.uint8)
    # Weight 3/4 on one positive, 1/4 on each of three negatives, over four valid pixels.
    assert float(losses.balanced_cross_entropy(logits, label)) == pytest.approx(
        (0.75 + 3 * 0.25) / 4 * math.log(2), rel=FLOAT32
    )
    assert float(losses.balanced_cross_entropy(logits, label, 0.95)) == pytest.approx(
        (0.95 + 3 * 0.05) / 4 * math.log(2), rel=FLOAT32
    )


def test_balance_is_that_of_the_whole_batch_not_of_each_image():
    logits = np.zeros((2, 1, 2, 1), np.float32)
    label = np.array([[[1, 1]], [[0, 0]]], np.uint8)
    assert float(losses.balanced_cross_entropy(logits, label)) == pytest.approx(0.5 * math.log(2), rel=FLOAT32)


def test_normals_by_hand():
    logits = np.array([3.0, 0.0, 4.0], np.float32).reshape(1, 1, 1, 3).repeat(2, axis=2)  # unit: 0.6, 0, 0.8
    label = np.array([[[[0, 0, 1], [IGNORE, 0, 1]]]], np.float32)
    assert float(losses.normals_l1(logits, label)) == pytest.approx((0.6 + 0 + 0.2 + 0 + 0.2) / 5, rel=FLOAT32)


def test_depth_by_hand():
    logits = np.array([2.0, 3.0, 1.0], np.float32).reshape(1, 1, 3, 1)
    label = np.array([[[1.5, 5.0, IGNORE]]], np.float32)
    assert float(losses.depth_l1(logits, label)) == pytest.approx((0.5 + 2) / 2, rel=FLOAT32)


@pytest.mark.parametrize("name", tiny_data.TASKS)
@pytest.mark.parametrize("logit", [0.0, 1.0])
def test_without_a_valid_pixel_loss_and_gradient_are_zero(name, logit):
    logits, label = random_case(name)
    logits = np.full_like(logits, logit)  # 0: normals without a direction
    loss, gradient = LOSSES[name](logits, np.full_like(label, IGNORE))
    assert float(loss) == 0
    assert not np.any(gradient)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("name", tiny_data.TASKS)
def test_ignored_pixels_count_nowhere(name):
    logits, label = random_case(name, ignored=0)
    label[:, 2:4] = IGNORE
    loss, gradient = LOSSES[name](logits, label)
    assert not np.any(gradient[:, 2:4])
    assert np.any(gradient[:, :2])
    disturbed = logits.copy()
    disturbed[:, 2:4] += 100
    assert float(LOSSES[name](disturbed, label)[0]) == float(loss)
    without, _ = LOSSES[name](np.delete(logits, [2, 3], axis=1), np.delete(label, [2, 3], axis=1))
    assert float(without) == pytest.approx(float(loss), rel=FLOAT32)


def test_cross_entropy_gradient():
    logits, label = random_case("semseg")
    _, gradient = LOSSES["semseg"](logits, label)
    valid = label != IGNORE
    expected = (np.asarray(jax.nn.softmax(logits)) - np.eye(256)[label][..., :21]) * valid[..., None] / valid.sum()
    np.testing.assert_allclose(gradient, expected, atol=1e-8)


@pytest.mark.parametrize(("name", "weight"), [("sal", 0.5), ("edge", 0.95)])
def test_extreme_logits_neither_overflow_nor_lose_the_gradient(name, weight):
    logits = np.array([-1e4, 1e4], np.float32).reshape(1, 1, 2, 1)
    label = np.array([[[1, 0]]], np.uint8)  # both as wrong as possible
    loss, gradient = LOSSES[name](logits, label)
    assert float(loss) == pytest.approx(1e4 / 2, rel=FLOAT32)
    np.testing.assert_allclose(gradient.ravel(), [-weight / 2, (1 - weight) / 2], rtol=FLOAT32)
    assert float(LOSSES[name](-logits, label)[0]) == 0
    logits = np.array([0, 1e4, -1e4, 0, 0, 0, 0], np.float32).reshape(1, 1, 1, 7)
    loss, gradient = LOSSES["human_parts"](logits, np.array([[[2]]], np.uint8))
    assert float(loss) == pytest.approx(2e4)
    np.testing.assert_allclose(gradient.ravel(), [0, 1, -1, 0, 0, 0, 0])


def test_normals_loss_sees_only_the_direction_and_survives_none():
    logits, label = random_case("normals")
    assert float(LOSSES["normals"](1000 * logits, label)[0]) == pytest.approx(
        float(LOSSES["normals"](logits, label)[0]), rel=FLOAT32
    )
    logits[0] = 0
    loss, gradient = LOSSES["normals"](logits, label)
    assert np.isfinite(float(loss))
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("name", tiny_data.TASKS)
def test_bfloat16_logits_are_summed_in_float32(name):
    logits, label = random_case(name)
    rounded = jnp.asarray(logits, jnp.bfloat16)
    loss, _ = LOSSES[name](rounded, label)
    assert loss.dtype == jnp.float32
    assert float(loss) == pytest.approx(numpy_loss(name, np.asarray(rounded, np.float32), label), rel=FLOAT32)
