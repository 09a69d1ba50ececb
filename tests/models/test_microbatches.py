"""A batch processed in parts gives the update of the whole batch."""

import functools

import jax
import jax.numpy as jnp
import micro
import numpy as np
import optax
import pytest
from flax import nnx
from jobs import call_with_devices

from mtlora_jax import model_factory
from mtlora_jax.defaults import default
from mtlora_jax.errors import UserError
from mtlora_jax.experiment import check_encoder_microbatches
from mtlora_jax.models import parameters
from mtlora_jax.models.layers import dropout
from mtlora_jax.models.remat import in_microbatches
from mtlora_jax.models.task_features import TaskFeatures
from mtlora_jax.tasks.losses import IGNORE
from mtlora_jax.train.optimizer import make_schedule
from mtlora_jax.train.step import create_state, train_step


@pytest.fixture(scope="module")
def steps():
    """{parts: (state after a step, metrics, bytes of temporaries)}; the optimizer subtracts just the gradient."""
    architecture = micro.architecture(stages=1, tasks=("semseg", "sal", "normals"), dropout=0.0)
    architecture["backbone"]["drop_path_rate"] = 0.0
    tasks = micro.tasks_of(architecture)
    model = micro.holding(architecture, micro.random_arrays(architecture))
    graph, trainable, frozen, stats = parameters.partition(model, model_factory.method_of(architecture).is_trainable)
    batch = {name: value for name, value in micro.random_batch(4).items() if name != "mask"}
    # Images differ in the number of valid and of salient pixels: means of means would differ from the mean.
    batch["semseg"][0], batch["normals"][1] = IGNORE, IGNORE
    batch["sal"][2, :20], batch["sal"][3] = IGNORE, 1
    optimizer = optax.sgd(1.0)
    results = {}
    for parts in (1, 4):
        step = functools.partial(
            train_step,
            graph=graph,
            tasks=tasks,
            weights={name: task.weight for name, task in tasks.items()},
            optimizer=optimizer,
        )
        state = create_state(trainable, stats, optimizer)
        compiled = (
            micro.jit(functools.partial(step, encoder_microbatches=parts))
            .lower(state, frozen, batch, jax.random.key(0))
            .compile()
        )
        results[parts] = (
            *jax.device_get(compiled(state, frozen, batch, jax.random.key(0))),
            compiled.memory_analysis().temp_size_in_bytes,
        )
    return jax.device_get(trainable), results


def test_four_parts_give_the_update_of_the_whole_batch(steps):
    before, results = steps
    (whole, metrics, _), (parts, other_metrics, _) = results[1], results[4]
    for name, value in metrics.items():
        np.testing.assert_allclose(other_metrics[name], value, rtol=1e-5, err_msg=name)
    for path, value in whole.batch_stats.items():
        np.testing.assert_allclose(parts.batch_stats[path], value, rtol=1e-5, atol=1e-6, err_msg=path)
    gradients, others = ({path: before[path] - state.trainable[path] for path in before} for state in (whole, parts))
    norm = float(metrics["grad_norm"])
    assert norm == pytest.approx(
        np.sqrt(sum(np.sum(np.square(g, dtype=np.float64)) for g in gradients.values())), rel=1e-4
    )
    for path, gradient in gradients.items():
        assert np.linalg.norm(others[path] - gradient) <= 1e-5 * max(np.linalg.norm(gradient), 0.01 * norm), path


def test_it_takes_less_memory(steps):
    _, results = steps
    assert results[4][2] < 0.8 * results[1][2]


class Doubling(nnx.Module):
    """The image times 2 for the shared stream, and times a number of its own for each of two tasks; with dropout."""

    def __init__(self):
        self.factor = nnx.Param(jnp.asarray(2.0))

    def __call__(self, images: jax.Array, rngs: nnx.Rngs | None) -> list[TaskFeatures]:
        shared = dropout(self.factor[...] * images, 0.5, rngs)
        return [TaskFeatures(shared), TaskFeatures(shared, jnp.stack([shared, 3 * shared]))]


IMAGES = np.arange(6 * 2 * 2 * 3, dtype=np.float32).reshape(6, 2, 2, 3)


@pytest.mark.parametrize("parts", [1, 2, 3, 6])
def test_features_come_in_the_order_of_the_images(parts):
    first, second = in_microbatches(Doubling.__call__, Doubling(), IMAGES, None, parts)
    np.testing.assert_array_equal(first.shared, 2 * IMAGES)
    assert first.tasks is None
    np.testing.assert_array_equal(second.tasks, np.stack([2 * IMAGES, 6 * IMAGES]))


def test_each_part_has_draws_of_its_own():
    rngs = nnx.Rngs(dropout=0)
    ones = np.ones((4, 8, 8, 3), np.float32)
    kept = np.asarray(in_microbatches(Doubling.__call__, Doubling(), ones, rngs, 4)[0].shared) > 0
    assert len({image.tobytes() for image in kept}) == 4
    # The counter of random numbers has moved, so a second call draws others.
    again = np.asarray(in_microbatches(Doubling.__call__, Doubling(), ones, rngs, 4)[0].shared) > 0
    assert not {image.tobytes() for image in kept} & {image.tobytes() for image in again}


def test_no_image_changes_its_device():
    told = call_with_devices(4, __file__, "print_program")
    assert "while" in told
    for name in ("all-gather", "all-to-all", "collective-permute", "all-reduce"):
        assert name not in told


def print_program() -> None:
    """Prints what four devices do with a batch of 16 images in two parts."""
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    forward = jax.jit(
        lambda images: in_microbatches(Doubling.__call__, Doubling(), images, None, 2)[0],
        in_shardings=split,
        out_shardings=split,
    )
    print(forward.lower(jax.ShapeDtypeStruct((16, 8, 8, 3), jnp.float32)).compile().as_text())


@pytest.mark.parametrize(("parts", "batch_size", "devices"), [(1, 4, 1), (4, 32, 8), (3, 12, 4)])
def test_parts_that_fit(parts, batch_size, devices):
    check_encoder_microbatches(parts, batch_size, devices)


@pytest.mark.parametrize(("parts", "batch_size", "devices"), [(0, 32, 1), (-2, 32, 1), (3, 32, 1), (8, 32, 8)])
def test_parts_must_divide_the_batch_of_each_device(parts, batch_size, devices):
    with pytest.raises(
        UserError, match=rf"encoder_microbatches = {parts} must .* divide the {batch_size // devices} images"
    ):
        check_encoder_microbatches(parts, batch_size, devices)


def test_the_learning_rate_follows_the_batch_size_once():
    """The batch is all images of an update, for any number of parts and devices; a schedule step is an update."""
    recipe = default().optimizer.to_dict() | {"warmup_epochs": 0}
    for batch_size in (32, 64, 512):
        assert float(make_schedule(recipe, batch_size, 10, 100)(0)) == pytest.approx(5e-4 * batch_size / 512, rel=1e-6)
