"""Merging: the same logits from fewer operations, for every method, option and decoder there is."""

import functools
import itertools
import types
from typing import Any

import micro
import numpy as np
import pytest
from paths import CONFIGS

import mtlora_jax
from mtlora_jax import config as configs
from mtlora_jax import model_factory
from mtlora_jax.analysis.macs import macs_of
from mtlora_jax.errors import UserError
from mtlora_jax.experiment import build_tasks
from mtlora_jax.methods.mtlora.layers import LoRALinear, MergedTaskLoRALinear, PerTaskLinear, TaskLoRALinear
from mtlora_jax.methods.mtlora.merge import reads_shared, replace
from mtlora_jax.model_io import model_folder
from mtlora_jax.model_io.merging import merge, merged_architecture, merged_arrays
from mtlora_jax.models import parameters
from mtlora_jax.models.layers import BatchNorm, Conv, Linear, map_weights
from mtlora_jax.models.task_features import TaskFeatures

TASK_LAYERS = ("proj", "fc1", "fc2")
SUBSETS = [subset for count in (1, 2, 3) for subset in itertools.combinations(TASK_LAYERS, count)]
HEADS = {
    "hrnet": {"name": "hrnet", "channels": [2, 3]},
    "segformer": {"name": "segformer", "channels": [2, 3], "width": 6},
    "aspp": {"name": "aspp", "channels": [2, 3], "width": 6, "dilations": [1, 2, 3]},
}


def shallow(**options: Any) -> dict[str, Any]:
    """The default method with one block per stage, which is also the last block of the stage."""
    architecture = micro.architecture(**options)
    return architecture | {"backbone": architecture["backbone"] | {"depths": [1, 1]}}


# A small architecture of the same structure for every file in configs/, and further ones.
CASES = {
    "mtlora": micro.architecture(),  # with a task rank per task and stage
    "mtlora_plus": micro.architecture(merging="lora"),
    "frozen merging": shallow(merging="freeze"),
    "ta_only": micro.architecture(task_rank=0),
    "full": micro.architecture("full"),
    "decoders_only": shallow() | {"method": {"name": "decoders_only"}},
    "single_task": micro.architecture("single_task", tasks=("normals",)),
    "segformer": shallow() | {"decoder": HEADS["segformer"]},
    "aspp": shallow() | {"decoder": HEADS["aspp"]},
    "one task": shallow(tasks=("sal",)),
    "scales": shallow(scale=[0.5, 3.0], task_scale={"semseg": 1.0, "sal": [2.0, 0.25], "normals": 8.0}),
    "task base": micro.architecture(ts_base="task"),
    "task base of fc1, fc2": shallow(ts_base="task", locations=["fc1", "fc2"]),
    "task base of proj, fc2": shallow(ts_base="task", locations=["proj", "fc2"]),
    "fc1 alone": shallow(locations=["fc1"]),
    "qkv and fc2": shallow(locations=["qkv", "fc2"]),
    "qkv and proj": shallow(locations=["qkv", "proj"]),
}


def structure(architecture: dict[str, Any]) -> tuple:
    """The properties that determine how a model merges."""
    method = architecture["method"]
    specific = method.get("task_rank", 0) != 0
    locations = frozenset(method.get("locations", ("qkv", *TASK_LAYERS)))
    options = (method["name"], specific, method.get("merging"), method.get("ts_base", "shared"), locations)
    return (*options, architecture["decoder"]["name"])


@functools.cache
def arrays_of(name: str) -> dict[str, np.ndarray]:
    """Weights of a case, none of them zero."""
    return micro.random_arrays(CASES[name])


@pytest.mark.parametrize("name", CASES)
def test_merged_logits(name):
    images = micro.random_images(height=45, width=37)  # neither side fits patches, windows or merging
    expected = micro.logits_of(micro.holding(CASES[name], arrays_of(name)), images)
    logits = micro.logits_of(micro.holding(*merged_arrays(CASES[name], arrays_of(name))), images)
    assert set(logits) == set(expected) == set(CASES[name]["tasks"])
    for task, value in expected.items():
        np.testing.assert_allclose(logits[task], value, rtol=0, atol=1e-5 * np.abs(value).max(), err_msg=task)


ARGUMENTS = {  # of every file in configs/
    "ccp.py": [f"tiny,224,{method}" for method in ("mtlora", "mtlora_plus", "mtlora_ta_only", "decoders_only", "full")],
    "decoders_only_tiny_448.py": [""],
    "demo.py": ["mtlora", "decoders_only"],
    "full_tiny_448.py": [""],
    "mtlora_nyud_tiny_448.py": ["64"],
    "mtlora_plus_tiny_448.py": ["16"],
    "mtlora_ta_only_tiny_448.py": ["64"],
    "mtlora_tiny_448.py": ["64"],
    "single_task_tiny_448.py": ["sal"],
}
NOT_MERGED = {"bitfit_tiny_448.py"}  # an encoder of its own for each task


def test_every_config_is_covered():
    assert {path.name for path in CONFIGS.glob("*.py")} == set(ARGUMENTS) | NOT_MERGED

    def with_defaults(architecture):
        return architecture | {"method": {"merging": "train", "task_rank": 4} | architecture["method"]}

    covered = {structure(with_defaults(architecture)) for architecture in CASES.values()}
    for file, arguments in ARGUMENTS.items():
        for argument in arguments:
            config = configs.load(str(CONFIGS / (f"{file}:{argument}" if argument else file)), ("data.root=none",))
            outputs = {name: task.channels for name, task in build_tasks(config).items()}
            architecture = model_factory.from_config(config, outputs)
            assert structure(with_defaults(architecture)) in covered, f"{file}:{argument}"


@pytest.mark.parametrize("ts_base", ["shared", "task"])
@pytest.mark.parametrize("locations", SUBSETS, ids="+".join)
def test_nothing_dead_is_left(locations, ts_base):
    """Some logit depends on every weight of a merged model, and no product was added."""
    architecture = shallow(locations=locations, ts_base=ts_base)
    before, _ = macs_of(model_factory.build(architecture), (32, 32))
    after, used = macs_of(model_factory.build(merged_architecture(architecture)), (32, 32))
    assert [path for path, needed in used.items() if not needed] == []
    assert after.products < before.products
    assert after.attention == before.attention


def test_factors_are_gone_where_they_fold():
    """The shared stream ends in the last block; its factors remain if a later layer starts from the shared input."""
    first, last = "layers.0.blocks.1.", "layers.1.blocks.0."
    all_but_last_fc2 = {f"{first}attn.proj", f"{first}mlp.fc1", f"{first}mlp.fc2", f"{last}attn.proj", f"{last}mlp.fc1"}
    for name, left in {
        "mtlora": all_but_last_fc2,
        "mtlora_plus": all_but_last_fc2,
        "ta_only": set(),
        "task base": {f"{first}attn.proj"},
        "fc1 alone": set(),
    }.items():
        _, arrays = merged_arrays(CASES[name], arrays_of(name))
        factors = [path.removesuffix(".shared_a") for path in arrays if path.endswith(".shared_a")]
        assert {path.removeprefix("backbone.") for path in factors} == left, name
        assert not any("norm" in path.split(".")[-2] for path in arrays if path.startswith("decoders."))
        assert all(array.dtype == np.float32 for array in arrays.values())


def test_weights_that_merge_are_those_of_the_equations():
    arrays = {path: value.astype(np.float64) for path, value in arrays_of("mtlora_plus").items()}
    _, merged = merged_arrays(CASES["mtlora_plus"], arrays_of("mtlora_plus"))
    scale = 4.0

    def close(path, expected):
        np.testing.assert_allclose(merged[path], expected, rtol=1e-6, atol=1e-7)

    qkv, fc1 = "backbone.layers.0.blocks.0.attn.qkv.", "backbone.layers.0.blocks.1.mlp.fc1."
    close(f"{qkv}kernel", arrays[f"{qkv}kernel"] + scale * arrays[f"{qkv}shared_a"] @ arrays[f"{qkv}shared_b"])
    for kept in ("kernel", "bias", "shared_a", "task_a.sal"):
        np.testing.assert_array_equal(merged[f"{fc1}{kept}"], arrays_of("mtlora_plus")[f"{fc1}{kept}"])
    for scaled in ("shared_b", "task_b.sal"):
        close(f"{fc1}{scaled}", scale * arrays[f"{fc1}{scaled}"])
    reduction = "backbone.layers.0.downsample.reduction."
    reduced = arrays[f"{reduction}kernel"] + scale * arrays[f"{reduction}shared_a"] @ arrays[f"{reduction}shared_b"]
    close("decoders.sal.projections.0.kernel", reduced @ arrays["decoders.sal.projections.0.kernel"])
    names = ("fuse.kernel", "fuse.bias", "norm.scale", "norm.bias", "norm.mean", "norm.var")
    head = {name: arrays[f"decoders.sal.head.{name}"] for name in names}
    gain = head["norm.scale"] / np.sqrt(head["norm.var"] + 1e-5)
    close("decoders.sal.head.fuse.kernel", head["fuse.kernel"] * gain)
    close("decoders.sal.head.fuse.bias", (head["fuse.bias"] - head["norm.mean"]) * gain + head["norm.bias"])


def test_values_fold_in_double_precision():
    """Differences that float32 would lose are kept: 1 + 1e-9 - 1 is 1e-9."""
    layer = Linear(1, 1)
    parameters.assign(layer, {"kernel": np.ones((1, 1)), "bias": np.ones(1)}, "values")
    value = map_weights(lambda w, b: w + 1e-9 - b, layer.kernel, layer.bias).get_value()
    assert value.dtype == np.float32
    np.testing.assert_allclose(value, 1e-9, rtol=1e-6)


def test_merging_keeps_the_model_and_what_is_said_of_it(tmp_path):
    """A saved merged model opens like any other and has the same outputs."""
    extra = {"scores": {"sal/maxF": 70.0}}
    model_folder.save(tmp_path / "model", CASES["one task"], arrays_of("one task"), extra)
    model = mtlora_jax.load(tmp_path / "model")
    merged = merge(model)
    assert model.architecture == CASES["one task"]
    assert merged.architecture == CASES["one task"] | {"method": {"name": "merged", "of": CASES["one task"]["method"]}}
    assert merged.config["scores"] == extra["scores"]
    model_folder.save(tmp_path / "merged", merged.architecture, parameters.host_arrays(merged.module), extra)
    loaded = mtlora_jax.load(tmp_path / "merged")
    assert loaded.architecture == merged.architecture
    for path, value in parameters.host_arrays(merged.module).items():
        np.testing.assert_array_equal(parameters.host_arrays(loaded.module)[path], value)
    images = micro.random_images(1)
    expected = model(images, fit="none")["sal"]
    np.testing.assert_allclose(loaded(images, fit="none")["sal"], expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    with pytest.raises(UserError, match="merged already; merge the mtlora model that it was made from"):
        merge(loaded)


def test_nothing_of_a_merged_model_trains():
    architecture = merged_architecture(CASES["mtlora"])
    method = model_factory.method_of(architecture)
    variables = parameters.flat_variables(model_factory.build(architecture))
    assert variables
    assert not any(method.is_trainable(path, variable) for path, variable in variables.items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "method 'merged' needs of"),
        ({"of": "mtlora"}, "method.of = 'mtlora' must be the name and options"),
        ({"of": {"name": "merged", "of": {"name": "full"}}}, "cannot be merged again"),
        ({"of": {"name": "mtlora", "rnak": 3}}, "method 'mtlora' has no option 'rnak'; did you mean rank"),
    ],
)
def test_refused(options, message):
    with pytest.raises(UserError, match=message):
        model_factory.build(CASES["full"] | {"method": {"name": "merged", **options}})


def test_arrays_that_do_not_fit():
    arrays = {path: value for path, value in arrays_of("full").items() if "fc1" not in path}
    with pytest.raises(UserError, match=r"the model to merge does not fit the model; missing: .*mlp\.fc1\.kernel"):
        merged_arrays(CASES["full"], arrays)


def task_layer(ts_base: str) -> tuple[TaskLoRALinear, dict[str, np.ndarray]]:
    """A layer 5 -> 4 with random weights, and those weights in float64."""
    shared = {"rank": 2, "scale": 3.0, "dropout": 0.0}
    of_tasks = {"task_rank": {"a": 1, "b": 3}, "task_scale": {"a": 2.0, "b": 0.5}}
    layer = TaskLoRALinear(Linear(5, 4), **shared, **of_tasks, ts_base=ts_base)
    rng = np.random.default_rng(0)
    values = {path: rng.normal(size=variable.shape) for path, variable in parameters.flat_variables(layer).items()}
    parameters.assign(layer, values, "values")
    return layer, values


def merged_layer(layer, **needs):
    """The layer that `replace` puts in the place of another."""
    holder = types.SimpleNamespace(layer=layer)
    replace((holder, "layer"), **needs)
    return holder.layer


@pytest.mark.parametrize("tasks_come_in", [False, True], ids=["first layer", "later layer"])
@pytest.mark.parametrize("ts_base", ["shared", "task"])
@pytest.mark.parametrize("needs_shared", [False, True], ids=["shared unread", "shared read"])
def test_merged_task_layer(ts_base, tasks_come_in, needs_shared):
    layer, _ = task_layer(ts_base)
    merged = merged_layer(layer, needs_shared=needs_shared, needs_tasks=True, tasks_come_in=tasks_come_in)
    per_task = tasks_come_in and ts_base == "task"
    assert type(merged) is (PerTaskLinear if per_task else MergedTaskLoRALinear)
    place = types.SimpleNamespace(layer=merged), "layer"
    assert reads_shared(place, needs_shared, tasks_come_in) == (needs_shared or not per_task)
    rng = np.random.default_rng(1)
    x = TaskFeatures(*(np.float32(rng.normal(size=shape)) for shape in ((2, 3, 5), (2, 2, 3, 5))))
    x = x if tasks_come_in else TaskFeatures(x.shared)
    expected, actual = layer.forward(x), merged.forward(x)
    np.testing.assert_allclose(actual.tasks, expected.tasks, rtol=0, atol=1e-5)
    if needs_shared:
        np.testing.assert_allclose(actual.shared, expected.shared, rtol=0, atol=1e-5)
    elif per_task:
        assert actual.shared is None


@pytest.mark.parametrize("ts_base", ["shared", "task"])
def test_layer_whose_task_outputs_nobody_reads(ts_base):
    layer, w = task_layer(ts_base)
    merged = merged_layer(layer, needs_shared=True, needs_tasks=False, tasks_come_in=True)
    np.testing.assert_allclose(merged.kernel.get_value(), w["kernel"] + 3.0 * w["shared_a"] @ w["shared_b"], rtol=1e-6)
    assert set(parameters.flat_variables(merged)) == {"kernel", "bias"}
    assert not isinstance(merged, LoRALinear)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("kind", [Linear, Conv])
def test_norm_folds_into_the_layer_before(kind, bias):
    layer = Linear(5, 4, use_bias=bias) if kind is Linear else Conv(5, 4, 3, padding=1, use_bias=bias)
    norm = BatchNorm(4)
    rng = np.random.default_rng(0)
    for module in (layer, norm):
        values = {path: np.abs(rng.normal(size=v.shape)) for path, v in parameters.flat_variables(module).items()}
        parameters.assign(module, values, "values")
    x = np.float32(rng.normal(size=(2, 6, 7, 5)))
    expected = norm(layer(x), False)
    left = norm.fold_into(layer)
    assert parameters.flat_variables(left) == {}
    np.testing.assert_allclose(left(layer(x), False), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
