"""Converter: golden checkpoints, every format, exactness of the names, and what must be refused."""

import json
import os
import pathlib
import pickle
import re
import sys
import types

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import mtlora_jax
from mtlora_jax import cli, folder, parameters
from mtlora_jax.architecture import build
from mtlora_jax.convert import __main__ as command
from mtlora_jax.convert import convert
from mtlora_jax.convert.geometry import resize_table
from mtlora_jax.errors import UserError

GOLDEN = pathlib.Path(__file__).parent / "golden"

BACKBONE = {
    "name": "swin",
    "embed_dim": 8,
    "depths": [2, 1, 1, 1],
    "num_heads": [1, 2, 2, 4],
    "window_size": 4,
    "patch_size": 4,
    "mlp_ratio": 2.0,
    "drop_path_rate": 0.2,
}
BARE = {"backbone": BACKBONE, "tasks": {}, "decoder": None, "method": {"name": "full"}, "image_size": [448, 448]}
HEADS = {
    "hrnet": {"name": "hrnet", "channels": [2, 3, 4, 5]},
    "segformer": {"name": "segformer", "channels": [2, 3, 4, 5], "width": 6, "dead_classifier": True},
    "aspp": {"name": "aspp", "channels": [2, 3, 4, 5], "width": 6},
}


def main(arguments: list[str]) -> int:
    """Exit code of the command."""
    try:
        cli.run(lambda: command.main(arguments))
    except SystemExit as done:
        return int(done.code or 0)
    return 0


def multitask(head="hrnet", **method):
    options = {
        "name": "mtlora", "rank": [2, 3, 4, 5], "task_rank": {"semseg": [1, 2, 3, 4], "edge": [2, 2, 1, 1]}, "scale": [4.0] * 4,
        "task_scale": {"semseg": [4.0] * 4, "edge": [4.0] * 4}, "dropout": 0.05, "locations": ["qkv", "proj", "fc1", "fc2"],
        "ts_base": "shared", "merging": "train", "freeze": [],
    }  # fmt: skip
    return BARE | {"tasks": {"semseg": 21, "edge": 1}, "decoder": HEADS[head], "method": options | method}


def weights(architecture, seed=0):
    """Random numbers, different for every tensor, in the shapes of the model."""
    rng = np.random.default_rng(seed)
    return {path: rng.normal(size=v.shape).astype(np.float32) for path, v in parameters.variables(build(architecture)).items()}


def torch_layout(path, x):
    """Name and value of a tensor as PyTorch has it: `weight`, outputs first."""
    if x.ndim == 2 and not path.endswith("table"):
        x = x.T
    return re.sub(r"\.(kernel|scale)$", ".weight", path), np.ascontiguousarray(x.transpose(3, 2, 0, 1) if x.ndim == 4 else x)


def official(arrays):
    state = dict(torch_layout(path.removeprefix("backbone."), x) for path, x in arrays.items())
    width = state["layers.3.blocks.0.norm1.weight"].shape[0]
    extra = {"norm.weight": np.ones(width), "norm.bias": np.zeros(width), "head.weight": np.ones((3, width)), "head.bias": np.zeros(3)}
    index = {"layers.0.blocks.0.attn.relative_position_index": np.zeros((16, 16), np.int64)}
    return state | extra | index


def timm(arrays):
    state = {key.replace("head.", "head.fc."): x for key, x in official(arrays).items() if "index" not in key}
    return {re.sub(r"layers\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) + 1}.downsample", key): x for key, x in state.items()}


HUGGING_FACE = {
    r"^layers": "encoder.layers",
    r"^patch_embed\.proj": "embeddings.patch_embeddings.projection",
    r"^patch_embed\.norm": "embeddings.norm",
    r"^norm": "layernorm",
    r"norm1": "layernorm_before",
    r"norm2": "layernorm_after",
    r"attn\.proj": "attention.output.dense",
    r"attn\.relative": "attention.self.relative",
    r"mlp\.fc1": "intermediate.dense",
    r"mlp\.fc2": "output.dense",
    r"^head": "classifier",
}


def hugging_face(arrays, prefix="swin."):
    state = {}
    for key, x in official(arrays).items():
        for pattern, name in HUGGING_FACE.items():
            key = re.sub(pattern, name, key)
        key = key if key.startswith("classifier") else prefix + key
        if "attn.qkv" in key:
            for name, third in zip(("query", "key", "value"), np.split(x, 3), strict=True):
                state[key.replace("attn.qkv", f"attention.self.{name}")] = third
        else:
            state[key] = x
    return state


REFERENCE_HEADS = {
    "hrnet": {"fuse": "last_layer.0", "norm": "last_layer.1", "classifier": "last_layer.3"},
    "segformer": {f"linear.{i}": f"linear_c{i + 1}.proj" for i in range(4)}
    | {"fuse": "linear_fuse.conv", "norm": "linear_fuse.bn", "classifier": "linear_pred", "conv_seg": "conv_seg"},
    "aspp": {f"branches.{i}": f"0.convs.{i}.{int(i == 4)}" for i in range(5)}
    | {f"branch_norms.{i}": f"0.convs.{i}.{1 + (i == 4)}" for i in range(5)}
    | {"project": "0.project.0", "project_norm": "0.project.1", "conv": "1", "conv_norm": "2", "classifier": "4"},
}


def reference(arrays, head="hrnet"):
    """As the reference saves it: adapted layers as `.linear`, 1x1 convolutions with four axes (but not SegFormer's linears)."""
    state = {}
    for path, x in arrays.items():
        key, x = torch_layout(path, x)
        key = re.sub(r"\.shared_(a|b)$", lambda m: f".lora_shared_{m[1].upper()}", key)
        key = re.sub(r"\.task_(a|b)\.(\w+)$", lambda m: f".lora_tasks_{m[1].upper()}.{m[2]}", key)
        if re.sub(r"\.(kernel|bias)$", ".shared_a", path) in arrays and path.endswith((".kernel", ".bias")):
            key = re.sub(r"\.(weight|bias)$", r".linear.\1", key)
        if found := re.fullmatch(r"decoders\.(\w+)\.(?:projections\.(\d)|head\.(.*))\.(\w+)", key):
            task, projection, layer, kind = found.groups()
            kind = {"mean": "running_mean", "var": "running_var"}.get(kind, kind)
            name = f"downsampler.{task}.downsample_{projection}"
            key = f"{name if projection else f'decoders.decoders.{task}.{REFERENCE_HEADS[head][layer]}'}.{kind}"
            if x.ndim == 2 and "linear_c" not in key:
                x = x[:, :, None, None]
        state[key] = x
    return state


def saved(tmp_path, state, name="model.safetensors"):
    safetensors.numpy.save_file({key: np.array(x, order="C") for key, x in state.items()}, tmp_path / name)
    return tmp_path / name


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for path, x in expected.items():
        assert found[path].dtype == np.float32
        np.testing.assert_array_equal(found[path], x, err_msg=path)


SMALL = {
    "name": "swin",
    "embed_dim": 24,
    "depths": [2] * 4,
    "num_heads": [2, 4, 8, 16],
    "window_size": 7,
    "patch_size": 4,
    "mlp_ratio": 4.0,
}
EXPECTED = {  # tasks, rank, task ranks, merging, values (parameters and batch statistics)
    "mtlora": (
        {"semseg": 21, "normals": 3, "sal": 1, "human_parts": 7},
        8,
        {"semseg": 4, "normals": 3, "sal": 2, "human_parts": 4},
        "train",
        1_490_420 + 4 * 2 * 144,
    ),
    "mtlora_plus": ({"semseg": 21, "sal": 1}, 6, {"semseg": 4, "sal": 4}, "lora", 1_428_586 + 2 * 2 * 144),
    "swin_multitask": ({"semseg": 21, "normals": 3}, None, None, None, 1_319_148 + 2 * 2 * 144),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_golden_checkpoints(name):
    torch = pytest.importorskip("torch")
    architecture, arrays, report, format = convert(GOLDEN / name / "checkpoint.pth")
    tasks, rank, task_ranks, merging, values = EXPECTED[name]
    assert format == "mtlora"
    assert architecture["backbone"] == {**SMALL, "drop_path_rate": 0.2}
    assert list(architecture["tasks"].items()) == list(tasks.items())
    assert architecture["decoder"] == {"name": "hrnet", "channels": [6, 8, 10, 12]}
    assert architecture["image_size"] == [224, 224]  # off the attention masks
    if rank is None:
        assert architecture["method"] == {"name": "full"}
    else:
        method = architecture["method"]
        assert method["rank"] == [rank] * 4
        assert method["task_rank"] == {task: [r] * 4 for task, r in task_ranks.items()}
        assert method["merging"] == merging
        assert method["locations"] == ["qkv", "proj", "fc1", "fc2"]
    assert sum(x.size for x in arrays.values()) == values
    assert json.loads(json.dumps(architecture)) == architecture
    assert any("derived buffers" in line for line in report)

    state = torch.load(GOLDEN / name / "checkpoint.pth", weights_only=True)["model"]
    buffers = ("attn_mask", "relative_position_index", "num_batches_tracked")
    used = sorted(np.sort(x.numpy(), axis=None).tobytes() for key, x in state.items() if not key.endswith(buffers))
    assert used == sorted(np.sort(x, axis=None).tobytes() for x in arrays.values())  # every tensor exactly once


def test_golden_values_are_where_they_belong():
    torch = pytest.importorskip("torch")
    state = torch.load(GOLDEN / "mtlora" / "checkpoint.pth", weights_only=True)["model"]
    arrays = convert(GOLDEN / "mtlora" / "checkpoint.pth").arrays
    block = "backbone.layers.1.blocks.1."
    transposed = {
        block + "attn.qkv.kernel": block + "attn.qkv.linear.weight",
        block + "attn.qkv.shared_a": block + "attn.qkv.lora_shared_A",
        block + "mlp.fc2.shared_b": block + "mlp.fc2.lora_shared_B",
        block + "mlp.fc1.task_a.normals": block + "mlp.fc1.lora_tasks_A.normals",
        block + "attn.proj.task_b.sal": block + "attn.proj.lora_tasks_B.sal",
        "backbone.layers.2.downsample.reduction.kernel": "backbone.layers.2.downsample.reduction.weight",
        "decoders.sal.projections.3.kernel": "downsampler.sal.downsample_3.weight",
        "decoders.semseg.head.fuse.kernel": "decoders.decoders.semseg.last_layer.0.weight",
    }
    for path, key in transposed.items():
        np.testing.assert_array_equal(arrays[path], state[key].numpy().reshape(arrays[path].shape[::-1]).T)
    kernel = state["backbone.patch_embed.proj.weight"].numpy()
    assert arrays["backbone.patch_embed.proj.kernel"][1, 2, 0, 5] == kernel[5, 0, 1, 2]
    np.testing.assert_array_equal(
        arrays["decoders.normals.head.norm.var"], state["decoders.decoders.normals.last_layer.1.running_var"].numpy()
    )


@pytest.mark.parametrize("layout", [official, timm, hugging_face, lambda arrays: hugging_face(arrays, "")])
def test_backbone_formats(layout, tmp_path):
    arrays = weights(BARE)
    conversion = convert(saved(tmp_path, layout(arrays)))
    assert conversion.architecture == BARE
    assert_equal(conversion.arrays, arrays)
    assert conversion.format == {official: "swin", timm: "timm"}.get(layout, "hf")
    assert {"dropped    classifier head (2 tensors)", "dropped    final norm (2 tensors)"} <= set(conversion.report)


def test_timm_before_0_9_is_laid_out_like_the_official_one(tmp_path):
    arrays = weights(BARE)
    assert_equal(convert(saved(tmp_path, official(arrays)), "timm").arrays, arrays)


@pytest.mark.parametrize("head", HEADS)
def test_reference_decoders(head, tmp_path):
    architecture = multitask(head)
    arrays = weights(architecture)
    conversion = convert(saved(tmp_path, reference(arrays, head)))
    assert conversion.architecture == architecture
    assert_equal(conversion.arrays, arrays)


@pytest.mark.parametrize(
    "method",
    [
        {"locations": ["qkv", "fc2"]},
        {"merging": "lora"},
        {"task_rank": {"semseg": [0] * 4, "edge": [0] * 4}},
    ],
)
def test_reads_locations_merging_and_absent_task_branches_off_the_tensors(method, tmp_path):
    architecture = multitask(**method)
    arrays = weights(architecture)
    conversion = convert(saved(tmp_path, reference(arrays)))
    assert conversion.architecture == architecture
    assert_equal(conversion.arrays, arrays)


def test_keeps_tasks_in_the_order_asked(tmp_path):
    architecture = multitask()
    arrays = weights(architecture)
    source = saved(tmp_path, reference(arrays))
    swapped = convert(source, tasks=["edge", "semseg"])
    assert list(swapped.architecture["tasks"]) == ["edge", "semseg"]
    assert_equal(swapped.arrays, arrays)
    alone = convert(source, tasks=["edge"])
    assert alone.architecture["tasks"] == {"edge": 1}
    assert alone.architecture["method"]["task_rank"] == {"edge": [2, 2, 1, 1]}
    assert_equal(alone.arrays, {path: x for path, x in arrays.items() if "semseg" not in path})


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_every_float_becomes_float32(dtype, tmp_path):
    arrays = {path: x.astype(dtype).astype(np.float32) for path, x in weights(BARE).items()}
    source = saved(tmp_path, {key: x.astype(dtype) for key, x in official(arrays).items()})
    assert_equal(convert(source).arrays, arrays)


def test_safetensors_need_no_torch(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert convert(saved(tmp_path, official(weights(BARE)))).format == "swin"
    (tmp_path / "x.pth").write_bytes(b"")
    with pytest.raises(UserError, match=re.escape("pip install 'mtlora_jax[convert]'")):
        convert(tmp_path / "x.pth")


class CfgNode(dict):
    """Pickles like the class of yacs."""

    def __init__(self, entries):
        super().__init__({key: CfgNode(value) if isinstance(value, dict) else value for key, value in entries.items()})
        self.__dict__.update(__immutable__=True, __deprecated_keys__=set(), __renamed_keys__={}, __new_allowed__=False)


def training_checkpoint(state, **mtlora):
    """What the reference saves while training, pickled configuration included."""
    import torch

    state = {key: torch.from_numpy(np.array(x)) for key, x in state.items()}
    config = {
        "DATA": {"IMG_SIZE": 96},
        "MODEL": {"DROP_PATH_RATE": 0.3, "SWIN": {"QK_SCALE": None}, "MTLORA": mtlora},
        "TRAIN": {"FREEZE_LAYER_NORM": True, "FREEZE_DOWNSAMPLE_REDUCTION": True, "OPTIMIZER": {"BETAS": (0.9, 0.999)}},
    }
    moments = {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(2)}}
    return {
        "model": state, "optimizer": {"state": moments, "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.999)}]},
        "lr_scheduler": {"values": [1.0]}, "max_accuracy": np.float64(1.5), "scaler": {}, "epoch": 7, "config": CfgNode(config),
    }  # fmt: skip


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
    checkpoint = training_checkpoint(reference(arrays), SHARED_SCALE=[2.0], SCALE_PER_TASK=scales, DROPOUT=[0.1] * 4, SHARED_MODE="matrix")
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

    architecture, _, report, _ = convert(tmp_path / "c.pth", scale=5.0, image_size=128)  # a flag beats the configuration
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


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s}, lambda s: {"model": {f"module.{k}": v for k, v in s.items()}}])
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
    assert main([str(source), str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith(f"error: {source}: ")
    assert "weights_only" not in error  # PyTorch's message says how to run it
    if kind != "pickle":
        assert "refused, for it asks to load posix.system, and only" in error
    assert not marker.exists()
    assert not (tmp_path / "out").exists()
    pickle.loads(pickle.dumps(content))  # the pickle does bite
    assert marker.exists()


def test_hugging_face_model_gives_the_same_features(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.SwinConfig(
        image_size=128, patch_size=4, embed_dim=8, depths=[2, 1, 1, 1], num_heads=[1, 2, 2, 4], window_size=4, mlp_ratio=2.0
    )
    torch.manual_seed(0)
    model = transformers.SwinModel(config).eval()
    for parameter in model.parameters():  # biases and tables too, which are initialised to zero
        torch.nn.init.normal_(parameter, std=0.3)
    images = np.random.default_rng(0).normal(size=(2, 128, 128, 3)).astype(np.float32)
    with torch.no_grad():
        expected = model(torch.from_numpy(images.transpose(0, 3, 1, 2)), output_hidden_states=True).hidden_states[1:]

    model.save_pretrained(tmp_path / "hf")
    torch.save(model.state_dict(), tmp_path / "in_memory.bin")  # transformers names the tensors differently in memory
    assert_equal(convert(tmp_path / "in_memory.bin").arrays, convert(tmp_path / "hf").arrays)
    assert main([str(tmp_path / "hf"), str(tmp_path / "ours")]) == 0
    features = mtlora_jax.load(tmp_path / "ours").features(images)
    assert len(features) == len(expected) == 4
    for ours, theirs in zip(features, expected, strict=True):
        scale = np.abs(theirs.numpy()).max()
        np.testing.assert_allclose(np.asarray(ours.shared).reshape(theirs.shape) / scale, theirs.numpy() / scale, atol=1e-5)


def test_resized_tables():
    rng = np.random.default_rng(0)
    table = rng.normal(size=(169, 3)).astype(np.float32)
    np.testing.assert_array_equal(resize_table(table, 7), table)
    np.testing.assert_allclose(resize_table(np.full((169, 2), 0.7, np.float32), 12), 0.7, atol=1e-6)
    y, x = np.meshgrid(np.linspace(-1, 1, 13), np.linspace(-1, 1, 13), indexing="ij")
    ramps = np.stack([y, x], -1).reshape(169, 2).astype(np.float32)
    grown = resize_table(ramps, 12).reshape(23, 23, 2)
    centres = (np.arange(23) + 0.5) * 13 / 23 - 0.5  # of the new grid in the old one
    inside = (centres >= 1) & (centres <= 11)  # beyond, the border is repeated
    straight = np.interp(centres, np.arange(13), np.linspace(-1, 1, 13))
    np.testing.assert_allclose(grown[inside, 11, 0], straight[inside], atol=0.01)  # rows stay rows
    np.testing.assert_allclose(grown[11, inside, 1], straight[inside], atol=0.01)
    torch = pytest.importorskip("torch")
    grid = torch.from_numpy(table.T.reshape(1, 3, 13, 13).copy())
    expected = torch.nn.functional.interpolate(grid, (23, 23), mode="bicubic", align_corners=False)  # what Swin itself does
    np.testing.assert_allclose(resize_table(table, 12), expected.numpy().reshape(3, -1).T, atol=1e-5)


def test_window_size_flag(tmp_path):
    arrays = weights(BARE)
    source = saved(tmp_path, official(arrays))
    assert_equal(convert(source, window_size=4).arrays, arrays)
    conversion = convert(source, window_size=6)
    assert conversion.architecture["backbone"]["window_size"] == 6
    assert "resized    5 position tables to window 6" in conversion.report
    for path, x in arrays.items():
        expected = resize_table(x, 6) if path.endswith("table") else x
        np.testing.assert_array_equal(conversion.arrays[path], expected)


def test_command_writes_a_folder_that_loads(tmp_path, capsys):
    architecture = multitask()
    arrays = weights(architecture)
    source, out = saved(tmp_path, reference(arrays)), tmp_path / "out"
    assert main([str(source), str(out), "--scale=2", "--image_size=64"]) == 0
    printed = capsys.readouterr().out
    for words in ("mtlora (backbone.* with lora_shared_A)", "edge 1, semseg 21", "2/3/4/5 on qkv, proj, fc1, fc2", "2 (flag)", str(out)):
        assert words in printed
    found, values = folder.read(out)
    assert_equal(values, arrays)
    assert found["method"]["scale"] == [2.0] * 4
    assert folder.read_config(out)["converted_from"] == {"file": "model.safetensors", "format": "mtlora"}
    model = mtlora_jax.load(out)
    shapes = jax.eval_shape(model.module, jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32))
    assert {task: x.shape for task, x in shapes.items()} == {"semseg": (1, 64, 64, 21), "edge": (1, 64, 64, 1)}

    assert main([str(source), str(out)]) == 2
    assert "is not empty: choose another folder, or say --overwrite" in capsys.readouterr().err
    assert main([str(source), str(out), "--overwrite", "--tasks=edge"]) == 0
    assert folder.read(out)[0]["tasks"] == {"edge": 1}


def test_help_shows_an_example(capsys):
    assert main(["--help"]) == 0
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


WRONG_TENSORS = {
    "nothing": (dict, [], "holds no tensors"),
    "other model": (lambda: {"conv1.weight": np.ones(3)}, [], "no Swin Transformer of a known format"),
    "only a head": (lambda: {"head.weight": np.ones(3)}, ["--from=swin"], "holds no weights in the swin format"),
    "other format": (bare, ["--from=hf"], r"tensors that have no place in the model: .*, \.\.\. \(\d+\)"),
    "left over": (lambda: bare() | {"absolute_pos_embed": np.ones((1, 4, 8))}, [], r"no place in the model: absolute_pos_embed \(1\)"),
    "missing": (lambda: without(bare(), "layers.2.blocks.0.mlp.fc2.bias"), [], r"missing: backbone.layers.2.blocks.0.mlp.fc2.bias \(1\)"),
    "no patches": (lambda: without(bare(), "patch_embed.proj.weight"), ["--from=swin"], "no tensor for backbone.patch_embed.proj.kernel"),
    "shape": (lambda: bare() | {"layers.0.blocks.1.attn.qkv.bias": np.ones(23)}, [], r"attn.qkv.bias \(23,\) instead of \(24,\)"),
    "rank": (
        lambda: bare() | {"layers.0.blocks.1.attn.qkv.weight": np.ones(24)},
        [],
        r"qkv.weight has shape \(24,\), .* not that of a linear",
    ),
    "scalar": (lambda: bare() | {"patch_embed.norm.bias": np.float32(1)}, [], r"patch_embed.norm.bias has shape \(\), .* of a vector"),
    "table": (
        lambda: {k: np.ones((48, x.shape[1])) if k.endswith("table") else x for k, x in bare().items()},
        [],
        r"position table has shape \(48, 1\), expected \(\(2w - 1\)\^2, heads\)",
    ),
    "windows": (
        lambda: bare() | {"layers.3.blocks.0.attn.relative_position_bias_table": np.ones((9, 4))},
        [],
        r"windows of \[4, 4, 4, 2\]; make them one with --window_size",
    ),
    "window flag": (bare, ["--window_size=0"], "--window_size=0 must be at least 1"),
    "image flag": (bare, ["--image_size=16"], "image_size = "),
    "no number": (bare, ["--scale=big"], "argument --scale: invalid float value: 'big'"),
    "format": (bare, ["--from=caffe"], "invalid choice: 'caffe'"),
    "tasks of a backbone": (bare, ["--tasks=semseg"], "--tasks=semseg: the checkpoint has no tasks"),
    "unknown task": (adapted, ["--tasks=semseg,depth"], "--tasks=semseg,depth: expected some of edge, semseg, each once"),
    "task twice": (adapted, ["--tasks=edge,edge"], "--tasks=edge,edge: expected some of edge, semseg, each once"),
    "trainable scale": (
        lambda: adapted() | {"backbone.layers.0.blocks.0.mlp.fc1.lora_shared_scale": np.ones(1)},
        [],
        "backbone.layers.0.blocks.0.mlp.fc1.lora_shared_scale: trainable scales",
    ),
    "task scale": (
        lambda: adapted() | {"backbone.layers.0.blocks.1.mlp.fc1.lora_task_scale.edge": np.ones(1)},
        [],
        "lora_task_scale.edge: trainable scales",
    ),
    "addition": (
        lambda: adapted() | {"backbone.layers.0.blocks.1.mlp.fc1.lora_norm.weight": np.ones(16)},
        [],
        "lora_norm.weight: MTLORA.SHARED_MODE 'addition'",
    ),
    "split qkv": (lambda: adapted() | {"backbone.layers.0.blocks.0.attn.q.linear.weight": np.ones((8, 8))}, [], "SPLIT_QKV"),
    "shared projections": (lambda: adapted() | {"downsampler.downsample_0.weight": np.ones((2, 16, 1, 1))}, [], "PER_TASK_DOWNSAMPLER"),
    "mixed decoders": (mixed_decoders, [], "all tasks must have the same kind of decoder"),
    "no projections": (lambda: {k: x for k, x in adapted().items() if "downsampler" not in k}, [], "has no 1x1 projections"),
    "low rank everywhere": (
        lambda: adapted() | {"backbone.layers.0.blocks.0.mlp.fc1.lora_tasks_A.edge": np.ones((2, 8))},
        [],
        "left over: backbone.layers.0.blocks.0.mlp.fc1.task_a.edge",
    ),
    "twice": (
        lambda: adapted() | {"backbone.layers.0.blocks.0.mlp.fc1.weight": np.ones((16, 8))},
        [],
        "are the same tensor backbone.layers.0.blocks.0.mlp.fc1.kernel",
    ),
    "third of qkv": (
        lambda: without(hugging_face(weights(BARE)), "swin.encoder.layers.0.blocks.0.attention.self.value.weight"),
        [],
        r"attn.qkv.kernel \(8, 16\) instead of \(8, 24\)",
    ),
}


def assert_refused(arguments, out, message, capsys):
    """One line on stderr, code 2, and nothing written."""
    before = sorted(out.parent.iterdir())
    assert main([*map(str, arguments)]) == 2
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
    assert_refused([tmp_path / "model.safetensors", tmp_path], out, "holds the source", capsys)
    assert_refused([tmp_path / "model.safetensors", tmp_path / "weights.h5"], out, "is a file", capsys)
    assert_refused([tmp_path / "model.safetensors"], out, "the following arguments are required: out", capsys)


def test_wrong_torch_files(tmp_path, capsys):
    torch = pytest.importorskip("torch")
    out = tmp_path / "out"
    whole = (GOLDEN / "mtlora" / "checkpoint.pth").read_bytes()
    for name, content in [("garbage.pth", b"hello world" * 9), ("cut.pth", whole[: len(whole) // 2]), ("empty.pth", b"")]:
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
