"""Swin checkpoints of Hugging Face transformers, and the Swin inside its segmentation networks.

Files have the names `attention.self.query`, `attention.output.dense`, `intermediate.dense` and `output.dense`. In
memory, models of transformers 5 name the same tensors `attention.q_proj`, `attention.o_proj`, `mlp.fc1` and `mlp.fc2`.
"""

from collections.abc import Collection

from mtlora_jax.convert import swin
from mtlora_jax.convert.key_mapping import Row, Table, conv, linear, matrix, vector

ANCHOR = "embeddings.patch_embeddings.projection.weight"

EMBEDDINGS = "embeddings."
BLOCK = "encoder.layers.{stage}.blocks.{block}."
OUR_BLOCK = "backbone.layers.{stage}.blocks.{block}."
MERGING = "encoder.layers.{stage}.downsample."
OUR_MERGING = "backbone.layers.{stage}.downsample."
TABLE = "attn.relative_position_bias_table"

LINEARS = {  # {(name in files, name in memory): (our name, part of it)}
    ("attention.self.query", "attention.q_proj"): ("attn.qkv", 0),
    ("attention.self.key", "attention.k_proj"): ("attn.qkv", 1),
    ("attention.self.value", "attention.v_proj"): ("attn.qkv", 2),
    ("attention.output.dense", "attention.o_proj"): ("attn.proj", 0),
    ("intermediate.dense", "mlp.fc1"): ("mlp.fc1", 0),
    ("output.dense", "mlp.fc2"): ("mlp.fc2", 0),
}

ROWS = [
    Row(EMBEDDINGS + "patch_embeddings.projection.weight", "backbone.patch_embed.proj.kernel", conv),
    Row(EMBEDDINGS + "patch_embeddings.projection.bias", "backbone.patch_embed.proj.bias"),
    Row(EMBEDDINGS + "norm.weight", "backbone.patch_embed.norm.scale"),
    Row(EMBEDDINGS + "norm.bias", "backbone.patch_embed.norm.bias"),
    Row(BLOCK + "layernorm_before.weight", OUR_BLOCK + "norm1.scale"),
    Row(BLOCK + "layernorm_before.bias", OUR_BLOCK + "norm1.bias"),
    Row(BLOCK + "layernorm_after.weight", OUR_BLOCK + "norm2.scale"),
    Row(BLOCK + "layernorm_after.bias", OUR_BLOCK + "norm2.bias"),
    Row(BLOCK + "attention.self.relative_position_bias_table", OUR_BLOCK + TABLE, matrix),
    Row(BLOCK + "attention.relative_position_bias.relative_position_bias_table", OUR_BLOCK + TABLE, matrix),
    *(
        Row(f"{BLOCK}{name}.weight", f"{OUR_BLOCK}{ours}.kernel", linear, part)
        for names, (ours, part) in LINEARS.items()
        for name in names
    ),
    *(
        Row(f"{BLOCK}{name}.bias", f"{OUR_BLOCK}{ours}.bias", vector, part)
        for names, (ours, part) in LINEARS.items()
        for name in names
    ),
    Row(MERGING + "norm.weight", OUR_MERGING + "norm.scale"),
    Row(MERGING + "norm.bias", OUR_MERGING + "norm.bias"),
    Row(MERGING + "reduction.weight", OUR_MERGING + "reduction.kernel", linear),
]

DROPPED = {
    r"classifier\.(weight|bias)": "classifier head",
    r"(?:swin\.)?layernorm\.(weight|bias)": "final norm",
    r"hidden_states_norms\..*": "output norms",
    r"embeddings\.mask_token": "mask token",
} | swin.BUFFERS


def recognise(keys: Collection[str]) -> str | None:
    """Returns the evidence that `keys` are of this format, or None."""
    return ANCHOR if ANCHOR in keys else None


def table(keys: Collection[str]) -> Table:
    del keys
    return Table(ROWS, DROPPED)
