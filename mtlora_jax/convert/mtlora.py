"""Checkpoints of the MTLoRA reference: its adapted Swin and its plain multi-task Swin, with decoders."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from mtlora_jax.convert import swin
from mtlora_jax.convert.key_mapping import Row, Table, TensorTransform, conv, conv1x1, linear
from mtlora_jax.errors import UserError
from mtlora_jax.methods.mtlora.method import of_each_stage, of_each_task
from mtlora_jax.schema import either, list_of, number, whole

BACKBONE = [row._replace(key=f"backbone.{row.key}") for row in (*swin.PATCH_EMBED, *swin.BLOCKS, *swin.MERGING)]

ADAPTED = "backbone.layers.{stage}.{adapted}."  # a linear layer of a block, or the patch merging
LORA = [
    Row(ADAPTED + "linear.weight", ADAPTED + "kernel", linear),
    Row(ADAPTED + "linear.bias", ADAPTED + "bias"),
    Row(ADAPTED + "lora_shared_A", ADAPTED + "shared_a", linear),
    Row(ADAPTED + "lora_shared_B", ADAPTED + "shared_b", linear),
    Row(ADAPTED + "lora_tasks_A.{task}", ADAPTED + "task_a.{task}", linear),
    Row(ADAPTED + "lora_tasks_B.{task}", ADAPTED + "task_b.{task}", linear),
]

HEAD = "decoders.decoders.{task}."
OUR_HEAD = "decoders.{task}.head."


def layer_rows(theirs: str, ours: str, transform: TensorTransform, bias: bool = True) -> list[Row]:
    weight = Row(f"{HEAD}{theirs}.weight", f"{OUR_HEAD}{ours}.kernel", transform)
    return [weight, Row(f"{HEAD}{theirs}.bias", f"{OUR_HEAD}{ours}.bias")] if bias else [weight]


def batch_norm_rows(theirs: str, ours: str) -> list[Row]:
    names = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
    return [Row(f"{HEAD}{theirs}.{name}", f"{OUR_HEAD}{ours}.{own}") for name, own in names.items()]


HEADS = {
    "hrnet": [
        *layer_rows("last_layer.0", "fuse", conv1x1),
        *batch_norm_rows("last_layer.1", "norm"),
        *layer_rows("last_layer.3", "classifier", conv1x1),
    ],
    "segformer": [
        *(row for i in range(4) for row in layer_rows(f"linear_c{i + 1}.proj", f"linear.{i}", linear)),
        *layer_rows("linear_fuse.conv", "fuse", conv1x1, bias=False),
        *batch_norm_rows("linear_fuse.bn", "norm"),
        *layer_rows("linear_pred", "classifier", conv1x1),
        *layer_rows("conv_seg", "conv_seg", conv1x1),
    ],
    "aspp": [
        *layer_rows("0.convs.0.0", "branches.0", conv1x1, bias=False),
        *batch_norm_rows("0.convs.0.1", "branch_norms.0"),
        *layer_rows("0.convs.{branch}.0", "branches.{branch}", conv, bias=False),
        *batch_norm_rows("0.convs.{branch}.1", "branch_norms.{branch}"),
        *layer_rows("0.convs.4.1", "branches.4", conv1x1, bias=False),
        *batch_norm_rows("0.convs.4.2", "branch_norms.4"),
        *layer_rows("0.project.0", "project", conv1x1, bias=False),
        *batch_norm_rows("0.project.1", "project_norm"),
        *layer_rows("1", "conv", conv, bias=False),
        *batch_norm_rows("2", "conv_norm"),
        *layer_rows("4", "classifier", conv1x1),
    ],
}

PROJECTIONS = [
    Row("downsampler.{task}.downsample_{scale}.weight", "decoders.{task}.projections.{scale}.kernel", conv1x1)
]

DROPPED = {r".*\.(attn_mask|relative_position_index|num_batches_tracked)": "derived buffers"}
REFUSED = {
    r".*\.lora_(shared|task)_scale(\..*)?": (
        "trainable scales (MTLORA.TRAINABLE_SCALE_*) are not supported, only fixed ones"
    ),
    r".*\.lora_norm\..*": "MTLORA.SHARED_MODE 'addition' is not supported, only 'matrix'",
    r".*\.attn\.[qkv]\..*": "MTLORA.SPLIT_QKV is not supported, only one joint qkv layer",
    r"downsampler\.downsample_\d\..*": "projections shared by all tasks (PER_TASK_DOWNSAMPLER False) are not supported",
}


def is_multitask(keys: Iterable[str]) -> bool:
    """Whether keys are those of a multi-task model of the reference, not of another network around a Swin."""
    return any(key.startswith(("decoders.decoders.", "downsampler.")) or ".lora_" in key for key in keys)


def recognise(keys: Collection[str]) -> str | None:
    """Returns the evidence that `keys` are of this format, or None."""
    if "backbone.patch_embed.proj.weight" not in keys:
        return None
    lora = any(key.endswith(".lora_shared_A") for key in keys)
    return "backbone.* with lora_shared_A" if lora else "backbone.* without low-rank factors"


def table(keys: Collection[str]) -> Table:
    del keys
    heads = (row for rows in HEADS.values() for row in rows)
    return Table([*BACKBONE, *LORA, *heads, *PROJECTIONS], DROPPED, REFUSED)


FREEZE = {
    "FREEZE_PATCH_EMBED": "patch_embed",
    "FREEZE_LAYER_NORM": "norms",
    "FREEZE_RELATIVE_POSITION_BIAS": "position_tables",
}
SUPPORTED = {
    "MODEL.MTLORA.SHARED_MODE": "matrix",
    "MODEL.MTLORA.INTERMEDIATE_SPECIALIZATION": False,
    "MODEL.SWIN.QK_SCALE": None,
}


SIDE = whole(1, 2**16)
SETTINGS = {  # {our name: (their names, the first present counts; check of the value)}
    "image_size": (("DATA.IMG_SIZE",), either(SIDE, list_of(SIDE, 2, 2))),
    "drop_path_rate": (("MODEL.DROP_PATH_RATE",), number(0, 1)),
    "scale": (("MODEL.MTLORA.SHARED_SCALE",), of_each_stage(number())),
    "task_scale": (("MODEL.MTLORA.SCALE_PER_TASK", "MODEL.MTLORA.TASK_SCALE"), of_each_task(number())),
    "dropout": (("MODEL.MTLORA.DROPOUT",), of_each_stage(number(0, 1))),
}


def read_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Reads the settings in a pickled configuration that tensors do not determine, under our names.

    Raises UserError for unsupported options and invalid values.
    """
    for name, supported in SUPPORTED.items():
        value = get_entry(config, name, supported)
        if type(value) is not type(supported) or value != supported:
            raise UserError(
                f"{name} = {value!r} in the checkpoint's configuration is not supported, only {supported!r}"
            )
    found = {}
    for ours, (names, check) in SETTINGS.items():
        for name in names:
            value = get_entry(config, name)
            empty = value is None or (isinstance(value, Mapping | list | tuple) and not value)
            if ours not in found and not empty:
                check(value, f"the checkpoint's configuration: {name}")
                found[ours] = value
    if isinstance(get_entry(config, "TRAIN"), Mapping):
        found["freeze"] = [ours for theirs, ours in FREEZE.items() if get_entry(config, f"TRAIN.{theirs}") is True]
        found["merging_frozen"] = get_entry(config, "TRAIN.FREEZE_DOWNSAMPLE_REDUCTION") is True
    return found


def get_entry(config: Mapping[str, Any], name: str, default: Any = None) -> Any:
    """Returns the entry at a dotted name, or the default if it is missing."""
    for part in name.split("."):
        if not isinstance(config, Mapping) or part not in config:
            return default
        config = config[part]
    return config
