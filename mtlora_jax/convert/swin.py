"""Swin checkpoints of Microsoft, the official ones.

Their keys are `patch_embed.*`, `layers.I.blocks.J.*`, `layers.I.downsample.*`, `norm.*` and `head.*`.
"""

from collections.abc import Collection

from mtlora_jax.convert.key_mapping import Row, Table, conv, linear, matrix

ANCHOR = "patch_embed.proj.weight"  # also in the reference and in timm

BLOCK = "layers.{stage}.blocks.{block}."

PATCH_EMBED = [
    Row("patch_embed.proj.weight", "backbone.patch_embed.proj.kernel", conv),
    Row("patch_embed.proj.bias", "backbone.patch_embed.proj.bias"),
    Row("patch_embed.norm.weight", "backbone.patch_embed.norm.scale"),
    Row("patch_embed.norm.bias", "backbone.patch_embed.norm.bias"),
]

BLOCKS = [
    Row(BLOCK + "{norm}.weight", f"backbone.{BLOCK}{{norm}}.scale"),
    Row(BLOCK + "{norm}.bias", f"backbone.{BLOCK}{{norm}}.bias"),
    Row(BLOCK + "attn.relative_position_bias_table", f"backbone.{BLOCK}attn.relative_position_bias_table", matrix),
    Row(BLOCK + "{linear}.weight", f"backbone.{BLOCK}{{linear}}.kernel", linear),
    Row(BLOCK + "{linear}.bias", f"backbone.{BLOCK}{{linear}}.bias"),
]

MERGING = [
    Row("layers.{stage}.downsample.norm.weight", "backbone.layers.{stage}.downsample.norm.scale"),
    Row("layers.{stage}.downsample.norm.bias", "backbone.layers.{stage}.downsample.norm.bias"),
    Row("layers.{stage}.downsample.reduction.weight", "backbone.layers.{stage}.downsample.reduction.kernel", linear),
]

BUFFERS = {r".*\.(attn_mask|relative_position_index)": "derived buffers"}
DROPPED = {
    r"head\..*": "classifier head",
    r"norm\.(weight|bias)": "final norm",
    r"norm\d\.(weight|bias)": "output norms",  # of encoders in segmentation and detection networks
    "mask_token": "mask token",
} | BUFFERS


def recognise(keys: Collection[str]) -> str | None:
    """Returns the evidence that `keys` are of this format, or None."""
    if ANCHOR in keys and any(key.startswith("layers.0.downsample.") for key in keys):
        return "patch_embed at the root, layers.0.downsample at the end of stage 0"
    return None


def table(keys: Collection[str]) -> Table:
    del keys
    return Table([*PATCH_EMBED, *BLOCKS, *MERGING], DROPPED)
