"""BitFit per task: counts, results, independence of tasks, and the same numbers on any number of devices."""

import functools

import jax
import jax.numpy as jnp
import micro
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType
from jobs import call_with_devices
from paths import ROOT

from mtlora_jax import config as configs
from mtlora_jax import model_factory
from mtlora_jax.distributed import sharding
from mtlora_jax.errors import UserError
from mtlora_jax.methods.bitfit import TaskBias
from mtlora_jax.models import parameters
from mtlora_jax.train.optimizer import make_optimizer
from mtlora_jax.train.step import create_state, train_step

RECIPE = {"weight_decay": 0.0, "clip_norm": 1e9, "b1": 0.9, "b2": 0.999}
RECIPE["eps"] = 1.0  # so large that a step is nearly proportional to the gradient, which does not amplify rounding
STEPS = 3


def trained_parts(architecture, seed=0):
    """(graph, trainable, frozen, batch statistics) of a new model whose frozen biases are not zero."""
    model = micro.fresh(architecture)
    rng = np.random.default_rng(seed)
    for path, variable in parameters.flat_variables(model).items():
        if path.startswith("backbone.") and path.endswith("bias"):
            variable.set_value(jnp.asarray(rng.normal(size=variable.shape), jnp.float32))
    return parameters.partition(model, model_factory.method_of(architecture).is_trainable)


def test_counts():
    """Integers of methods.md for Swin-Tiny: 74,778 a task."""
    config = configs.load(f"{ROOT}/configs/bitfit_tiny_448.py")
    tasks = {"semseg": 21, "human_parts": 7, "sal": 1, "normals": 3}
    architecture = model_factory.from_config(config, tasks)
    method, own = model_factory.method_of(architecture), parameters.flat_variables(model_factory.build(architecture))
    trained = {path: v for path, v in own.items() if isinstance(v, nnx.Param) and method.is_trainable(path, v)}
    assert sum(v.size for v in trained.values()) == 2_245_736
    assert sum(v.size for v in trained.values() if isinstance(v, TaskBias)) == 299_112


@pytest.fixture(scope="module")
def parts():
    return trained_parts(micro.architecture("bitfit"))


def test_starts_as_the_frozen_encoder(parts):
    graph, *values = parts
    images = micro.random_images(2)
    frozen = micro.architecture("decoders_only")
    plain = model_factory.build(frozen)
    own = {path: value for part in values for path, value in part.items() if "task_bias" not in path}
    parameters.assign(plain, own, "the frozen model")
    expected = micro.logits_of(plain, images)
    logits = micro.jit(lambda values: parameters.bind(graph, *values)(images))(values)
    for task in micro.TASKS:
        np.testing.assert_allclose(logits[task], expected[task], rtol=0, atol=2e-5 * np.abs(expected[task]).max())


@pytest.mark.parametrize("task", micro.TASKS)
def test_a_task_is_the_plain_encoder_with_its_own_biases(task):
    """The features of a task are those of a model without task biases whose biases include those of the task."""
    graph, trainable, frozen, stats = trained_parts(micro.architecture("bitfit"))
    rng = np.random.default_rng(1)
    noise = {
        p: jnp.asarray(0.1 * rng.normal(size=v.shape), jnp.float32) for p, v in trainable.items() if "task_bias" in p
    }
    images = micro.random_images(2)
    logits = micro.jit(lambda values: parameters.bind(graph, values, frozen, stats)(images))(trainable | noise)

    plain = model_factory.build(micro.architecture("decoders_only", tasks=[task]))
    own = {path: value for part in (trainable, frozen, stats) for path, value in part.items()}
    for path, value in noise.items():
        layer, _, owner = path.rpartition(".task_bias.")
        if owner == task:
            table = f"{layer}.relative_position_bias_table"
            place = table if table in own else f"{layer}.bias"
            own[place] = own[place] + value
    kept = parameters.flat_variables(plain)
    parameters.assign(plain, {path: value for path, value in own.items() if path in kept}, "the plain model")
    expected = micro.logits_of(plain, images)[task]
    np.testing.assert_allclose(logits[task], expected, rtol=0, atol=2e-5 * np.abs(expected).max())


def test_no_gradient_crosses_tasks(parts):
    graph, trainable, frozen, stats = parts
    images = micro.random_images(2)

    @micro.jit
    @jax.grad
    def gradients(trainable, weights):
        logits = parameters.bind(graph, trainable, frozen, stats)(images, train=True)
        return sum(weights[t] * jnp.mean(jnp.square(logits[task])) for t, task in enumerate(micro.TASKS))

    for t, task in enumerate(micro.TASKS):
        for path, value in jax.device_get(gradients(trainable, np.eye(len(micro.TASKS), dtype=np.float32)[t])).items():
            owner = next(name for name in micro.TASKS if name in path.split("."))
            assert value.any() == (owner == task), path


def trained(tasks, devices=1):
    """Trained values after some steps with these tasks, weight 1 each, without clipping and dropout."""
    architecture = micro.architecture("bitfit", tasks=tasks)
    architecture["backbone"]["drop_path_rate"] = 0.0
    graph, trainable, frozen, stats = trained_parts(architecture)
    own = micro.tasks_of(architecture)
    optimizer = make_optimizer(RECIPE, optax.constant_schedule(0.05), frozenset(trainable))
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
    step = functools.partial(train_step, graph=graph, tasks=own, weights=dict.fromkeys(own, 1.0), optimizer=optimizer)
    update = micro.jit(step)
    state = create_state(trainable, stats, optimizer)
    batch = micro.random_batch(8)
    batch = {name: batch[name] for name in ("image", *tasks)}
    batch = sharding.shard_batch(batch, mesh)
    state, frozen = (jax.device_put(tree, sharding.replicated_sharding(mesh)) for tree in (state, frozen))
    losses = []
    for _ in range(STEPS):
        state, metrics = update(state, frozen, batch, jax.random.key(0))
        losses.append(float(metrics["loss"]))
    return jax.device_get(state.trainable), losses


def test_joint_training_is_as_many_trainings_alone():
    """Tasks share no trained tensor, so with weight 1 and without clipping each trains as it would alone."""
    together, _ = trained(tuple(micro.TASKS))
    for task in micro.TASKS:
        alone, _ = trained((task,))
        assert alone
        for path, value in alone.items():
            np.testing.assert_allclose(together[path], value, rtol=1e-3, atol=2e-5, err_msg=path)


def test_is_not_merged():
    architecture = micro.architecture("bitfit")
    with pytest.raises(UserError, match="models of the method BitFit cannot be merged exactly"):
        model_factory.method_of(architecture).merge(model_factory.build(architecture))


def write_losses():
    """The test below runs it on eight devices."""
    for devices in (1, 2, 8):
        print(*trained(tuple(micro.TASKS), devices)[1])


def test_any_number_of_devices_gives_the_same_loss():
    told = call_with_devices(8, __file__, "write_losses")
    one, *others = (np.array(line.split(), float) for line in told.splitlines())
    for losses in others:
        np.testing.assert_allclose(losses, one, rtol=2e-5)
