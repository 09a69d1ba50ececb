"""Swin checkpoints of timm. Since 0.9, patch merging is at the start of the next stage; before, as in official ones."""

from collections.abc import Collection

from mtlora_jax.convert import swin
from mtlora_jax.convert.key_mapping import Row, Table, linear

MAX_STAGES = 8  # more than any Swin has

MERGING = [
    row
    for i in range(MAX_STAGES)
    for row in (
        Row(f"layers.{i + 1}.downsample.norm.weight", f"backbone.layers.{i}.downsample.norm.scale"),
        Row(f"layers.{i + 1}.downsample.norm.bias", f"backbone.layers.{i}.downsample.norm.bias"),
        Row(f"layers.{i + 1}.downsample.reduction.weight", f"backbone.layers.{i}.downsample.reduction.kernel", linear),
    )
]


def merges_first(keys: Collection[str]) -> bool:
    return not any(key.startswith("layers.0.downsample.") for key in keys)


def recognise(keys: Collection[str]) -> str | None:
    """Returns the evidence that `keys` are of this format, or None."""
    if swin.ANCHOR not in keys:
        return None
    if merges_first(keys):
        return "patch_embed at the root, downsample at the start of stages 1 and up"
    return "a classifier named head.fc" if "head.fc.weight" in keys else None


def table(keys: Collection[str]) -> Table:
    merging = MERGING if merges_first(keys) else swin.MERGING
    return Table([*swin.PATCH_EMBED, *swin.BLOCKS, *merging], swin.DROPPED)
