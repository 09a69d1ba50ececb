"""Infers the architecture from converted tensors, and resizes position tables."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

from mtlora_jax.errors import UserError
from mtlora_jax.methods.mtlora.method import per_stage
from mtlora_jax.models.backbones.swin import Swin

Arrays = Mapping[str, np.ndarray]

# {head: a tensor that only it has}
HEAD_SIGNATURES = {"hrnet": "fuse.bias", "segformer": "linear.0.kernel", "aspp": "branches.0.kernel"}


class Settings(NamedTuple):
    """Settings that tensors do not determine."""

    image_size: int | Sequence[int]  # a side, or (height, width)
    drop_path_rate: float
    scale: float | Sequence[float]
    task_scale: float | Sequence[float] | Mapping[str, Any]
    dropout: float | Sequence[float]
    freeze: Sequence[str]
    merging_frozen: bool


def infer_architecture(arrays: Arrays, settings: Settings) -> dict[str, Any]:
    """Infers the architecture of a model with these arrays. Raises UserError if a needed tensor is missing or odd."""
    backbone = infer_backbone(arrays)
    tasks = infer_tasks(arrays)
    size = settings.image_size
    return {
        "backbone": backbone | {"drop_path_rate": settings.drop_path_rate},
        "tasks": tasks,
        "decoder": infer_decoder(arrays, list(tasks)) if tasks else None,
        "method": infer_method(arrays, list(tasks), len(backbone["depths"]), settings),
        "image_size": [*size] if isinstance(size, Sequence) else [size, size],
    }


def get_tensor(arrays: Arrays, path: str) -> np.ndarray:
    if path not in arrays:
        raise UserError(f"the checkpoint has no tensor for {path}")
    return arrays[path]


def find_groups(arrays: Arrays, pattern: str) -> list[str]:
    """Returns the first group of all paths that match `pattern` fully, each once, in checkpoint order."""
    return list(dict.fromkeys(match[1] for path in arrays if (match := re.fullmatch(pattern, path))))


def count_indices(arrays: Arrays, pattern: str) -> int:
    return 1 + max(map(int, find_groups(arrays, pattern)), default=-1)


def infer_backbone(arrays: Arrays) -> dict[str, Any]:
    patches = get_tensor(arrays, "backbone.patch_embed.proj.kernel")
    stages = range(count_indices(arrays, r"backbone\.layers\.(\d+)\..*"))
    tables = [get_tensor(arrays, f"backbone.layers.{i}.blocks.0.attn.relative_position_bias_table") for i in stages]
    windows = [infer_window(table) for table in tables]
    if len(set(windows)) != 1:
        raise UserError(f"the stages have position tables for windows of {windows}; make them one with --window_size")
    dim, hidden = get_tensor(arrays, "backbone.layers.0.blocks.0.mlp.fc1.kernel").shape
    return {
        "name": "swin",
        "embed_dim": patches.shape[-1],
        "depths": [count_indices(arrays, rf"backbone\.layers\.{i}\.blocks\.(\d+)\..*") for i in stages],
        "num_heads": [table.shape[1] for table in tables],
        "window_size": windows[0],
        "patch_size": patches.shape[0],
        "mlp_ratio": hidden / dim,
    }


def infer_window(table: np.ndarray) -> int:
    """Returns the window size of a position table ((2w - 1)^2, heads)."""
    side = math.isqrt(table.shape[0])
    if side * side != table.shape[0] or side % 2 == 0:
        raise UserError(
            f"a relative position table has shape {table.shape}, expected ((2w - 1)^2, heads) for a window of w x w"
        )
    return (side + 1) // 2


def infer_tasks(arrays: Arrays) -> dict[str, int]:
    """Returns {task: number of outputs} in the order of the checkpoint's decoders."""
    names = find_groups(arrays, r"decoders\.(\w+)\..*")
    return {task: get_tensor(arrays, f"decoders.{task}.head.classifier.bias").shape[0] for task in names}


def infer_decoder(arrays: Arrays, tasks: Sequence[str]) -> dict[str, Any]:
    heads = {task: infer_head(arrays, f"decoders.{task}.head.") for task in tasks}
    if len(set(heads.values())) != 1:
        raise UserError(f"all tasks must have the same kind of decoder, but the checkpoint has {heads}")
    name, prefix = heads[tasks[0]], f"decoders.{tasks[0]}."
    projections = count_indices(arrays, re.escape(prefix) + r"projections\.(\d+)\..*")
    if projections == 0:
        raise UserError(
            f"{prefix}projections: the checkpoint has no 1x1 projections before the decoders "
            "(MODEL.DECODER_DOWNSAMPLER False)"
        )
    decoder: dict[str, Any] = {
        "name": name,
        "channels": [get_tensor(arrays, f"{prefix}projections.{i}.kernel").shape[1] for i in range(projections)],
    }
    if name in ("segformer", "aspp"):
        decoder["width"] = get_tensor(arrays, prefix + "head.classifier.kernel").shape[0]
    if name == "segformer":
        decoder["dead_classifier"] = prefix + "head.conv_seg.kernel" in arrays
    return decoder


def infer_head(arrays: Arrays, prefix: str) -> str:
    return next((head for head, signature in HEAD_SIGNATURES.items() if prefix + signature in arrays), "unknown")


def infer_method(arrays: Arrays, tasks: Sequence[str], stages: int, settings: Settings) -> dict[str, Any]:
    """Infers MTLoRA's ranks and locations from its factors; full fine-tuning if there are none."""
    if not find_groups(arrays, r"(.*)\.shared_a"):
        return {"name": "full"}
    merging = "freeze" if settings.merging_frozen else "train"
    if find_groups(arrays, r"(.*\.downsample\.reduction)\.shared_a"):
        merging = "lora"
    return {
        "name": "mtlora",
        "rank": [infer_rank(arrays, rf"backbone\.layers\.{i}\.blocks\.(.*)\.shared_a") for i in range(stages)],
        "task_rank": {
            task: [infer_rank(arrays, rf"backbone\.layers\.{i}\.(.*)\.task_a\.{task}") for i in range(stages)]
            for task in tasks
        },
        "scale": per_stage(collapse_repeats(settings.scale), stages, "scale"),
        "task_scale": {
            task: per_stage(collapse_repeats(select_task(settings.task_scale, task)), stages, "task_scale")
            for task in tasks
        },
        "dropout": collapse_repeats(settings.dropout),
        "locations": [
            name for name, (layer,) in Swin.LINEAR_LAYERS.items() if find_groups(arrays, rf"(.*)\.{layer}\.shared_a")
        ],
        "ts_base": "shared",
        "merging": merging,
        "freeze": list(settings.freeze),
    }


def infer_rank(arrays: Arrays, pattern: str) -> int:
    """Returns the number of columns of the first factor A that matches, or 0."""
    return next((a.shape[1] for path, a in arrays.items() if re.fullmatch(pattern, path)), 0)


def select_task(value: Any, task: str) -> Any:
    if not isinstance(value, Mapping):
        return value
    if task not in value:
        raise UserError(f"the checkpoint's configuration gives no scale for task {task}; give one with --scale")
    return value[task]


def collapse_repeats(value: Any) -> Any:
    """Collapses a list of equal numbers, the form in which the reference writes one number for all stages."""
    return value[0] if isinstance(value, Sequence) and len(set(value)) == 1 else value


def resize_tables(arrays: Arrays, window: int) -> tuple[dict[str, np.ndarray], int]:
    """Resizes every relative position table to `window`; returns the arrays and how many tables changed."""
    if window < 1:
        raise UserError(f"--window_size={window} must be at least 1")
    resized = {
        path: resize_table(table, window)
        for path, table in arrays.items()
        if path.endswith("relative_position_bias_table") and infer_window(table) != window
    }
    return {**arrays, **resized}, len(resized)


def resize_table(table: np.ndarray, window: int) -> np.ndarray:
    """Resizes a table ((2w - 1)^2, heads) to ((2 window - 1)^2, heads), bicubically over the grid, as Swin does."""
    old, new = 2 * infer_window(table) - 1, 2 * window - 1
    grids = [head.reshape(old, old) for head in np.ascontiguousarray(table.T)]
    resized = [cv2.resize(grid, (new, new), interpolation=cv2.INTER_CUBIC) for grid in grids]
    return np.stack(resized, -1).reshape(new * new, -1)
