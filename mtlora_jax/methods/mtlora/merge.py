"""Merging of MTLoRA: folds low-rank branches into kernels wherever that is exact; see docs/merging.md."""

from collections.abc import Mapping, Sequence
from typing import Any

from mtlora_jax.methods.mtlora.layers import (
    DeferredLinear,
    LoRALinear,
    MergedTaskLoRALinear,
    PerTaskLinear,
    SharedInputLinear,
    TaskLoRALinear,
)
from mtlora_jax.models.layers import Linear
from mtlora_jax.models.multitask import MultiTaskModel

Place = tuple[Any, str]  # a module, and the attribute that holds a linear layer


def merge(model: MultiTaskModel) -> None:
    """Merge every block, have decoders absorb deferred reductions, and fold their norms.

    Works in place, on an abstract model too.
    """
    stages = list(model.backbone.stages)
    for number, stage in enumerate(stages):
        has_tasks = False
        for block in stage.blocks:
            feeds_next = number < len(stages) - 1 or block is not stage.blocks[-1]
            has_tasks = merge_block(model.backbone.block_layers(block), feeds_next)
        if stage.downsample is not None:
            stage.downsample.reduction = merge_reduction(model, number, stage.downsample.reduction, has_tasks)
    model.fold_batch_norm()


def merge_block(places: Mapping[str, Sequence[Place]], feeds_next: bool) -> bool:
    """Replace the linear layers of a block by merged ones.

    Merges from last to first, because a layer may drop an output only if no later layer reads it.

    Args:
      places: of the layers, by location: fc2 after fc1 after proj, and any others before.
      feeds_next: whether another block reads the shared features.

    Returns:
      Whether features of tasks come out of the block.
    """
    (proj,), (fc1,), (fc2,) = (places[location] for location in ("proj", "fc1", "fc2"))
    after_proj = gives_tasks(proj, False)
    after_fc1 = gives_tasks(fc1, after_proj)
    after_fc2 = gives_tasks(fc2, after_fc1)
    needs_shared = feeds_next or not (after_proj or after_fc2)
    replace(fc2, needs_shared, True, after_fc1)
    needed_by_fc2 = reads_shared(fc2, needs_shared, after_fc1)
    replace(fc1, needed_by_fc2, after_fc2, after_proj)
    replace(proj, needs_shared or reads_shared(fc1, needed_by_fc2, after_proj), True, False)
    for location, before in places.items():
        if location not in ("proj", "fc1", "fc2"):
            for place in before:
                replace(place, True, False, False)
    return after_proj or after_fc2


def layer_of(place: Place) -> Linear:
    """Return the layer at a place."""
    return getattr(*place)


def gives_tasks(place: Place, tasks_come_in: bool) -> bool:
    """Return whether features of tasks come out of a layer."""
    layer = layer_of(place)
    return isinstance(layer, TaskLoRALinear) or (tasks_come_in and not isinstance(layer, SharedInputLinear))


def reads_shared(place: Place, needs_shared: bool, tasks_come_in: bool) -> bool:
    """Return whether the needed outputs of a merged layer depend on shared features.

    Args:
      needs_shared: whether a later layer reads the shared output.
      tasks_come_in: whether the layer reads features of tasks.
    """
    if isinstance(layer_of(place), MergedTaskLoRALinear | SharedInputLinear):
        return True
    return needs_shared or not tasks_come_in


def replace(place: Place, needs_shared: bool, needs_tasks: bool, tasks_come_in: bool) -> None:
    """Replace a layer by its smallest exact form.

    Args:
      needs_shared, needs_tasks: whether a later layer reads that output. Weights used only by an unread output are
        dropped.
      tasks_come_in: whether the layer reads features of tasks.
    """
    layer = layer_of(place)
    if isinstance(layer, TaskLoRALinear) and needs_tasks:
        per_task = tasks_come_in and layer.ts_base == "task"
        setattr(*place, PerTaskLinear(layer, needs_shared) if per_task else MergedTaskLoRALinear(layer, needs_shared))
    elif isinstance(layer, LoRALinear):
        setattr(*place, layer.merged())


def merge_reduction(model: MultiTaskModel, number: int, reduction: Linear, has_tasks: bool) -> Linear:
    """Return the merged reduction after a stage. Decoders read its input instead if features of tasks pass it."""
    merged = reduction.merged() if isinstance(reduction, LoRALinear) else Linear.from_weights(reduction.kernel, None)
    if not has_tasks:
        return merged
    for decoder in model.decoders.values():
        decoder.absorb(number, merged.kernel)
    return DeferredLinear(merged, absorbed=True)
