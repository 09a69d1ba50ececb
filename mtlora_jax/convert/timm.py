"""Swin checkpoints of timm, whose merging sits at the start of the next stage since 0.9; before, it is laid out like the official one."""

import re
from collections.abc import Callable, Collection

from mtlora_jax.convert import swin
from mtlora_jax.convert.table import Row, Table, linear


def previous_stage(rest: str) -> Callable[[re.Match], str]:
    return lambda found: f"backbone.layers.{int(found[1]) - 1}.downsample.{rest}"


MERGING = [
    Row(r"layers\.(\d+)\.downsample\.norm\.weight", previous_stage("norm.scale")),
    Row(r"layers\.(\d+)\.downsample\.norm\.bias", previous_stage("norm.bias")),
    Row(r"layers\.(\d+)\.downsample\.reduction\.weight", previous_stage("reduction.kernel"), linear),
]


def merges_first(keys: Collection[str]) -> bool:
    return not any(key.startswith("layers.0.downsample.") for key in keys)


def recognise(keys: Collection[str]) -> str | None:
    """What shows that `keys` are of this format, or None."""
    if "patch_embed.proj.weight" not in keys:
        return None
    if merges_first(keys):
        return "patch_embed at the root, downsample at the start of stages 1 and up"
    return "a classifier named head.fc" if "head.fc.weight" in keys else None


def table(keys: Collection[str]) -> Table:
    merging = MERGING if merges_first(keys) else swin.MERGING
    return Table([*swin.PATCH_EMBED, *swin.BLOCKS, *merging], swin.DROPPED)
