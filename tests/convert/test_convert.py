"""Conversion is exact, for every format and tensor; position tables are resized to other windows."""

import json
import re
import sys

import ml_dtypes
import numpy as np
import pytest
from checkpoints import (
    BARE,
    HEADS,
    assert_equal,
    hugging_face,
    multitask,
    official,
    reference,
    run_command,
    saved,
    timm,
    weights,
)
from paths import GOLDEN

import mtlora_jax
from mtlora_jax.convert import convert, mtlora, to_mtlora
from mtlora_jax.convert.infer_architecture import resize_table
from mtlora_jax.convert.key_mapping import rename
from mtlora_jax.errors import UserError

SMALL = {
    **{"name": "swin", "embed_dim": 24, "depths": [2] * 4, "num_heads": [2, 4, 8, 16]},
    **{"window_size": 7, "patch_size": 4, "mlp_ratio": 4.0},
}
TASKS = {"semseg": 21, "normals": 3, "sal": 1, "human_parts": 7}
RANKS = {"semseg": 4, "normals": 3, "sal": 2, "human_parts": 4}
EXPECTED = {  # tasks, rank, task ranks, merging, values (parameters and batch statistics)
    "mtlora": (TASKS, 8, RANKS, "train", 1_490_420 + 4 * 2 * 144),
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
    assert architecture["image_size"] == [224, 224]  # from the attention masks
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
    variance = state["decoders.decoders.normals.last_layer.1.running_var"].numpy()
    np.testing.assert_array_equal(arrays["decoders.normals.head.norm.var"], variance)


@pytest.mark.parametrize("name", EXPECTED)
def test_golden_checkpoints_come_back(name, tmp_path):
    """The command restores the same keys, and every tensor bit by bit, including derived buffers."""
    torch = pytest.importorskip("torch")
    source = GOLDEN / name / "checkpoint.pth"
    assert run_command([str(source), str(tmp_path / "ours")]) == 0
    assert run_command([str(tmp_path / "ours"), str(tmp_path / "back.pth"), "--to=mtlora"]) == 0
    found = torch.load(tmp_path / "back.pth", weights_only=True)["model"]
    expected = torch.load(source, weights_only=True)["model"]
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert found[key].dtype == tensor.dtype, key
        assert found[key].shape == tensor.shape, key
        assert found[key].numpy().tobytes() == tensor.numpy().tobytes(), key
    again = convert(tmp_path / "back.pth")
    whole = convert(source).architecture
    assert again.architecture == whole
    assert list(again.architecture["tasks"]) == list(whole["tasks"])  # their order too
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back.pth", "ours"]


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(
    "method", [{}, {"locations": ["qkv", "fc2"]}, {"merging": "lora"}, {"scale": [1.0, 2.0, 3.0, 4.0]}]
)
def test_every_layer_has_its_name_in_the_reference(head, method):
    architecture = multitask(head, **method) | {"image_size": [128, 128]}
    arrays = weights(architecture)
    state = to_mtlora.make_state_dict(architecture, arrays)
    expected = reference(arrays, head)
    derived = {key for key in state if key.endswith(("attn_mask", "relative_position_index", "num_batches_tracked"))}
    assert state.keys() - derived == expected.keys()
    for key, tensor in expected.items():
        np.testing.assert_array_equal(state[key], tensor, err_msg=key)
    assert mtlora.read_settings(to_mtlora.make_config(architecture))["scale"] == architecture["method"]["scale"]


MERGED = {"name": "merged", "of": {"name": "mtlora"}}
TASK_BASE = {"name": "mtlora", "ts_base": "task"}
NO_CLASSIFIER = {**HEADS["segformer"], "dead_classifier": False}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": MERGED}, "no format for merged models; convert the model that was merged"),
        ({"method": {"name": "adapters"}}, "the reference has no method adapters"),
        ({"tasks": {}, "decoder": None}, "bare backbone without tasks"),
        ({"method": TASK_BASE}, "the reference computes ts_base 'shared', this model 'task'"),
        ({"decoder": NO_CLASSIFIER}, "dead_classifier = False leaves out a classifier that the reference has"),
        ({"image_size": [128, 256]}, "square images .* 128x256 pixels"),
        ({"image_size": [96, 96]}, r"windows of 4 divide; .* its grids are \[24, 12, 6, 3\]"),
    ],
)
def test_what_the_reference_has_no_format_for(changes, message):
    with pytest.raises(UserError, match=f"--to=mtlora: .*{message}"):
        to_mtlora.make_state_dict(multitask() | {"image_size": [128, 128]} | changes, {})


def test_fields_of_templates_go_both_ways():
    assert rename("a.3.norm2.x", "a.{stage}.{norm}.x", "{norm}/{stage}") == "norm2/3"
    assert rename("norm2/3", "{norm}/{stage}", "a.{stage}.{norm}.x") == "a.3.norm2.x"
    assert rename("a.3.norm3.x", "a.{stage}.{norm}.x", "") is None
    assert rename("a.3.norm2xx", "a.{stage}.{norm}.x", "") is None  # a dot is a dot


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


NO_TASK_BRANCHES = {"task_rank": {"semseg": [0] * 4, "edge": [0] * 4}}


@pytest.mark.parametrize("method", [{"locations": ["qkv", "fc2"]}, {"merging": "lora"}, NO_TASK_BRANCHES])
def test_locations_merging_and_absent_task_branches_are_inferred_from_the_tensors(method, tmp_path):
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


def test_hugging_face_model_gives_the_same_features(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    sizes = {"embed_dim": 8, "depths": [2, 1, 1, 1], "num_heads": [1, 2, 2, 4], "window_size": 4, "mlp_ratio": 2.0}
    config = transformers.SwinConfig(image_size=128, patch_size=4, **sizes)
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
    assert run_command([str(tmp_path / "hf"), str(tmp_path / "ours")]) == 0
    features = mtlora_jax.load(tmp_path / "ours").features(images)
    assert len(features) == len(expected) == 4
    for ours, theirs in zip(features, expected, strict=True):
        scale, found = np.abs(theirs.numpy()).max(), np.asarray(ours.shared).reshape(theirs.shape)
        np.testing.assert_allclose(found / scale, theirs.numpy() / scale, atol=1e-5)


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
    # As in Swin itself.
    expected = torch.nn.functional.interpolate(grid, (23, 23), mode="bicubic", align_corners=False)
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
