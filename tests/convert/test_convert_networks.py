"""Swins inside other networks and in folders of other libraries: prefixes, dropped parts, settings of config.json."""

import json
import re

import numpy as np
import pytest
from checkpoints import (
    BARE,
    as_torch,
    assert_equal,
    hugging_face,
    mmseg,
    official,
    prefixed,
    run_command,
    saved,
    timm,
    torchvision,
    weights,
)

from mtlora_jax.convert import convert
from mtlora_jax.errors import UserError
from mtlora_jax.io import locks
from mtlora_jax.model_factory import build
from mtlora_jax.model_io import model_folder
from mtlora_jax.models.parameters import assign
from mtlora_jax.models.task_features import TaskFeatures

ARRAYS = weights(BARE)
HEADS = {
    "decode_head.conv_seg.weight": np.ones((3, 4)),
    "decode_head.conv_seg.bias": np.ones(3),
    "auxiliary_head.counter": np.int64(3),
}


@pytest.mark.parametrize(("layout", "name"), [(mmseg, "mmseg"), (torchvision, "torchvision")])
@pytest.mark.parametrize("prefix", ["", "backbone.", "module.encoder."])
def test_layouts(layout, name, prefix, tmp_path):
    conversion = convert(saved(tmp_path, prefixed(layout(ARRAYS), prefix)))
    assert conversion.format == name
    assert_equal(conversion.arrays, ARRAYS)


def test_merging_of_openmmlab_computes_the_same(tmp_path):
    """Its merging is nn.Unfold, norm, linear; ours has the converted weights."""
    torch = pytest.importorskip("torch")
    state = mmseg(ARRAYS)
    images = np.random.default_rng(0).normal(size=(2, 6, 4, 8)).astype(np.float32)
    names = ("norm.weight", "norm.bias", "reduction.weight")
    scale, bias, reduction = (torch.from_numpy(state[f"stages.0.downsample.{name}"]) for name in names)
    planes = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    quads = torch.nn.functional.unfold(planes, 2, stride=2).transpose(1, 2)
    normed = torch.nn.functional.layer_norm(quads, (32,), scale, bias)
    expected = (normed @ reduction.T).reshape(2, 3, 2, 16).numpy()
    module = build(BARE)
    assign(module, convert(saved(tmp_path, state)).arrays, "test")
    merged = module.backbone.layers[0].downsample(TaskFeatures(images)).shared
    np.testing.assert_allclose(merged, expected, atol=1e-4 * np.abs(expected).max())


def test_segmentation_and_detection_networks(tmp_path, capsys):
    """The report lists all dropped parts."""
    torch = pytest.importorskip("torch")
    norms = {f"backbone.norm{i}.{kind}": np.ones(8 * 2**i) for i in range(4) for kind in ("weight", "bias")}
    detection = {"neck.lateral_convs.0.conv.weight": np.ones((2, 2, 1, 1)), "rpn_head.rpn_cls.bias": np.ones(1)}
    whole = prefixed(mmseg(ARRAYS), "backbone.") | norms | HEADS | detection
    meta = {"CLASSES": ("a", "b"), "PALETTE": [[0, 0, 0]], "mmseg_version": "1.2.2", "cfg": "model = dict()"}
    torch.save({"meta": meta, "state_dict": as_torch(whole), "optimizer": {"state": {}}}, tmp_path / "upernet.pth")
    assert run_command([str(tmp_path / "upernet.pth"), str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert_equal(model_folder.read(tmp_path / "out")[1], ARRAYS)
    for line in (
        "format     mmseg (patch_embed.projection.weight)",
        "taken      state_dict.backbone",
        "dropped    output norms (8 tensors)",
        "dropped    decode_head (2 tensors)",
        "dropped    auxiliary_head (1 tensors)",
        "dropped    neck (1 tensors)",
        "dropped    rpn_head (1 tensors)",
        "dropped    derived buffers (1 tensors)",
    ):
        assert f"{line}\n" in printed
    official_inside = prefixed(official(ARRAYS), "module.backbone.") | prefixed(HEADS, "module.")
    conversion = convert(saved(tmp_path, official_inside))
    assert_equal(conversion.arrays, ARRAYS)
    assert "dropped    decode_head (2 tensors)" in conversion.report


def network(name, **sizes):
    """A segmentation network of Hugging Face around a small Swin."""
    transformers = pytest.importorskip("transformers")
    backbone = {"embed_dim": 8, "depths": [2, 1, 1, 1], "num_heads": [1, 2, 2, 4], "window_size": 4, "mlp_ratio": 2.0}
    stages = ["stage1", "stage2", "stage3", "stage4"]
    swin = transformers.SwinConfig(image_size=128, patch_size=4, **backbone, drop_path_rate=0.15, out_features=stages)
    models = {"UperNet": "UperNetForSemanticSegmentation", "Mask2Former": "Mask2FormerForUniversalSegmentation"}
    config = getattr(transformers, f"{name}Config")(backbone_config=swin, **sizes)
    return getattr(transformers, models[name])(config)


NETWORKS = {
    "UperNet": {"hidden_size": 8, "pool_scales": [1], "auxiliary_in_channels": 32, "auxiliary_channels": 8},
    "Mask2Former": {
        **{"hidden_dim": 32, "mask_feature_size": 32, "feature_size": 32, "num_queries": 3},
        **{"encoder_layers": 1, "encoder_feedforward_dim": 8},
        **{"decoder_layers": 2, "dim_feedforward": 8, "num_attention_heads": 2},
    },
}


@pytest.mark.parametrize("name", NETWORKS)
def test_segmentation_networks_of_hugging_face(name, tmp_path):
    torch = pytest.importorskip("torch")
    model = network(name, **NETWORKS[name])
    model.save_pretrained(tmp_path / "hub")
    conversion = convert(tmp_path / "hub")
    assert conversion.architecture["image_size"] == [128, 128]
    assert conversion.architecture["backbone"] == BARE["backbone"] | {"drop_path_rate": 0.15}
    whole = {key: x.detach().numpy() for key, x in model.state_dict().items()}
    projection = next(x for key, x in whole.items() if key.endswith("embeddings.patch_embeddings.projection.weight"))
    kernel = conversion.arrays["backbone.patch_embed.proj.kernel"]
    np.testing.assert_array_equal(kernel, projection.transpose(2, 3, 1, 0))
    assert any(line.startswith("dropped    output norms") for line in conversion.report)
    torch.save(model.state_dict(), tmp_path / "c.bin")
    assert_equal(convert(tmp_path / "c.bin").arrays, conversion.arrays)


TIMM = {"architecture": "swin_tiny_patch4_window7_224", "num_classes": 3, "num_features": 64}
PRETRAINED = {"pretrained_cfg": {"input_size": [3, 96, 96], "tag": "ms_in1k"}}
LARGER = PRETRAINED | {"model_args": {"img_size": 128}}
HF = {"model_type": "swin", "image_size": 96, "window_size": 4, "drop_path_rate": 0.1}
HF_LARGE = {"architectures": ["SwinModel"], "image_size": 640, "drop_path_rate": 0}
FOLDERS = {  # layout, config.json, image size, rate of stochastic depth and its origin
    "timm": (timm, TIMM | PRETRAINED, [96, 96], (0.2, "default")),
    "timm, older": (timm, TIMM | {"input_size": [3, 160, 160]}, [160, 160], (0.2, "default")),
    "timm, other images": (timm, TIMM | LARGER, [128, 128], (0.2, "default")),
    "hf": (hugging_face, HF, [96, 96], (0.1, "config.json")),
    "hf, not square": (hugging_face, {"model_type": "swin", "image_size": [64, 128]}, [64, 128], (0.2, "default")),
    "hf, large": (hugging_face, HF_LARGE, [640, 640], (0.0, "config.json")),
}


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("name", FOLDERS)
def test_folders_of_the_hub(name, file, tmp_path, capsys):
    torch = pytest.importorskip("torch")
    layout, config, size, (rate, origin) = FOLDERS[name]
    hub, out = tmp_path / "hub", tmp_path / "out"
    hub.mkdir()
    if file.endswith("safetensors"):
        saved(hub, layout(ARRAYS), file)
    else:
        torch.save(as_torch(layout(ARRAYS)), hub / file)
    (hub / "config.json").write_text(json.dumps(config))
    for source in (hub, hub / file):
        assert run_command([str(source), str(out), "--overwrite"]) == 0
        printed = capsys.readouterr().out
        written, arrays = model_folder.read(out)
        assert_equal(arrays, ARRAYS)
        assert written["architecture"]["image_size"] == size
        assert written["architecture"]["backbone"]["drop_path_rate"] == rate
        assert re.search(r"image size \S+ \(config\.json\)\n", printed)
        assert f"drop_path_rate {rate:g} ({origin})" in printed
        assert "note" not in printed
    assert run_command([str(hub), str(out), "--overwrite", "--image_size=64"]) == 0
    assert "image size 64 (flag)" in capsys.readouterr().out


def refused(arguments, message, capsys):
    assert run_command([*map(str, arguments)]) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(rf"error: .*(?:{message}).*\n", error), error


CONFIGS = {
    r"the image size \"big\" in config\.json is not valid; give it with --image_size": {"image_size": "big"},
    r"the image size \[3, true, true\]": {"pretrained_cfg": {"input_size": [3, True, True]}},
    r"the image size -4 ": {"image_size": -4},
    r"image_size = \[8, 8\] must be": {"image_size": 8},
    r"config\.json: drop_path_rate = \"x\" must be a finite number from 0 to 1": {"drop_path_rate": "x"},
    r"drop_path_rate = 2 must be": {"drop_path_rate": 2},
    r"hidden_act = \"relu\" in config\.json is not supported, only \"gelu\"": {"hidden_act": "relu"},
    r"layer_norm_eps = 1e-12 in config\.json is not supported": {"backbone_config": {"layer_norm_eps": 1e-12}},
}


@pytest.mark.parametrize("message", CONFIGS)
def test_descriptions_that_cannot_be(message, tmp_path, capsys):
    saved(tmp_path, hugging_face(ARRAYS))
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS[message]))
    refused([tmp_path, tmp_path / "out"], message, capsys)
    assert not (tmp_path / "out").exists()


def test_another_geometry_than_described_is_told(tmp_path):
    saved(tmp_path, hugging_face(ARRAYS))
    (tmp_path / "config.json").write_text(json.dumps({"window_size": 7, "depths": [2, 1, 1, 1]}))
    told = [line for line in convert(tmp_path).report if line.startswith("note")]
    assert told == ["note       config.json says window_size 7, the tensors are of 4"]


def test_messages_never_lead_in_a_circle(tmp_path, capsys):
    """Whatever config.json holds, convert never advises to use convert."""
    model_folder.save(tmp_path / "ours", BARE, ARRAYS)
    path = tmp_path / "ours" / "config.json"
    ours = r"is a file of weights of mtlora_jax; expected its model folder, with a valid config\.json"
    for text, message in {
        '{"architecture": "swin_tiny"}': ours,
        "[]": ours,
        '{"architecture": {}}': "config.json",
        '{"architecture": ': r"config\.json is not valid JSON",
    }.items():
        path.write_text(text)
        refused([tmp_path / "ours", tmp_path / "out"], message, capsys)
    path.unlink()
    refused([tmp_path / "ours", tmp_path / "out"], ours, capsys)
    path.write_text('{"note": "the \\"architecture\\": of nothing", "architecture": "swin_tiny"}')
    message = rf"config\.json does not describe a model of mtlora_jax; .*convert {tmp_path / 'ours'} OUT"
    with pytest.raises(UserError, match=message):
        model_folder.read(tmp_path / "ours")


@pytest.mark.parametrize("out", ["out", "out.pth"])
def test_one_writer_of_a_folder(out, tmp_path, capsys):
    model_folder.save(tmp_path / "ours", BARE, ARRAYS)
    flags = ["--to=mtlora"] if out.endswith(".pth") else []
    with locks.hold_lock_beside(tmp_path / out):
        before = sorted(tmp_path.iterdir())
        message = "out: another program writes there" if not flags else "another program writes there|bare backbone"
        refused([tmp_path / "ours", tmp_path / out, *flags], message, capsys)
        assert sorted(tmp_path.iterdir()) == before


def test_two_converters_of_one_folder(tmp_path, monkeypatch, capsys):
    """A folder that another converter wrote while this one was reading is not replaced."""
    model_folder.save(tmp_path / "ours", BARE, ARRAYS)
    read = model_folder.read

    def slow(where):
        model_folder.save(tmp_path / "out", BARE, {path: x + 1 for path, x in ARRAYS.items()})
        return read(where)

    monkeypatch.setattr(model_folder, "read", slow)
    message = "out is not empty: choose another folder, or say --overwrite"
    refused([tmp_path / "ours", tmp_path / "out"], message, capsys)
    assert_equal(read(tmp_path / "out")[1], {path: x + 1 for path, x in ARRAYS.items()})
    assert run_command([str(tmp_path / "ours"), str(tmp_path / "out"), "--overwrite"]) == 0
    assert_equal(read(tmp_path / "out")[1], ARRAYS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours", "out"]


def test_a_run_is_no_checkpoint(tmp_path, capsys):
    """The error names the model inside the run."""
    model_folder.save(tmp_path / "run" / "best", BARE, ARRAYS)
    (tmp_path / "run" / "checkpoints").mkdir()
    refused([tmp_path / "run", tmp_path / "out"], rf"is a run; its best model is {tmp_path / 'run' / 'best'}", capsys)


def test_a_source_that_cannot_be_read_makes_no_folders(tmp_path, capsys):
    refused([tmp_path / "nothing.pth", tmp_path / "a" / "b" / "out"], "no such file", capsys)
    assert not list(tmp_path.iterdir())
