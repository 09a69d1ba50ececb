"""Swin checkpoints of Hugging Face transformers, with or without the prefix `swin.`.

Files carry `attention.self.query`, `attention.output.dense`, `intermediate.dense` and `output.dense`; models of transformers 5
name the same tensors `attention.q_proj`, `attention.o_proj`, `mlp.fc1` and `mlp.fc2` in memory.
"""

from collections.abc import Collection

from mtlora_jax.convert import swin
from mtlora_jax.convert.table import Row, Table, conv, linear, matrix

ROOT = r"(?:swin\.)?"
BLOCK = ROOT + r"encoder\.layers\.(\d+)\.blocks\.(\d+)\."
OUR_BLOCK = r"backbone.layers.\1.blocks.\2."
MERGING = ROOT + r"encoder\.layers\.(\d+)\.downsample\."
OUR_MERGING = r"backbone.layers.\1.downsample."

ROWS = [
    Row(ROOT + r"embeddings\.patch_embeddings\.projection\.weight", "backbone.patch_embed.proj.kernel", conv),
    Row(ROOT + r"embeddings\.patch_embeddings\.projection\.bias", "backbone.patch_embed.proj.bias"),
    Row(ROOT + r"embeddings\.norm\.weight", "backbone.patch_embed.norm.scale"),
    Row(ROOT + r"embeddings\.norm\.bias", "backbone.patch_embed.norm.bias"),
    Row(BLOCK + r"layernorm_before\.weight", OUR_BLOCK + "norm1.scale"),
    Row(BLOCK + r"layernorm_before\.bias", OUR_BLOCK + "norm1.bias"),
    Row(BLOCK + r"layernorm_after\.weight", OUR_BLOCK + "norm2.scale"),
    Row(BLOCK + r"layernorm_after\.bias", OUR_BLOCK + "norm2.bias"),
    Row(
        BLOCK + r"attention\.(?:self|relative_position_bias)\.relative_position_bias_table",
        OUR_BLOCK + "attn.relative_position_bias_table",
        matrix,
    ),
    Row(BLOCK + r"attention\.(?:self\.query|q_proj)\.weight", OUR_BLOCK + "attn.qkv.kernel", linear, part=0),
    Row(BLOCK + r"attention\.(?:self\.key|k_proj)\.weight", OUR_BLOCK + "attn.qkv.kernel", linear, part=1),
    Row(BLOCK + r"attention\.(?:self\.value|v_proj)\.weight", OUR_BLOCK + "attn.qkv.kernel", linear, part=2),
    Row(BLOCK + r"attention\.(?:self\.query|q_proj)\.bias", OUR_BLOCK + "attn.qkv.bias", part=0),
    Row(BLOCK + r"attention\.(?:self\.key|k_proj)\.bias", OUR_BLOCK + "attn.qkv.bias", part=1),
    Row(BLOCK + r"attention\.(?:self\.value|v_proj)\.bias", OUR_BLOCK + "attn.qkv.bias", part=2),
    Row(BLOCK + r"attention\.(?:output\.dense|o_proj)\.weight", OUR_BLOCK + "attn.proj.kernel", linear),
    Row(BLOCK + r"attention\.(?:output\.dense|o_proj)\.bias", OUR_BLOCK + "attn.proj.bias"),
    Row(BLOCK + r"(?:intermediate\.dense|mlp\.fc1)\.weight", OUR_BLOCK + "mlp.fc1.kernel", linear),
    Row(BLOCK + r"(?:intermediate\.dense|mlp\.fc1)\.bias", OUR_BLOCK + "mlp.fc1.bias"),
    Row(BLOCK + r"(?:output\.dense|mlp\.fc2)\.weight", OUR_BLOCK + "mlp.fc2.kernel", linear),
    Row(BLOCK + r"(?:output\.dense|mlp\.fc2)\.bias", OUR_BLOCK + "mlp.fc2.bias"),
    Row(MERGING + r"norm\.weight", OUR_MERGING + "norm.scale"),
    Row(MERGING + r"norm\.bias", OUR_MERGING + "norm.bias"),
    Row(MERGING + r"reduction\.weight", OUR_MERGING + "reduction.kernel", linear),
]

DROPPED = {r"classifier\.(weight|bias)": "classifier head", ROOT + r"layernorm\.(weight|bias)": "final norm"} | swin.BUFFERS


def recognise(keys: Collection[str]) -> str | None:
    """What shows that `keys` are of this format, or None."""
    names = ("swin.embeddings.patch_embeddings.projection.weight", "embeddings.patch_embeddings.projection.weight")
    return next((name for name in names if name in keys), None)


def table(keys: Collection[str]) -> Table:
    del keys
    return Table(ROWS, DROPPED)
