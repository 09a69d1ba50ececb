"""Swin of OpenMMLab, the encoder in mmseg, mmdet and mmpretrain.

Its patch merging orders inputs differently. It uses `nn.Unfold`: all neighbours of the first channel, then those of the
second, with the right neighbour before the one below. Swin takes all channels of a neighbour, and the one below first.
"""

from collections.abc import Collection

import numpy as np

from mtlora_jax.convert import swin
from mtlora_jax.convert.key_mapping import Row, Table, TensorTransform, conv, linear, matrix

ANCHOR = "patch_embed.projection.weight"

BLOCK = "stages.{stage}.blocks.{block}."
OUR_BLOCK = "backbone.layers.{stage}.blocks.{block}."
MERGING = "stages.{stage}.downsample."
OUR_MERGING = "backbone.layers.{stage}.downsample."
LINEARS = {
    "attn.w_msa.qkv": "attn.qkv",
    "attn.w_msa.proj": "attn.proj",
    "ffn.layers.0.0": "mlp.fc1",
    "ffn.layers.1": "mlp.fc2",
}

ORDER = [0, 2, 1, 3]  # of the neighbours, from row-first (here) to column-first (Swin); its own inverse


def to_swin(x: np.ndarray) -> np.ndarray:
    """Reorders inputs of a patch merging (4C, ...) from channel by channel to neighbour by neighbour."""
    return x.reshape(-1, 4, *x.shape[1:])[:, ORDER].swapaxes(0, 1).reshape(x.shape)


def from_swin(x: np.ndarray) -> np.ndarray:
    return x.reshape(4, -1, *x.shape[1:])[ORDER].swapaxes(0, 1).reshape(x.shape)


merged_vector = TensorTransform("vector of four neighbours", lambda x: to_swin(x.transpose(0)), from_swin)
merged_linear = TensorTransform(
    "linear of four neighbours", lambda x: to_swin(x.transpose(1, 0)), lambda x: from_swin(x).transpose(1, 0)
)

ROWS = [
    Row("patch_embed.projection.weight", "backbone.patch_embed.proj.kernel", conv),
    Row("patch_embed.projection.bias", "backbone.patch_embed.proj.bias"),
    Row("patch_embed.norm.weight", "backbone.patch_embed.norm.scale"),
    Row("patch_embed.norm.bias", "backbone.patch_embed.norm.bias"),
    Row(BLOCK + "{norm}.weight", OUR_BLOCK + "{norm}.scale"),
    Row(BLOCK + "{norm}.bias", OUR_BLOCK + "{norm}.bias"),
    Row(BLOCK + "attn.w_msa.relative_position_bias_table", OUR_BLOCK + "attn.relative_position_bias_table", matrix),
    *(Row(f"{BLOCK}{theirs}.weight", f"{OUR_BLOCK}{ours}.kernel", linear) for theirs, ours in LINEARS.items()),
    *(Row(f"{BLOCK}{theirs}.bias", f"{OUR_BLOCK}{ours}.bias") for theirs, ours in LINEARS.items()),
    Row(MERGING + "norm.weight", OUR_MERGING + "norm.scale", merged_vector),
    Row(MERGING + "norm.bias", OUR_MERGING + "norm.bias", merged_vector),
    Row(MERGING + "reduction.weight", OUR_MERGING + "reduction.kernel", merged_linear),
]


def recognise(keys: Collection[str]) -> str | None:
    """Returns the evidence that `keys` are of this format, or None."""
    return ANCHOR if ANCHOR in keys else None


def table(keys: Collection[str]) -> Table:
    del keys
    return Table(ROWS, swin.DROPPED)
