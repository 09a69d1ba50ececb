"""Swin checkpoints of torchvision: `features.0` embeds patches, then blocks and patch mergings alternate."""

from collections.abc import Collection

from mtlora_jax.convert import swin
from mtlora_jax.convert.key_mapping import Row, Table, conv, linear, matrix
from mtlora_jax.convert.timm import MAX_STAGES

ANCHOR = "features.1.0.attn.relative_position_bias_table"  # many networks have features.0.0
LINEARS = {"attn.qkv": "attn.qkv", "attn.proj": "attn.proj", "mlp.0": "mlp.fc1", "mlp.3": "mlp.fc2"}


def stage_rows(i: int) -> list[Row]:
    block, ours = f"features.{2 * i + 1}.{{block}}.", f"backbone.layers.{i}.blocks.{{block}}."
    merging, our_merging = f"features.{2 * i + 2}.", f"backbone.layers.{i}.downsample."
    return [
        Row(block + "{norm}.weight", ours + "{norm}.scale"),
        Row(block + "{norm}.bias", ours + "{norm}.bias"),
        Row(block + "attn.relative_position_bias_table", ours + "attn.relative_position_bias_table", matrix),
        *(Row(f"{block}{name}.weight", f"{ours}{own}.kernel", linear) for name, own in LINEARS.items()),
        *(Row(f"{block}{name}.bias", f"{ours}{own}.bias") for name, own in LINEARS.items()),
        Row(merging + "norm.weight", our_merging + "norm.scale"),
        Row(merging + "norm.bias", our_merging + "norm.bias"),
        Row(merging + "reduction.weight", our_merging + "reduction.kernel", linear),
    ]


ROWS = [
    Row("features.0.0.weight", "backbone.patch_embed.proj.kernel", conv),
    Row("features.0.0.bias", "backbone.patch_embed.proj.bias"),
    Row("features.0.2.weight", "backbone.patch_embed.norm.scale"),
    Row("features.0.2.bias", "backbone.patch_embed.norm.bias"),
    *(row for i in range(MAX_STAGES) for row in stage_rows(i)),
]


def recognise(keys: Collection[str]) -> str | None:
    """Returns the evidence that `keys` are of this format, or None."""
    return ANCHOR if ANCHOR in keys else None


def table(keys: Collection[str]) -> Table:
    del keys
    return Table(ROWS, swin.DROPPED)
