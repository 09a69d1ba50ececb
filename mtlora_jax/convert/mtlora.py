"""Checkpoints of the MTLoRA reference: its adapted Swin, and the plain multi-task Swin of the same code, each with decoders."""

from collections.abc import Collection, Mapping
from typing import Any

from mtlora_jax.convert import swin
from mtlora_jax.convert.table import Row, Table, conv, conv1x1, linear
from mtlora_jax.errors import UserError

BACKBONE = [row._replace(pattern=r"backbone\." + row.pattern) for row in (*swin.PATCH_EMBED, *swin.BLOCKS, *swin.MERGING)]

# Every layer that can be adapted: a linear of a block, or the merging matrix.
ADAPTED = r"(backbone\.layers\.\d+\.(?:blocks\.\d+\.(?:attn\.qkv|attn\.proj|mlp\.fc[12])|downsample\.reduction))"
LORA = [
    Row(ADAPTED + r"\.linear\.weight", r"\1.kernel", linear),
    Row(ADAPTED + r"\.linear\.bias", r"\1.bias"),
    Row(ADAPTED + r"\.lora_shared_A", r"\1.shared_a", linear),
    Row(ADAPTED + r"\.lora_shared_B", r"\1.shared_b", linear),
    Row(ADAPTED + r"\.lora_tasks_A\.(\w+)", r"\1.task_a.\2", linear),
    Row(ADAPTED + r"\.lora_tasks_B\.(\w+)", r"\1.task_b.\2", linear),
]

HEAD = r"decoders\.decoders\.(\w+)\."
OUR_HEAD = r"decoders.\1.head."


def batch_norm(pattern: str, path: str) -> list[Row]:
    return [
        Row(pattern + r"\.weight", path + ".scale"),
        Row(pattern + r"\.bias", path + ".bias"),
        Row(pattern + r"\.running_mean", path + ".mean"),
        Row(pattern + r"\.running_var", path + ".var"),
    ]


HRNET = [
    Row(HEAD + r"last_layer\.0\.weight", OUR_HEAD + "fuse.kernel", conv1x1),
    Row(HEAD + r"last_layer\.0\.bias", OUR_HEAD + "fuse.bias"),
    *batch_norm(HEAD + r"last_layer\.1", OUR_HEAD + "norm"),
    Row(HEAD + r"last_layer\.3\.weight", OUR_HEAD + "classifier.kernel", conv1x1),
    Row(HEAD + r"last_layer\.3\.bias", OUR_HEAD + "classifier.bias"),
]


def from_zero(rest: str):
    """SegFormer counts its scales from 1."""
    return lambda found: f"decoders.{found[1]}.head.linear.{int(found[2]) - 1}.{rest}"


SEGFORMER = [
    Row(HEAD + r"linear_c([1-4])\.proj\.weight", from_zero("kernel"), linear),
    Row(HEAD + r"linear_c([1-4])\.proj\.bias", from_zero("bias")),
    Row(HEAD + r"linear_fuse\.conv\.weight", OUR_HEAD + "fuse.kernel", conv1x1),
    *batch_norm(HEAD + r"linear_fuse\.bn", OUR_HEAD + "norm"),
    Row(HEAD + r"linear_pred\.weight", OUR_HEAD + "classifier.kernel", conv1x1),
    Row(HEAD + r"linear_pred\.bias", OUR_HEAD + "classifier.bias"),
    Row(HEAD + r"conv_seg\.weight", OUR_HEAD + "conv_seg.kernel", conv1x1),
    Row(HEAD + r"conv_seg\.bias", OUR_HEAD + "conv_seg.bias"),
]

ASPP = [
    Row(HEAD + r"0\.convs\.0\.0\.weight", OUR_HEAD + "branches.0.kernel", conv1x1),
    *batch_norm(HEAD + r"0\.convs\.0\.1", OUR_HEAD + "branch_norms.0"),
    Row(HEAD + r"0\.convs\.([123])\.0\.weight", OUR_HEAD + r"branches.\2.kernel", conv),
    *batch_norm(HEAD + r"0\.convs\.([123])\.1", OUR_HEAD + r"branch_norms.\2"),
    Row(HEAD + r"0\.convs\.4\.1\.weight", OUR_HEAD + "branches.4.kernel", conv1x1),
    *batch_norm(HEAD + r"0\.convs\.4\.2", OUR_HEAD + "branch_norms.4"),
    Row(HEAD + r"0\.project\.0\.weight", OUR_HEAD + "project.kernel", conv1x1),
    *batch_norm(HEAD + r"0\.project\.1", OUR_HEAD + "project_norm"),
    Row(HEAD + r"1\.weight", OUR_HEAD + "conv.kernel", conv),
    *batch_norm(HEAD + r"2", OUR_HEAD + "conv_norm"),
    Row(HEAD + r"4\.weight", OUR_HEAD + "classifier.kernel", conv1x1),
    Row(HEAD + r"4\.bias", OUR_HEAD + "classifier.bias"),
]

PROJECTIONS = [Row(r"downsampler\.(\w+)\.downsample_(\d)\.weight", r"decoders.\1.projections.\2.kernel", conv1x1)]

DROPPED = {r".*\.(attn_mask|relative_position_index|num_batches_tracked)": "derived buffers"}
REFUSED = {
    r".*\.lora_(shared|task)_scale(\..*)?": "trainable scales (MTLORA.TRAINABLE_SCALE_*) are not supported, only fixed ones",
    r".*\.lora_norm\..*": "MTLORA.SHARED_MODE 'addition' is not supported, only 'matrix'",
    r".*\.attn\.[qkv]\..*": "MTLORA.SPLIT_QKV is not supported, only one joint qkv layer",
    r"downsampler\.downsample_\d\..*": "projections shared by all tasks (PER_TASK_DOWNSAMPLER False) are not supported",
}


def recognise(keys: Collection[str]) -> str | None:
    """What shows that `keys` are of this format, or None."""
    if "backbone.patch_embed.proj.weight" not in keys:
        return None
    lora = any(key.endswith(".lora_shared_A") for key in keys)
    return "backbone.* with lora_shared_A" if lora else "backbone.* without low-rank factors"


def table(keys: Collection[str]) -> Table:
    del keys
    return Table([*BACKBONE, *LORA, *HRNET, *SEGFORMER, *ASPP, *PROJECTIONS], DROPPED, REFUSED)


FREEZE = {"FREEZE_PATCH_EMBED": "patch_embed", "FREEZE_LAYER_NORM": "norms", "FREEZE_RELATIVE_POSITION_BIAS": "position_tables"}
ONLY = {"MODEL.MTLORA.SHARED_MODE": "matrix", "MODEL.MTLORA.INTERMEDIATE_SPECIALIZATION": False, "MODEL.SWIN.QK_SCALE": None}


def settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the pickled configuration knows and tensors do not, under our names. Raises UserError for what we cannot do."""
    for name, supported in ONLY.items():
        if (value := entry(config, name, supported)) != supported:
            raise UserError(f"{name} = {value!r} in the checkpoint's configuration is not supported, only {supported!r}")
    found = {
        "image_size": entry(config, "DATA.IMG_SIZE"),
        "drop_path_rate": entry(config, "MODEL.DROP_PATH_RATE"),
        "scale": entry(config, "MODEL.MTLORA.SHARED_SCALE"),
        "task_scale": entry(config, "MODEL.MTLORA.SCALE_PER_TASK") or entry(config, "MODEL.MTLORA.TASK_SCALE"),
        "dropout": entry(config, "MODEL.MTLORA.DROPOUT"),
    }
    if train := entry(config, "TRAIN"):
        found["freeze"] = [ours for theirs, ours in FREEZE.items() if train.get(theirs)]
        found["merging_frozen"] = bool(train.get("FREEZE_DOWNSAMPLE_REDUCTION"))
    return {name: value for name, value in found.items() if value is not None}


def entry(config: Mapping[str, Any], name: str, default: Any = None) -> Any:
    """The entry at a dotted name, or the default where the configuration does not go that far."""
    for part in name.split("."):
        if not isinstance(config, Mapping) or part not in config:
            return default
        config = config[part]
    return config
