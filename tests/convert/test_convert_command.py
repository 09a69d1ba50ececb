"""The converter's command: training checkpoints and their pickles, flags, and invalid input."""

import os
import pickle
import re
import sys
import types

import jax
import numpy as np
import pytest
from checkpoints import BARE, assert_equal, hugging_face, multitask, official, reference, run_command, saved, weights
from paths import GOLDEN

import mtlora_jax
from mtlora_jax.convert import convert
from mtlora_jax.errors import UserError
from mtlora_jax.model_io import model_folder


class CfgNode(dict):
    """Pickles like the class of yacs."""

    def __init__(self, entries):
        super().__init__({key: CfgNode(value) if isinstance(value, dict) else value for key, value in entries.items()})
        self.__dict__.update(__immutable__=True, __deprecated_keys__=set(), __renamed_keys__={}, __new_allowed__=False)


def training_checkpoint(state, **mtlora):
    """A training checkpoint as the reference saves it, with its pickled configuration."""
    import torch

    state = {key: torch.from_numpy(np.array(x)) for key, x in state.items()}
    config = {
        "DATA": {"IMG_SIZE": 96},
        "MODEL": {"DROP_PATH_RATE": 0.3, "SWIN": {"QK_SCALE": None}, "MTLORA": mtlora},
        "TRAIN": {"FREEZE_LAYER_NORM": True, "FREEZE_DOWNSAMPLE_REDUCTION": True, "OPTIMIZER": {"BETAS": (0.9, 0.999)}},
    }
    moments = {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(2)}}
    optimizer = {"state": moments, "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.999)}]}
    schedule = {"lr_scheduler": {"values": [1.0]}, "max_accuracy": np.float64(1.5), "scaler": {}, "epoch": 7}
    return {"model": state, "optimizer": optimizer, **schedule, "config": CfgNode(config)}


@pytest.fixture
def yacs(monkeypatch):
    """Makes `CfgNode` picklable as `yacs.config.CfgNode`, in the pickle only."""
    module = types.ModuleType("yacs.config")
    module.CfgNode = CfgNode
    monkeypatch.setattr(CfgNode, "__module__", "yacs.config")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
        patch.setitem(sys.modules, "yacs.config", module)
        yield patch


@pytest.mark.parametrize("zipped", [True, False])
def test_training_checkpoint_with_pickled_configuration(zipped, tmp_path, yacs):
    torch = pytest.importorskip("torch")
    arrays = weights(multitask())
    scales = {"semseg": [1.0, 2.0, 3.0, 4.0], "edge": [6.0]}
    options = {"SHARED_SCALE": [2.0], "SCALE_PER_TASK": scales, "DROPOUT": [0.1] * 4, "SHARED_MODE": "matrix"}
    checkpoint = training_checkpoint(reference(arrays), **options)
    torch.save(checkpoint, tmp_path / "c.pth", _use_new_zipfile_serialization=zipped)
    yacs.undo()
    architecture, found, report, _ = convert(tmp_path / "c.pth")
    assert_equal(found, arrays)
    assert architecture["image_size"] == [96, 96]
    assert architecture["backbone"]["drop_path_rate"] == 0.3
    assert architecture["method"]["scale"] == [2.0] * 4
    assert architecture["method"]["task_scale"] == {"semseg": [1.0, 2.0, 3.0, 4.0], "edge": [6.0] * 4}
    assert architecture["method"]["dropout"] == 0.1
    assert architecture["method"]["merging"] == "freeze"
    assert architecture["method"]["freeze"] == ["norms"]
    assert any("image size 96 (checkpoint's configuration)" in line for line in report)

    # Flags take precedence over the configuration.
    architecture, _, report, _ = convert(tmp_path / "c.pth", scale=5.0, image_size=128)
    assert architecture["image_size"] == [128, 128]
    assert architecture["method"]["scale"] == [5.0] * 4
    assert architecture["method"]["task_scale"] == {"semseg": [5.0] * 4, "edge": [5.0] * 4}
    assert any("image size 128 (flag)" in line for line in report)


@pytest.mark.parametrize(("name", "value"), [("SHARED_MODE", "matrixv2"), ("INTERMEDIATE_SPECIALIZATION", True)])
def test_configurations_we_cannot_do_are_refused(name, value, tmp_path, yacs):
    torch = pytest.importorskip("torch")
    torch.save(training_checkpoint(reference(weights(multitask())), **{name: value}), tmp_path / "c.pth")
    with pytest.raises(UserError, match=f"MODEL.MTLORA.{name} = {value!r}"):
        convert(tmp_path / "c.pth")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("DATA.IMG_SIZE", "big", "a whole number from 1 to 65536"),
        ("DATA.IMG_SIZE", 10**30, "a whole number from 1 to 65536"),
        ("MODEL.DROP_PATH_RATE", float("nan"), "a finite number from 0 to 1"),
        ("MODEL.MTLORA.SHARED_SCALE", [[1]], "a finite number .*, or a list of one per stage"),
        ("MODEL.MTLORA.SHARED_SCALE", float("inf"), "a finite number"),
        ("MODEL.MTLORA.SCALE_PER_TASK", {"semseg": "x", "edge": 1}, "or {task: either of them}"),
        ("MODEL.MTLORA.DROPOUT", 3, "a finite number from 0 to 1"),
    ],
)
def test_configurations_of_odd_values(name, value, expected, tmp_path, capsys):
    torch = pytest.importorskip("torch")
    config = value
    for part in reversed(name.split(".")):
        config = {part: config}
    state = {key: torch.from_numpy(np.array(x)) for key, x in reference(weights(multitask())).items()}
    source, out = tmp_path / "c.pth", tmp_path / "out"
    torch.save({"model": state, "config": config}, source)
    assert_refused([source, out], out, rf"configuration: {name} = .* must be .*{expected}", capsys)


@pytest.mark.parametrize(
    "wrap", [lambda s: s, lambda s: {"state_dict": s}, lambda s: {"model": {f"module.{k}": v for k, v in s.items()}}]
)
def test_bare_and_wrapped_state_dicts(wrap, tmp_path):
    torch = pytest.importorskip("torch")
    arrays = weights(BARE)
    torch.save(wrap({key: torch.from_numpy(np.array(x)) for key, x in official(arrays).items()}), tmp_path / "c.bin")
    assert_equal(convert(tmp_path / "c.bin").arrays, arrays)


class Hostile:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
def test_hostile_pickles_are_refused_unrun(kind, tmp_path, capsys):
    torch = pytest.importorskip("torch")
    marker, source = tmp_path / "marker", tmp_path / "hostile.pth"
    content = {"model": Hostile(marker)}
    if kind == "pickle":
        source.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, source, _use_new_zipfile_serialization=kind == "zip")
    assert run_command([str(source), str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith(f"error: {source}: ")
    assert "weights_only" not in error  # PyTorch's message says how to run it
    if kind != "pickle":
        assert "refused, since it asks to load posix.system, and only" in error
    assert not marker.exists()
    assert not (tmp_path / "out").exists()
    pickle.loads(pickle.dumps(content))  # the pickle is in fact hostile
    assert marker.exists()


def test_command_writes_a_folder_that_loads(tmp_path, capsys):
    architecture = multitask()
    arrays = weights(architecture)
    source, out = saved(tmp_path, reference(arrays)), tmp_path / "out"
    assert run_command([str(source), str(out), "--scale=2", "--image_size=64"]) == 0
    printed = capsys.readouterr().out
    for words in ("mtlora (backbone.* with lora_shared_A)", "edge 1, semseg 21", "2/3/4/5 on qkv, proj, fc1, fc2"):
        assert words in printed
    assert "2 (flag)" in printed
    assert str(out) in printed
    found, values = model_folder.read(out)
    assert_equal(values, arrays)
    assert found["architecture"]["method"]["scale"] == [2.0] * 4
    assert found["converted_from"] == {"file": "model.safetensors", "format": "mtlora"}
    model = mtlora_jax.load(out)
    shapes = jax.eval_shape(model.module, jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32))
    assert {task: x.shape for task, x in shapes.items()} == {"semseg": (1, 64, 64, 21), "edge": (1, 64, 64, 1)}

    assert run_command([str(source), str(out)]) == 2
    assert "is not empty: choose another folder, or say --overwrite" in capsys.readouterr().err
    assert run_command([str(source), str(out), "--overwrite", "--tasks=edge"]) == 0
    assert model_folder.read(out)[0]["architecture"]["tasks"] == {"edge": 1}


def test_help_shows_an_example(capsys):
    assert run_command(["--help"]) == 0
    assert "python -m mtlora_jax.convert swin_tiny_patch4_window7_224.pth" in capsys.readouterr().out


def bare():
    return official(weights(BARE))


def adapted():
    return reference(weights(multitask()))


def without(state, key):
    return {k: x for k, x in state.items() if k != key}


def mixed_decoders():
    state = adapted()
    other = reference(weights(multitask("aspp")), "aspp")
    is_edge = "decoders.decoders.edge."
    return {k: x for k, x in state.items() if is_edge not in k} | {k: x for k, x in other.items() if is_edge in k}


def with_tensor(state, key, *shape):
    """A function that adds ones of a shape to the tensors that `state` returns."""
    return lambda: state() | {key: np.ones(shape)}


LAYERS = "backbone.layers.0.blocks."
WRONG_TENSORS = {  # {case: (tensors, flags, error message)}
    "nothing": (dict, [], "holds no tensors"),
    "other model": (lambda: {"conv1.weight": np.ones(3)}, [], "no Swin Transformer of a known format"),
    "only a head": (lambda: {"head.weight": np.ones(3)}, ["--from=swin"], "holds no weights in the swin format"),
    "other format": (bare, ["--from=hf"], r"tensors without a place in the model: .*, \.\.\. \(\d+\)"),
    "left over": (
        with_tensor(bare, "absolute_pos_embed", 1, 4, 8),
        [],
        r"tensors without a place in the model: absolute_pos_embed \(1\)",
    ),
    "missing": (
        lambda: without(bare(), "layers.2.blocks.0.mlp.fc2.bias"),
        [],
        r"missing: backbone.layers.2.blocks.0.mlp.fc2.bias \(1\)",
    ),
    "no patches": (
        lambda: without(bare(), "patch_embed.proj.weight"),
        ["--from=swin"],
        "no tensor for backbone.patch_embed.proj.kernel",
    ),
    "shape": (
        with_tensor(bare, "layers.0.blocks.1.attn.qkv.bias", 23),
        [],
        r"attn.qkv.bias \(23,\) instead of \(24,\)",
    ),
    "rank": (
        with_tensor(bare, "layers.0.blocks.1.attn.qkv.weight", 24),
        [],
        r"qkv.weight has shape \(24,\), .* not that of a linear",
    ),
    "scalar": (
        lambda: bare() | {"patch_embed.norm.bias": np.float32(1)},
        [],
        r"patch_embed.norm.bias has shape \(\), .* of a vector",
    ),
    "empty": (
        with_tensor(bare, "layers.0.blocks.0.mlp.fc1.weight", 16, 0),
        [],
        r"model\.safetensors: layers\.0\.blocks\.0\.mlp\.fc1\.weight has no values",
    ),
    "table": (
        lambda: {k: np.ones((48, x.shape[1])) if k.endswith("table") else x for k, x in bare().items()},
        [],
        r"position table has shape \(48, 1\), expected \(\(2w - 1\)\^2, heads\)",
    ),
    "windows": (
        with_tensor(bare, "layers.3.blocks.0.attn.relative_position_bias_table", 9, 4),
        [],
        r"windows of \[4, 4, 4, 2\]; make them one with --window_size",
    ),
    "window flag": (bare, ["--window_size=0"], "--window_size=0 must be at least 1"),
    "huge window": (bare, ["--window_size=1000000"], "--window_size=1000000 must be at least 1 and at most 256"),
    "infinite scale": (adapted, ["--scale=inf"], "--scale=inf must be above 0 and finite"),
    "no scale": (adapted, ["--scale=nan"], "--scale=nan must be above 0 and finite"),
    "scale of nothing": (adapted, ["--scale=0"], r"--scale=0\.0 must be above 0 and finite"),
    "image flag": (bare, ["--image_size=16"], "image_size = "),
    "no number": (bare, ["--scale=big"], "argument --scale: invalid float value: 'big'"),
    "format": (bare, ["--from=caffe"], "invalid choice: 'caffe'"),
    "tasks of a backbone": (bare, ["--tasks=semseg"], "--tasks=semseg: the checkpoint has no tasks"),
    "unknown task": (
        adapted,
        ["--tasks=semseg,depth"],
        "--tasks=semseg,depth: expected some of edge, semseg, each once",
    ),
    "task twice": (adapted, ["--tasks=edge,edge"], "--tasks=edge,edge: expected some of edge, semseg, each once"),
    "trainable scale": (
        with_tensor(adapted, LAYERS + "0.mlp.fc1.lora_shared_scale", 1),
        [],
        LAYERS + "0.mlp.fc1.lora_shared_scale: trainable scales",
    ),
    "task scale": (
        with_tensor(adapted, LAYERS + "1.mlp.fc1.lora_task_scale.edge", 1),
        [],
        "lora_task_scale.edge: trainable scales",
    ),
    "addition": (
        with_tensor(adapted, LAYERS + "1.mlp.fc1.lora_norm.weight", 16),
        [],
        "lora_norm.weight: MTLORA.SHARED_MODE 'addition'",
    ),
    "split qkv": (with_tensor(adapted, LAYERS + "0.attn.q.linear.weight", 8, 8), [], "SPLIT_QKV"),
    "shared projections": (
        with_tensor(adapted, "downsampler.downsample_0.weight", 2, 16, 1, 1),
        [],
        "PER_TASK_DOWNSAMPLER",
    ),
    "mixed decoders": (mixed_decoders, [], "all tasks must have the same kind of decoder"),
    "no projections": (
        lambda: {k: x for k, x in adapted().items() if "downsampler" not in k},
        [],
        "has no 1x1 projections",
    ),
    "low rank everywhere": (
        with_tensor(adapted, LAYERS + "0.mlp.fc1.lora_tasks_A.edge", 2, 8),
        [],
        f"left over: {LAYERS}0.mlp.fc1.task_a.edge",
    ),
    "twice": (
        with_tensor(adapted, LAYERS + "0.mlp.fc1.weight", 16, 8),
        [],
        f"are the same tensor {LAYERS}0.mlp.fc1.kernel",
    ),
    "third of qkv": (
        lambda: without(hugging_face(weights(BARE)), "swin.encoder.layers.0.blocks.0.attention.self.value.weight"),
        [],
        r"attn.qkv.kernel \(8, 16\) instead of \(8, 24\)",
    ),
}


def assert_refused(arguments, out, message, capsys):
    """Asserts one line on stderr, exit code 2, and nothing written."""
    before = sorted(out.parent.iterdir())
    assert run_command([*map(str, arguments)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.fullmatch(rf"error: .*(?:{message}).*\n", printed.err), printed.err
    assert sorted(out.parent.iterdir()) == before


@pytest.mark.parametrize("case", WRONG_TENSORS)
def test_wrong_tensors_and_flags(case, tmp_path, capsys):
    state, flags, message = WRONG_TENSORS[case]
    source = saved(tmp_path, {k: np.asarray(x, np.float32) for k, x in state().items()})
    assert_refused([source, tmp_path / "out", *flags], tmp_path / "out", message, capsys)


def test_wrong_files(tmp_path, capsys):
    out = tmp_path / "out"
    whole = saved(tmp_path, bare()).read_bytes()
    for name, content, message in [
        ("garbage.safetensors", b"hello" * 9, "not a readable safetensors file"),
        ("cut.safetensors", whole[: len(whole) // 2], "not a readable safetensors file"),
        ("empty.safetensors", b"", "not a readable safetensors file"),
        ("weights.h5", b"", r"weights\.h5: unknown kind of file, expected one of \.safetensors, \.pth, \.pt, \.bin"),
    ]:
        (tmp_path / name).write_bytes(content)
        assert_refused([tmp_path / name, out], out, message, capsys)
    (tmp_path / "empty").mkdir()
    assert_refused([tmp_path / "empty", out], out, "holds neither model.safetensors nor pytorch_model.bin", capsys)
    assert_refused([tmp_path / "nowhere.pth", out], out, r"nowhere\.pth: no such file or directory", capsys)
    source, file = tmp_path / "model.safetensors", tmp_path / "weights.h5"
    assert_refused([source, tmp_path], out, "holds the source", capsys)
    assert_refused([source, file], out, "is a file", capsys)
    assert_refused([source], out, "the following arguments are required: out", capsys)
    assert_refused([source, file / "out"], out, r"h5/out: cannot be written \(", capsys)


def test_wrong_torch_files(tmp_path, capsys):
    torch = pytest.importorskip("torch")
    out = tmp_path / "out"
    whole = (GOLDEN / "mtlora" / "checkpoint.pth").read_bytes()
    damaged = {"garbage.pth": b"hello world" * 9, "cut.pth": whole[: len(whole) // 2], "empty.pth": b""}
    for name, content in damaged.items():
        (tmp_path / name).write_bytes(content)
        assert_refused([tmp_path / name, out], out, "damaged, or not a PyTorch checkpoint", capsys)
    for content, message in [
        ([1, 2], "holds a list, expected a state dict"),
        ({"model": {}}, "holds no tensors"),
        ({"epoch": 3}, "epoch is a int, not a tensor"),
        ({"a": torch.eye(3).to_sparse()}, "a cannot be read as an array"),
    ]:
        torch.save(content, tmp_path / "odd.pth")
        assert_refused([tmp_path / "odd.pth", out], out, message, capsys)
    for place in (tmp_path / "odd.pth" / "out.pth", "/proc/out.pth"):
        arguments = [GOLDEN / "mtlora" / "checkpoint.pth", place, "--to=mtlora"]
        assert_refused(arguments, out, r"out\.pth: cannot be written \(", capsys)
