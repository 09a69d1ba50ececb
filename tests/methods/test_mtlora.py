"""MTLoRA: the results of its layers, the inputs that each task depends on, and the trained parameters."""

import jax
import jax.numpy as jnp
import micro
import numpy as np
import pytest
from flax import nnx

from mtlora_jax import model_factory
from mtlora_jax.errors import UserError
from mtlora_jax.methods.mtlora.layers import LoRALinear, SharedLoRAParam, TaskLoRALinear, TaskLoRAParam
from mtlora_jax.methods.mtlora.method import FREEZABLE
from mtlora_jax.models import parameters
from mtlora_jax.models.decoders import Decoder
from mtlora_jax.models.layers import BatchNorm, Linear, drop_path, dropout, dropout2d
from mtlora_jax.models.task_features import TaskFeatures

METHODS = {
    "mtlora": {"merging": "train"},
    "mtlora_plus": {"merging": "lora"},
    "ta_only": {"task_rank": 0},
}
LINEARS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
HEADS = {
    "hrnet": {"name": "hrnet", "channels": [2, 3]},
    "segformer": {"name": "segformer", "channels": [2, 3], "width": 6},
    "aspp": {"name": "aspp", "channels": [2, 3], "width": 6},
}
TASK_RANK = {"semseg": 1, "sal": 3, "normals": 2}
TASK_SCALE = {"semseg": 4.0, "sal": 0.5, "normals": 2.0}


def assert_close(actual, expected, relative=1e-5):
    """Every element within `relative` of the largest magnitude."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=relative * np.abs(expected).max())


@pytest.fixture(scope="module")
def images():
    return micro.random_images()


@pytest.fixture(scope="module")
def trained():
    """Weights of the default method, none of them zero."""
    return micro.random_arrays(micro.architecture())


@pytest.fixture(scope="module")
def trained_logits(trained, images):
    return micro.logits_of(micro.holding(micro.architecture(), trained), images)


@pytest.fixture(scope="module")
def frozen_logits(trained, images):
    """Logits of a model without low-rank branches, with otherwise the same weights."""
    return micro.logits_of(micro.holding(micro.architecture("full"), trained), images)


@pytest.mark.parametrize("options", METHODS.values(), ids=METHODS)
def test_fresh_branches_change_nothing(trained, frozen_logits, images, options):
    architecture = micro.architecture(**options)
    model = micro.fresh(architecture, seed=1)
    for path, variable in parameters.flat_variables(model).items():
        if not isinstance(variable, SharedLoRAParam | TaskLoRAParam):
            variable.set_value(jnp.asarray(trained[path]))
    logits = micro.logits_of(model, images)
    assert set(logits) == set(micro.TASKS)
    for task, expected in frozen_logits.items():
        assert_close(logits[task], expected)


def test_trained_branches_change_every_task(trained_logits, frozen_logits):
    for task, expected in frozen_logits.items():
        assert np.abs(trained_logits[task] - expected).max() > 0.01 * np.abs(expected).max()


def lora_layer(ts_base=None):
    """A layer 5 -> 4 with random weights, and those weights in float64."""
    base = Linear(5, 4)
    options = {"rank": 2, "scale": 3.0, "dropout": 0.0}
    if ts_base is None:
        layer = LoRALinear(base, **options)
    else:
        layer = TaskLoRALinear(base, **options, task_rank=TASK_RANK, task_scale=TASK_SCALE, ts_base=ts_base)
    rng = np.random.default_rng(0)
    values = {path: rng.normal(size=variable.shape) for path, variable in parameters.flat_variables(layer).items()}
    parameters.assign(layer, values, "values")
    return layer, values


def test_shared_branch():
    layer, w = lora_layer()
    x = np.random.default_rng(1).normal(size=(2, 3, 5))
    expected = x @ w["kernel"] + w["bias"] + 3.0 * x @ w["shared_a"] @ w["shared_b"]
    assert_close(layer(jnp.asarray(x)), expected)
    streams = layer.forward(TaskFeatures(jnp.asarray(x)))
    assert streams.tasks is None
    assert_close(streams.shared, expected)


@pytest.mark.parametrize("ts_base", ["shared", "task"])
@pytest.mark.parametrize("have_streams", [False, True], ids=["first layer", "later layer"])
def test_task_branches_follow_the_equations(ts_base, have_streams):
    layer, w = lora_layer(ts_base)
    rng = np.random.default_rng(1)
    x, x_tasks = rng.normal(size=(2, 3, 5)), rng.normal(size=(3, 2, 3, 5))
    out = layer.forward(TaskFeatures(jnp.asarray(x), jnp.asarray(x_tasks) if have_streams else None))
    assert_close(out.shared, x @ w["kernel"] + w["bias"] + 3.0 * x @ w["shared_a"] @ w["shared_b"])
    assert out.tasks.shape == (3, 2, 3, 4)
    for t, task in enumerate(TASK_RANK):
        x_t = x_tasks[t] if have_streams else x
        seen = x_t if ts_base == "task" else x
        branch = TASK_SCALE[task] * x_t @ w[f"task_a.{task}"] @ w[f"task_b.{task}"]
        assert_close(out.tasks[t], seen @ w["kernel"] + w["bias"] + branch)


def test_low_rank_dropout_spares_the_frozen_weight_and_given_task_streams():
    layer, w = lora_layer("shared")
    layer.dropout = 0.5
    x, x_tasks = jnp.ones((40, 5)), jnp.ones((3, 40, 5))
    plain = layer.forward(TaskFeatures(x, x_tasks))
    dropped = layer.forward(TaskFeatures(x, x_tasks), nnx.Rngs(dropout=0))
    np.testing.assert_array_equal(dropped.tasks, plain.tasks)
    assert np.abs(dropped.shared - plain.shared).max() > 0.1
    first = layer.forward(TaskFeatures(x), nnx.Rngs(dropout=0))
    assert np.abs(first.tasks - plain.tasks).max() > 0.1
    layer.shared_b[...] = jnp.zeros_like(layer.shared_b[...])
    assert_close(layer.forward(TaskFeatures(x), nnx.Rngs(dropout=0)).shared, x @ w["kernel"] + w["bias"])


@pytest.mark.parametrize("tasks", [("normals", "semseg"), ("sal",)], ids=",".join)
def test_tasks_do_not_depend_on_each_other(trained, trained_logits, images, tasks):
    logits = micro.logits_of(micro.holding(micro.architecture(tasks=tasks), trained), images)
    assert set(logits) == set(tasks)
    for task in tasks:
        assert_close(logits[task], trained_logits[task])


def test_gradient_of_a_task_stays_with_it(trained, images):
    model = micro.holding(micro.architecture(), trained)
    graph, *parts = parameters.partition(model, lambda path, variable: True)

    @micro.jit
    @jax.grad
    def gradients(trainable, weights):
        logits = parameters.bind(graph, trainable, *parts[1:])(images, train=True)
        return sum(weights[t] * jnp.mean(jnp.square(logits[task])) for t, task in enumerate(micro.TASKS))

    for t, task in enumerate(micro.TASKS):
        grads = jax.device_get(gradients(parts[0], np.eye(3, dtype=np.float32)[t]))
        for path, value in grads.items():
            owner = next((name for name in micro.TASKS if f".{name}." in path or path.endswith(f".{name}")), None)
            if owner == task:
                assert value.any(), path
            elif owner is not None:
                assert not value.any(), path
        assert grads["backbone.layers.0.blocks.0.attn.qkv.shared_b"].any()


def test_batch_norm_follows_pytorch():
    norm = BatchNorm(4)
    parameters.initialise(norm, 0)
    scale, bias = np.array([1.0, 2.0, -1.0, 0.5]), np.array([0.0, 1.0, 2.0, 3.0])
    norm.scale[...], norm.bias[...] = jnp.asarray(scale, jnp.float32), jnp.asarray(bias, jnp.float32)
    rng = np.random.default_rng(0)
    mean, var = np.zeros(4), np.ones(4)
    for _ in range(2):
        x = rng.normal(2.0, 3.0, (2, 3, 2, 4))
        flat = x.reshape(-1, 4)
        y = norm(jnp.asarray(x), train=True)
        np.testing.assert_allclose(
            y, (x - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-5) * scale + bias, rtol=1e-5, atol=1e-5
        )
        mean = 0.9 * mean + 0.1 * flat.mean(0)
        var = 0.9 * var + 0.1 * flat.var(0, ddof=1)
        np.testing.assert_allclose(norm.mean[...], mean, rtol=1e-5)
        np.testing.assert_allclose(norm.var[...], var, rtol=1e-5)
    y = norm(jnp.asarray(x), train=False)
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(var + 1e-5) * scale + bias, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(norm.mean[...], mean, rtol=1e-5)


def test_batch_norm_does_not_learn_from_a_single_value():
    norm = BatchNorm(4)
    parameters.initialise(norm, 0)
    with pytest.raises(UserError, match="single value per channel, whose variance is 0: take a larger batch_size"):
        norm(jnp.ones((1, 1, 1, 4)), train=True)
    assert norm(jnp.ones((1, 1, 1, 4)), train=False).shape == (1, 1, 1, 4)


@pytest.mark.parametrize("fn", [dropout, drop_path, dropout2d])
def test_dropping_needs_a_rate_and_randomness(fn):
    x = jnp.ones((4, 2, 2, 3))
    np.testing.assert_array_equal(fn(x, 0.5, None), x)
    np.testing.assert_array_equal(fn(x, 0.0, nnx.Rngs(dropout=0)), x)


def test_dropout_keeps_the_expectation():
    y = np.asarray(dropout(jnp.full((1000, 1000), 2.0), 0.3, nnx.Rngs(dropout=0)))
    kept = y[y != 0]
    np.testing.assert_allclose(kept, 2 / 0.7, rtol=2e-5)  # the rate is rounded to 2^-16
    correlation = np.corrcoef(y[:, ::2].ravel(), y[:, 1::2].ravel())[0, 1]
    assert abs(correlation) < 5 / (y.size / 2) ** 0.5  # neighbours are independent
    np.testing.assert_allclose(y.mean(), 2.0, atol=5 * 2 * (0.3 / 0.7 / y.size) ** 0.5)  # five standard deviations


def test_drop_path_draws_once_per_image_and_stream():
    x = jnp.ones((4000, 2, 2, 3))
    rngs = nnx.Rngs(dropout=0)
    streams = TaskFeatures(x, jnp.stack([x, x])).map_random(lambda y, rngs: drop_path(y, 0.25, rngs), rngs)
    drawn = np.concatenate([streams.shared[None], streams.tasks])
    np.testing.assert_array_equal(drawn, np.broadcast_to(drawn[:, :, :1, :1, :1], drawn.shape))
    drawn = drawn[:, :, 0, 0, 0]
    np.testing.assert_allclose(np.unique(drawn), [0, 1 / 0.75], rtol=1e-6)
    np.testing.assert_allclose(drawn.mean(1), 1.0, atol=5 * (0.25 / 0.75 / 4000) ** 0.5)
    correlation = np.corrcoef(drawn)[np.triu_indices(3, 1)]
    assert np.abs(correlation).max() < 5 / 4000**0.5


def test_drop_channels_drops_whole_channels():
    y = np.asarray(dropout2d(jnp.ones((50, 3, 3, 40)), 0.5, nnx.Rngs(dropout=0)))
    np.testing.assert_array_equal(y, np.broadcast_to(y[:, :1, :1], y.shape))
    assert 0.4 < (y == 0).mean() < 0.6


def test_every_stream_of_the_model_has_its_own_stochastic_depth():
    architecture = micro.architecture(dropout=0.0)
    architecture["backbone"]["drop_path_rate"] = 0.5
    graph, *parts = parameters.partition(micro.fresh(architecture), lambda path, variable: True)
    images = micro.random_images(8)

    @micro.jit
    def features(parts, key):
        return parameters.bind(graph, *parts).backbone(images, nnx.Rngs(dropout=key))[0].projected()

    first = features(parts, jax.random.key(0))  # the factors B are zero, so only the draws can differ
    streams = [first.shared, *first.tasks]
    for i, one in enumerate(streams):
        for other in streams[i + 1 :]:
            assert np.abs(one - other).max() > 1e-3
    np.testing.assert_array_equal(features(parts, jax.random.key(0)).tasks, first.tasks)
    assert np.abs(features(parts, jax.random.key(1)).tasks - first.tasks).max() > 1e-3


@pytest.mark.parametrize("locations", [("qkv", "fc1"), ("proj", "fc2")], ids=",".join)
def test_a_location_left_out_is_a_branch_of_zeros(trained, images, all_locations, locations):
    zeroed = {
        path: np.zeros_like(v)
        for path, v in trained.items()
        if ("shared_b" in path or "task_b" in path) and not within(path, locations)
    }
    expected = jax.device_get(all_locations(trained | zeroed))
    architecture = micro.architecture(locations=locations)
    factors = [
        p
        for p, v in parameters.flat_variables(model_factory.build(architecture)).items()
        if isinstance(v, SharedLoRAParam | TaskLoRAParam)
    ]
    assert all(within(path, locations) for path in factors)
    assert all(any(within(path, [location]) for path in factors) for location in locations)
    logits = micro.logits_of(micro.holding(architecture, trained), images)
    for task in micro.TASKS:
        assert_close(logits[task], expected[task])


def within(path, locations):
    """Whether a parameter belongs to one of the layers."""
    return any(f".{location}." in path for location in locations)


@pytest.fixture(scope="module")
def all_locations(images):
    """arrays -> logits of the model with branches everywhere, compiled once."""
    graph = nnx.graphdef(micro.fresh(micro.architecture()))
    return micro.jit(lambda arrays: parameters.bind(graph, arrays)(images))


def trainable_paths(**options):
    architecture = micro.architecture(**options)
    method = model_factory.method_of(architecture)
    own = parameters.flat_variables(model_factory.build(architecture))
    return {path for path, v in own.items() if isinstance(v, nnx.Param) and method.is_trainable(path, v)}, own


def test_what_trains_and_what_is_frozen():
    trained, own = trainable_paths()
    frozen = {path for path, v in own.items() if isinstance(v, nnx.Param)} - trained
    linears = [f"backbone.layers.{i}.blocks.{j}.{name}" for i, j in ((0, 0), (0, 1), (1, 0)) for name in LINEARS]
    assert frozen == {f"{linear}.{kind}" for linear in linears for kind in ("kernel", "bias")}


def test_merging_options():
    reduction = "backbone.layers.0.downsample.reduction."
    trained, own = trainable_paths(merging="train")
    assert {path for path in own if path.startswith(reduction)} == {reduction + "kernel"} <= trained
    frozen, own = trainable_paths(merging="freeze")
    assert trained - frozen == {reduction + "kernel"}
    assert frozen < trained
    plus, own = trainable_paths(merging="lora")
    assert plus - frozen == {reduction + "shared_a", reduction + "shared_b"}
    assert frozen < plus


@pytest.mark.parametrize(
    ("freeze", "pattern"),
    [
        (["patch_embed"], lambda path: path.startswith("backbone.patch_embed.proj")),
        (["norms"], lambda path: is_norm(path) and "patch_embed" not in path),
        (["position_tables"], lambda path: path.endswith("table")),
        (["patch_embed", "norms"], lambda path: "patch_embed" in path or is_norm(path)),
    ],
    ids=["patch_embed", "norms", "position_tables", "patch_embed and norms"],
)
def test_freeze_groups(freeze, pattern):
    """The norm of the patch embedding is in two groups and freezes only with both, as Table 3 of the paper counts."""
    everything, _ = trainable_paths()
    left, _ = trainable_paths(freeze=freeze)
    assert left < everything
    assert everything - left == {path for path in everything if pattern(path)}


def test_all_that_tasks_share_can_be_frozen():
    left, own = trainable_paths(freeze=FREEZABLE, merging="freeze")
    assert left == {
        path
        for path, v in own.items()
        if path.startswith("decoders.") and isinstance(v, nnx.Param) or isinstance(v, TaskLoRAParam)
    }


def is_norm(path):
    return path.startswith("backbone.") and path.endswith((".scale", "norm.bias", "norm1.bias", "norm2.bias"))


def test_initial_values_depend_on_seed_and_path_alone():
    values = parameters.host_arrays(micro.fresh(micro.architecture()))
    fewer = parameters.host_arrays(micro.fresh(micro.architecture(tasks=("normals", "semseg"))))
    assert set(values) - set(fewer) == {path for path in values if "sal" in path.split(".")}
    for path, value in fewer.items():
        np.testing.assert_array_equal(value, values[path])
    other_seed = parameters.host_arrays(micro.fresh(micro.architecture(), seed=1))
    drawn = {path for path, value in values.items() if len(np.unique(value)) > 1}
    assert all(not np.array_equal(values[path], other_seed[path]) for path in drawn)
    assert len({values[path].tobytes() for path in drawn}) == len(drawn)  # no two are alike


def test_initial_factors():
    for path, value in parameters.host_arrays(micro.fresh(micro.architecture())).items():
        if "shared_b" in path or "task_b" in path:
            assert not value.any()
        if "shared_a" in path or "task_a" in path:
            bound = 1 / value.shape[0] ** 0.5
            assert 0.5 * bound < np.abs(value).max() <= bound


@pytest.mark.parametrize("head", HEADS)
def test_decoders(head):
    options = dict(HEADS[head])
    decoder = Decoder(options.pop("name"), (6, 8), options.pop("channels"), 3, **options)
    parameters.initialise(decoder, 0)
    graph, trainable, frozen, stats = parameters.partition(decoder, lambda path, variable: True)
    rng = np.random.default_rng(0)
    features = [(jnp.asarray(rng.normal(size=shape), jnp.float32), None) for shape in ((2, 8, 6, 6), (2, 4, 3, 8))]

    @micro.jit
    @jax.value_and_grad
    def loss(trainable, key):
        logits = parameters.bind(graph, trainable, frozen, stats)(features, True, nnx.Rngs(dropout=key))
        assert logits.shape == (2, 8, 6, 3)
        return jnp.mean(jnp.square(logits - 1))

    value, grads = loss(trainable, jax.random.key(0))
    for path, gradient in grads.items():
        assert jnp.isfinite(gradient).all()
        if "conv_seg" in path:
            assert not gradient.any()
        elif path.endswith("kernel"):
            assert gradient.any(), path
    assert any("conv_seg" in path for path in grads) == (head == "segformer")
    other, _ = loss(trainable, jax.random.key(1))
    assert (other != value) == (head != "hrnet")  # the others have dropout

    evaluate = micro.jit(lambda features: parameters.bind(graph, trainable, stats)(features))
    one = evaluate([(f[:1], None) for f, _ in features])
    assert one.shape == (1, 8, 6, 3)
    assert jnp.isfinite(one).all()


def test_segformer_without_the_dead_classifier():
    decoder = Decoder("segformer", (6, 8), (2, 3), 3, width=6, dead_classifier=False)
    assert not any("conv_seg" in path for path in parameters.flat_variables(decoder))
