"""Checkpoints in the formats of other libraries, made from our models for the tests of the converter."""

import re

import numpy as np
import safetensors.numpy

from mtlora_jax import cli
from mtlora_jax.convert import __main__ as command
from mtlora_jax.model_factory import build
from mtlora_jax.models import parameters

BACKBONE = {
    **{"name": "swin", "embed_dim": 8, "depths": [2, 1, 1, 1], "num_heads": [1, 2, 2, 4]},
    **{"window_size": 4, "patch_size": 4, "mlp_ratio": 2.0, "drop_path_rate": 0.2},
}
BARE = {"backbone": BACKBONE, "tasks": {}, "decoder": None, "method": {"name": "full"}, "image_size": [448, 448]}
HEADS = {
    "hrnet": {"name": "hrnet", "channels": [2, 3, 4, 5]},
    "segformer": {"name": "segformer", "channels": [2, 3, 4, 5], "width": 6, "dead_classifier": True},
    "aspp": {"name": "aspp", "channels": [2, 3, 4, 5], "width": 6},
}


def multitask(head="hrnet", **method):
    options = {
        **{"name": "mtlora", "rank": [2, 3, 4, 5], "scale": [4.0] * 4},
        "task_rank": {"semseg": [1, 2, 3, 4], "edge": [2, 2, 1, 1]},
        "task_scale": {"semseg": [4.0] * 4, "edge": [4.0] * 4},
        **{"dropout": 0.05, "locations": ["qkv", "proj", "fc1", "fc2"]},
        **{"ts_base": "shared", "merging": "train", "freeze": []},
    }
    return BARE | {"tasks": {"semseg": 21, "edge": 1}, "decoder": HEADS[head], "method": options | method}


def weights(architecture, seed=0):
    """Random numbers, different for every tensor, in the shapes of the model."""
    rng, variables = np.random.default_rng(seed), parameters.flat_variables(build(architecture))
    return {path: rng.normal(size=variable.shape).astype(np.float32) for path, variable in variables.items()}


def torch_layout(path, x):
    """Name and value of a tensor in PyTorch: `weight`, outputs first."""
    if x.ndim == 2 and not path.endswith("table"):
        x = x.T
    if x.ndim == 4:
        x = x.transpose(3, 2, 0, 1)
    return re.sub(r"\.(kernel|scale)$", ".weight", path), np.ascontiguousarray(x)


def official(arrays):
    state = dict(torch_layout(path.removeprefix("backbone."), x) for path, x in arrays.items())
    width = state["layers.3.blocks.0.norm1.weight"].shape[0]
    norm = {"norm.weight": np.ones(width), "norm.bias": np.zeros(width)}
    head = {"head.weight": np.ones((3, width)), "head.bias": np.zeros(3)}
    index = {"layers.0.blocks.0.attn.relative_position_index": np.zeros((16, 16), np.int64)}
    return state | norm | head | index


def timm(arrays):
    def renamed(key):
        key = key.replace("head.", "head.fc.")
        return re.sub(r"layers\.(\d)\.downsample", lambda match: f"layers.{int(match[1]) + 1}.downsample", key)

    return {renamed(key): x for key, x in official(arrays).items() if "index" not in key}


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
    """A state dict of the reference: adapted layers are `.linear`, 1x1 convolutions have four axes.

    SegFormer's linear layers are no convolutions.
    """
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


def run_command(arguments: list[str]) -> int:
    """Runs the converter's command and returns its exit code."""
    try:
        cli.run(lambda: command.main(arguments))
    except SystemExit as done:
        return int(done.code or 0)
    return 0


MMSEG = {
    r"^layers": "stages",
    r"patch_embed\.proj": "patch_embed.projection",
    r"attn\.(qkv|proj|relative)": r"attn.w_msa.\1",
    r"mlp\.fc1": "ffn.layers.0.0",
    r"mlp\.fc2": "ffn.layers.1",
    r"^norm": "norm3",
}


def mmseg(arrays):
    """A state dict of OpenMMLab, whose patch merging orders inputs as nn.Unfold does, channel by channel."""
    state = {}
    for key, x in official(arrays).items():
        if ".downsample." in key:
            four = x.reshape(*x.shape[:-1], 2, 2, -1)  # in Swin: two columns of two rows of all channels
            x = np.moveaxis(four, -1, -3).swapaxes(-1, -2).reshape(x.shape)
        for pattern, name in MMSEG.items():
            key = re.sub(pattern, name, key)
        state[key] = x
    return {key: x for key, x in state.items() if not key.startswith("head.")}


def torchvision(arrays):
    state = {}
    for key, x in official(arrays).items():
        key = re.sub(r"^layers\.(\d)\.blocks", lambda m: f"features.{2 * int(m[1]) + 1}", key)
        key = re.sub(r"^layers\.(\d)\.downsample", lambda m: f"features.{2 * int(m[1]) + 2}", key)
        for pattern, name in {r"^patch_embed\.proj": "features.0.0", r"^patch_embed\.norm": "features.0.2"}.items():
            key = re.sub(pattern, name, key)
        state[key.replace("mlp.fc1", "mlp.0").replace("mlp.fc2", "mlp.3")] = x
    return state


def prefixed(state, prefix):
    return {prefix + key: x for key, x in state.items()}


def as_torch(state):
    """Converts arrays to tensors of PyTorch."""
    import torch

    return {key: torch.from_numpy(np.array(x)) for key, x in state.items()}
