"""The training step and the optimizer: what changes, what does not, and any number of devices."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import micro
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType
from jobs import call_with_devices

from mtlora_jax import model_factory
from mtlora_jax.analysis.param_counts import group_of_each
from mtlora_jax.defaults import default
from mtlora_jax.distributed import sharding
from mtlora_jax.errors import UserError
from mtlora_jax.eval.step import eval_step
from mtlora_jax.models import parameters
from mtlora_jax.models.inputs import normalise
from mtlora_jax.tasks import TASKS, make_tasks
from mtlora_jax.tasks.losses import IGNORE
from mtlora_jax.train.optimizer import make_optimizer, make_schedule
from mtlora_jax.train.step import create_state, train_step

ARCHITECTURE = micro.architecture(stages=1, tasks=("semseg", "sal"), locations=("qkv", "fc2"))
RECIPE = default().optimizer.to_dict()


class Run:
    """The micro model, ready to train. Dropout and stochastic depth are on."""

    def __init__(self, learning_rate: float = 1e-2, **options):
        self.tasks = micro.tasks_of(ARCHITECTURE)
        self.graph, self.trainable, self.frozen, self.stats = parameters.partition(
            micro.fresh(ARCHITECTURE), model_factory.method_of(ARCHITECTURE).is_trainable
        )
        self.optimizer = make_optimizer(
            RECIPE | options, optax.constant_schedule(learning_rate), frozenset(self.trainable)
        )
        weights = {name: task.weight for name, task in self.tasks.items()}
        groups = {path: path.split(".")[1] for path in self.trainable if path.startswith("decoders.")}
        self.step = functools.partial(
            train_step, graph=self.graph, tasks=self.tasks, weights=weights, optimizer=self.optimizer, groups=groups
        )
        self.key = jax.random.key(0)

    def state(self):
        return create_state(self.trainable, self.stats, self.optimizer)


@pytest.fixture(scope="module")
def run():
    return Run()


@pytest.fixture(scope="module")
def trained(run):
    """(states before and after 3 steps, frozen weights after, losses of 25 steps on one batch, compiled step)."""
    step = micro.jit(run.step)
    frozen = dict(run.frozen)
    batch = jax.device_put({name: value for name, value in micro.random_batch().items() if name != "mask"})
    states, metrics = [jax.device_put(run.state())], []
    for _ in range(25):
        state, scalars = step(states[-1], frozen, batch, run.key)
        states.append(state)
        metrics.append(scalars)
    return states[0], states[3], frozen, jax.device_get(metrics), step


def test_frozen_weights_stay_and_have_no_optimizer_state(run, trained):
    before, after, frozen, _, _ = trained
    assert frozen.keys().isdisjoint(after.trainable)
    initial = parameters.host_arrays(micro.fresh(ARCHITECTURE))
    for path, value in frozen.items():
        np.testing.assert_array_equal(value, initial[path])
    values = sum(value.size for value in run.trainable.values())
    moments = [leaf for leaf in jax.tree.leaves(after.opt_state) if leaf.ndim]
    assert sum(leaf.size for leaf in moments) == 2 * values
    assert all(leaf.shape == () for leaf in jax.tree.leaves(after.opt_state) if not leaf.ndim)
    moved = {path for path, value in before.trainable.items() if not np.array_equal(value, after.trainable[path])}
    last_fc2 = (
        "backbone.layers.0.blocks.1.mlp.fc2."  # its task-agnostic branch reaches no loss; A has weight decay, B is zero
    )
    assert set(before.trainable) - moved == {last_fc2 + "shared_b"}
    assert all(not np.array_equal(before.batch_stats[path], after.batch_stats[path]) for path in before.batch_stats)


def test_the_state_keeps_its_structure_and_the_step_compiles_once(trained):
    before, after, _, metrics, step = trained
    assert jax.tree.structure(before) == jax.tree.structure(after)
    assert jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), before) == jax.tree.map(
        lambda x: (x.shape, x.dtype, x.weak_type), after
    )
    floats = {x.dtype.name for x in jax.tree.leaves(after) if jnp.issubdtype(x.dtype, jnp.floating)}
    assert floats | {value.dtype.name for value in metrics[0].values()} == {"float32"}
    assert int(after.step) == 3
    assert step._cache_size() == 1


def test_a_fixed_batch_is_learnt(trained):
    metrics = trained[3]
    values = {f"{kind}{task}" for kind in ("loss", "grad_norm") for task in ("", "/semseg", "/sal")}
    assert set(metrics[0]) == values | {"skipped"}
    assert not any(scalars["skipped"] for scalars in metrics)
    losses = [scalars["loss"] for scalars in metrics]
    assert np.isfinite(losses).all()
    assert np.mean(losses[-3:]) < 0.8 * np.mean(losses[:3])


def test_total_is_the_weighted_sum(run, trained):
    for scalars in trained[3][:3]:
        total = sum(task.weight * scalars[f"loss/{name}"] for name, task in run.tasks.items())
        np.testing.assert_allclose(scalars["loss"], total, rtol=1e-6)


def test_a_batch_without_a_valid_pixel_for_a_task_adds_nothing(run, trained):
    before, _, frozen, _, step = trained
    batch = {name: value for name, value in micro.random_batch().items() if name != "mask"}
    batch["sal"] = np.full_like(batch["sal"], IGNORE)
    after, metrics = step(before, frozen, batch, run.key)
    assert metrics["loss/sal"] == metrics["grad_norm/sal"] == metrics["skipped"] == 0
    assert metrics["loss"] == metrics["loss/semseg"] > 0
    assert metrics["grad_norm/semseg"] > 0
    assert all(np.isfinite(value).all() for value in after.trainable.values())


class Plane(nnx.Module):
    """The smallest model that the step takes: each task's logits are the mean of an image plus the task's weights."""

    def __init__(self, channels: dict[str, int]):
        self.channels = nnx.Dict({name: nnx.Param(jnp.arange(1.0, 1.0 + count)) for name, count in channels.items()})
        self.seen = nnx.BatchStat(jnp.zeros(()))

    def coarse_logits(self, images, train, rngs, parts):
        self.seen[...] += jnp.max(images)
        return {name: jnp.mean(images, -1, keepdims=True) + weight[...] for name, weight in self.channels.items()}


def test_a_batch_without_any_valid_pixel_changes_nothing_of_any_task():
    tasks = make_tasks(TASKS, None)
    graph, trainable, _, stats = parameters.partition(
        Plane({name: task.channels for name, task in tasks.items()}), lambda path, v: True
    )
    step = functools.partial(
        train_step, graph=graph, tasks=tasks, weights=dict.fromkeys(tasks, 1.0), optimizer=optax.sgd(1.0)
    )
    batch = {"image": np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)}
    for name in tasks:
        batch[name] = np.full(
            (2, 4, 4, 3) if name == "normals" else (2, 4, 4), IGNORE, np.float32 if name == "depth" else np.uint8
        )
    after, metrics = micro.jit(step)(create_state(trainable, stats, optax.sgd(1.0)), {}, batch, jax.random.key(0))
    assert {name: float(value) for name, value in metrics.items()} == dict.fromkeys(metrics, 0.0)
    assert set(metrics) == {"loss", "grad_norm", "skipped", *(f"loss/{name}" for name in TASKS)}
    for path, value in trainable.items():
        np.testing.assert_array_equal(after.trainable[path], value)


class Probe:
    """A loss that is sound for label 0, NaN for label 1, and finite with an infinite gradient for label 2."""

    def loss(self, logits, label):
        sound = jnp.mean(jnp.square(logits))
        kind = label[0, 0, 0]
        squares = jnp.where(kind == 2, 0.0, 1.0) * jnp.square(logits)
        broken = jnp.sum(jnp.sqrt(squares))  # the root of 0 has no finite gradient
        return sound + jnp.where(kind == 1, jnp.nan, 0.0) + jnp.where(kind == 2, 1.0, 0.0) * broken


SOUND, BAD_LOSS, BAD_GRADIENT, BAD_STATISTIC = range(4)


@pytest.fixture(scope="module")
def guarded():
    """(compiled step, first state, function from the kind of a batch to the batch and frozen weights)."""
    optimizer = make_optimizer(RECIPE, optax.constant_schedule(0.1), frozenset({"channels.a", "channels.b"}))
    graph, trainable, _, stats = parameters.partition(Plane({"a": 2, "b": 1}), lambda path, variable: True)
    options = {
        "graph": graph,
        "tasks": {"a": Probe(), "b": Probe()},
        "weights": {"a": 1.0, "b": 2.0},
        "optimizer": optimizer,
    }
    groups = {"channels.a": "first", "channels.b": "second"}
    step = micro.jit(functools.partial(train_step, groups=groups, schedule=lambda update: 10.0 * update, **options))
    state = jax.device_put(create_state(trainable, stats, optimizer))

    def run(state, kind):
        if kind == BAD_STATISTIC:
            state = state._replace(batch_stats={"seen": jnp.asarray(np.float32(np.inf))})
        label = np.full((2, 4, 4), 0 if kind == BAD_STATISTIC else kind)
        batch = {"image": np.full((2, 4, 4, 3), 100, np.uint8), "a": np.zeros_like(label), "b": label}
        return state, *step(state, {}, batch, jax.random.key(0))

    return run, state, step


@pytest.mark.parametrize("kind", [BAD_LOSS, BAD_GRADIENT, BAD_STATISTIC])
def test_a_step_with_a_number_that_is_not_finite_changes_nothing_but_counts(guarded, kind):
    run, state, _ = guarded
    _, state, _ = run(state, SOUND)  # moments that are not zero
    before, after, metrics = run(state, kind)
    for name in ("trainable", "batch_stats", "opt_state"):
        jax.tree.map(np.testing.assert_array_equal, getattr(after, name), getattr(before, name))
    assert (after.step, after.skipped, after.skipped_in_row) == (2, 1, 1)
    assert metrics["skipped"] == 1
    assert np.isfinite(metrics["loss"]) == (kind != BAD_LOSS)
    assert np.isfinite(metrics["grad_norm"]) == (kind != BAD_GRADIENT)


def test_training_goes_on_after_steps_that_were_skipped(guarded):
    run, first, step = guarded
    state, plain = first, first
    counts, told = [], []
    for kind in (SOUND, BAD_LOSS, BAD_GRADIENT, SOUND, BAD_LOSS, SOUND):
        _, state, metrics = run(state, kind)
        counts.append((int(state.step), int(state.skipped), int(state.skipped_in_row)))
        told.append(float(metrics["learning_rate"]))
    assert told == [0, 10, 10, 10, 20, 20]  # of the update, made or skipped
    assert counts == [(1, 0, 0), (2, 1, 1), (3, 2, 2), (4, 2, 0), (5, 3, 1), (6, 3, 0)]
    for _ in range(3):
        _, plain, _ = run(plain, SOUND)
    for name in ("trainable", "batch_stats", "opt_state"):  # as if the others had not happened
        jax.tree.map(np.testing.assert_array_equal, getattr(state, name), getattr(plain, name))
    assert step._cache_size() == 1


def test_gradient_norms_of_groups(guarded):
    run, state, _ = guarded
    _, _, metrics = run(state, SOUND)
    mean = float(np.mean(normalise(np.full((1, 1, 1, 3), 100, np.uint8))))
    first = np.hypot(mean + 1, mean + 2)  # the gradient of a mean of two squares is each number itself
    second = 2 * 2 * abs(mean + 1)  # one square, and the task weighs 2
    np.testing.assert_allclose(metrics["grad_norm/first"], first, rtol=1e-5)
    np.testing.assert_allclose(metrics["grad_norm/second"], second, rtol=1e-5)
    np.testing.assert_allclose(metrics["grad_norm"], np.hypot(first, second), rtol=1e-5)


def test_every_trained_parameter_is_in_a_group():
    groups = group_of_each(model_factory.build(ARCHITECTURE))
    assert set(Run().trainable) <= set(groups)
    names = "ta_lora ts_lora decoders patch_embed norms position_tables linears"
    assert set(groups.values()) == set(names.split())


def test_images_are_normalised_like_imagenet():
    image = np.array([0, 255, 128], np.uint8).reshape(1, 1, 1, 3)
    expected = [(0 - 0.485) / 0.229, (1 - 0.456) / 0.224, (128 / 255 - 0.406) / 0.225]
    np.testing.assert_allclose(normalise(jnp.asarray(image)).ravel(), expected, rtol=1e-6)


WHOLE = {
    "a.kernel": np.full((2, 2), 2.0, np.float32),
    "a.bias": np.full(2, 3.0, np.float32),
    "b.kernel": np.full((2, 3), 0.1, np.float32),
}


def one_update(gradients, trainable=("a.kernel", "a.bias"), **options):
    """(weights after an update of the whole tree, optimizer state)."""
    optimizer = make_optimizer(RECIPE | options, optax.constant_schedule(0.1), frozenset(trainable))

    @micro.jit
    def update(values, gradients):
        updates, state = optimizer.update(gradients, optimizer.init(values), values)
        return optax.apply_updates(values, updates), state

    return jax.device_get(update(WHOLE, gradients))


def test_optimizer_leaves_frozen_weights_of_a_whole_model_alone():
    values, state = one_update({path: np.ones_like(value) for path, value in WHOLE.items()})
    np.testing.assert_array_equal(values["b.kernel"], WHOLE["b.kernel"])
    assert (values["a.kernel"] < WHOLE["a.kernel"]).all()
    assert (values["a.bias"] < WHOLE["a.bias"]).all()
    assert sorted(leaf.shape for leaf in jax.tree.leaves(state) if leaf.ndim) == [(2,), (2,), (2, 2), (2, 2)]


def test_weight_decay_spares_vectors():
    values, _ = one_update({path: np.zeros_like(value) for path, value in WHOLE.items()})
    np.testing.assert_allclose(values["a.kernel"], 2.0 * (1 - 0.1 * 0.05), rtol=1e-6)
    np.testing.assert_array_equal(values["a.bias"], WHOLE["a.bias"])


@pytest.mark.parametrize(("norm", "clipped"), [(50.0, 5.0), (3.0, 3.0)])
def test_gradients_are_clipped_by_their_global_norm(norm, clipped):
    kernel, bias = np.full((2, 2), 4.0, np.float32), np.full(2, 18**0.5, np.float32)
    gradients = {"a.kernel": kernel, "a.bias": bias}  # norms 8 and 6, together 10
    gradients = {path: value * norm / 10 for path, value in gradients.items()} | {
        "b.kernel": np.full((2, 3), 1e6, np.float32)
    }
    _, state = one_update(gradients)
    first_moment = optax.tree.get(state, "mu")
    np.testing.assert_allclose(first_moment["a.kernel"], (1 - RECIPE["b1"]) * 0.4 * clipped, rtol=1e-5)
    np.testing.assert_allclose(first_moment["a.bias"], (1 - RECIPE["b1"]) * 18**0.5 / 10 * clipped, rtol=1e-5)


@pytest.mark.parametrize("clip_norm", [0.0, -1.0, float("nan"), float("inf")])
def test_a_norm_to_clip_by_must_be_positive(clip_norm):
    with pytest.raises(UserError, match=r"optimizer\.clip_norm = .* must be a positive number"):
        make_optimizer(RECIPE | {"clip_norm": clip_norm}, optax.constant_schedule(0.1), frozenset())


def test_schedule_of_the_published_rows():
    schedule = make_schedule(RECIPE, 32, 156, 300 * 156)
    np.testing.assert_allclose(schedule(0), 3.125e-8, rtol=1e-5)
    np.testing.assert_allclose(schedule(10 * 156), (3.125e-8 + 3.125e-5) / 2, rtol=1e-5)
    np.testing.assert_allclose(schedule(20 * 156), 3.125e-5, rtol=1e-5)
    np.testing.assert_allclose(schedule(160 * 156), (3.125e-5 + 3.125e-7) / 2, rtol=1e-5)  # half of the cosine
    np.testing.assert_allclose(schedule(300 * 156), 3.125e-7, rtol=1e-5)


@pytest.mark.parametrize("warmup_epochs", [10, 11.5])
def test_warm_up_must_leave_steps_to_train(warmup_epochs):
    with pytest.raises(UserError, match=r"optimizer\.warmup_epochs = .* steps, but training has only 100"):
        make_schedule(RECIPE | {"warmup_epochs": warmup_epochs}, 32, 10, 100)


def test_four_devices_compute_what_one_does(tmp_path):
    call_with_devices(4, __file__, "write_results", str(tmp_path))
    one, four = (dict(np.load(tmp_path / f"{size}.npz")) for size in (1, 4))
    assert one.keys() == four.keys()
    assert sum(name.startswith("trainable/") for name in one) == len(Run().trainable)
    for name, value in one.items():
        np.testing.assert_allclose(four[name], value, rtol=1e-5, atol=1e-7, err_msg=name)
    other_padding = dict(np.load(tmp_path / "other_padding.npz"))
    for name, value in other_padding.items():
        np.testing.assert_array_equal(value, one[name], err_msg=name)


def write_results(folder: str) -> None:
    """Writes losses, weights and scores on meshes of 1 and of 4 devices."""
    assert jax.device_count() == 4
    for size in (1, 4):
        # A large epsilon, since Adam divides gradients by their own size, even those that are zero except for rounding.
        run = Run(learning_rate=0.1, eps=1.0)
        mesh = jax.make_mesh((size,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:size])
        state, frozen = jax.device_put((run.state(), run.frozen), sharding.replicated_sharding(mesh))
        step = micro.jit(run.step, donate_argnums=0)
        results = {}
        for i in range(3):
            state, metrics = step(state, frozen, sharding.shard_batch(micro.random_batch(4, seed=i), mesh), run.key)
            results |= {f"{name}/{i}": value for name, value in metrics.items()}
        results |= {f"trainable/{path}": value for path, value in state.trainable.items()}
        results |= {f"stats/{path}": value for path, value in state.batch_stats.items()}

        score = micro.jit(functools.partial(eval_step, graph=run.graph, tasks=run.tasks))
        batch = micro.random_batch(4, seed=9)
        scores = {}
        for padding in (0, 200):
            padded = {key: value.copy() for key, value in batch.items()}
            padded["mask"][3] = False
            padded["image"][3] = padding
            for task in run.tasks:
                padded[task][3] = 255
            totals = score(state.trainable, state.batch_stats, frozen, sharding.shard_batch(padded, mesh))
            scores[padding] = {
                f"scores/{name}/{key}": value
                for name, task in run.tasks.items()
                for key, value in task.compute_metrics(
                    {k: np.asarray(v, np.float64) for k, v in totals[name].items()}
                ).items()
            }
        np.savez(pathlib.Path(folder) / f"{size}.npz", **results, **scores[0])
        if size == 1:
            np.savez(pathlib.Path(folder) / "other_padding.npz", **scores[200])
