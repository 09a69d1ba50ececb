"""Official Microsoft Swin checkpoints: `patch_embed.*`, `layers.I.blocks.J.*`, `layers.I.downsample.*`, `norm.*`, `head.*`."""

from collections.abc import Collection

from mtlora_jax.convert.table import Row, Table, conv, linear, matrix

PATCH_EMBED = [
    Row(r"patch_embed\.proj\.weight", r"backbone.patch_embed.proj.kernel", conv),
    Row(r"patch_embed\.proj\.bias", r"backbone.patch_embed.proj.bias"),
    Row(r"patch_embed\.norm\.weight", r"backbone.patch_embed.norm.scale"),
    Row(r"patch_embed\.norm\.bias", r"backbone.patch_embed.norm.bias"),
]

BLOCKS = [
    Row(r"layers\.(\d+)\.blocks\.(\d+)\.(norm[12])\.weight", r"backbone.layers.\1.blocks.\2.\3.scale"),
    Row(r"layers\.(\d+)\.blocks\.(\d+)\.(norm[12])\.bias", r"backbone.layers.\1.blocks.\2.\3.bias"),
    Row(
        r"layers\.(\d+)\.blocks\.(\d+)\.attn\.relative_position_bias_table",
        r"backbone.layers.\1.blocks.\2.attn.relative_position_bias_table",
        matrix,
    ),
    Row(r"layers\.(\d+)\.blocks\.(\d+)\.(attn\.qkv|attn\.proj|mlp\.fc[12])\.weight", r"backbone.layers.\1.blocks.\2.\3.kernel", linear),
    Row(r"layers\.(\d+)\.blocks\.(\d+)\.(attn\.qkv|attn\.proj|mlp\.fc[12])\.bias", r"backbone.layers.\1.blocks.\2.\3.bias"),
]

MERGING = [
    Row(r"layers\.(\d+)\.downsample\.norm\.weight", r"backbone.layers.\1.downsample.norm.scale"),
    Row(r"layers\.(\d+)\.downsample\.norm\.bias", r"backbone.layers.\1.downsample.norm.bias"),
    Row(r"layers\.(\d+)\.downsample\.reduction\.weight", r"backbone.layers.\1.downsample.reduction.kernel", linear),
]

BUFFERS = {r".*\.(attn_mask|relative_position_index)": "derived buffers"}
DROPPED = {r"head\..*": "classifier head", r"norm\.(weight|bias)": "final norm"} | BUFFERS


def recognise(keys: Collection[str]) -> str | None:
    """What shows that `keys` are of this format, or None."""
    if "patch_embed.proj.weight" in keys and any(key.startswith("layers.0.downsample.") for key in keys):
        return "patch_embed at the root, layers.0.downsample at the end of stage 0"
    return None


def table(keys: Collection[str]) -> Table:
    del keys
    return Table([*PATCH_EMBED, *BLOCKS, *MERGING], DROPPED)
