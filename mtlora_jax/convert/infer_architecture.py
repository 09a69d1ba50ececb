"""Reads the architecture off converted tensors, and fits position tables to another window."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

from mtlora_jax.errors import UserError
from mtlora_jax.methods.mtlora.method import LOCATIONS, per_stage

Arrays = Mapping[str, np.ndarray]

MARKS = {"hrnet": "fuse.bias", "segformer": "linear.0.kernel", "aspp": "branches.0.kernel"}  # a tensor that only this head has


class Settings(NamedTuple):
    """What tensors do not tell."""

    image_size: int | Sequence[int]  # a side, or (height, width)
    drop_path_rate: float
    scale: float | Sequence[float]
    task_scale: float | Sequence[float] | Mapping[str, Any]
    dropout: float | Sequence[float]
    freeze: Sequence[str]
    merging_frozen: bool


def architecture_of(arrays: Arrays, settings: Settings) -> dict[str, Any]:
    """The architecture whose model these arrays fill. Raises UserError where a tensor it is read off is missing or odd."""
    backbone = backbone_of(arrays)
    tasks = tasks_of(arrays)
    size = settings.image_size
    return {
        "backbone": backbone | {"drop_path_rate": settings.drop_path_rate},
        "tasks": tasks,
        "decoder": decoder_of(arrays, list(tasks)) if tasks else None,
        "method": method_of(arrays, list(tasks), len(backbone["depths"]), settings),
        "image_size": [*size] if isinstance(size, Sequence) else [size, size],
    }


def get(arrays: Arrays, path: str) -> np.ndarray:
    if path not in arrays:
        raise UserError(f"the checkpoint has no tensor for {path}")
    return arrays[path]


def found(arrays: Arrays, pattern: str) -> list[str]:
    """First groups of all paths that match as a whole, each once, in the order of the checkpoint."""
    return list(dict.fromkeys(match[1] for path in arrays if (match := re.fullmatch(pattern, path))))


def count(arrays: Arrays, pattern: str) -> int:
    return 1 + max(map(int, found(arrays, pattern)), default=-1)


def backbone_of(arrays: Arrays) -> dict[str, Any]:
    patches = get(arrays, "backbone.patch_embed.proj.kernel")
    stages = range(count(arrays, r"backbone\.layers\.(\d+)\..*"))
    tables = [get(arrays, f"backbone.layers.{i}.blocks.0.attn.relative_position_bias_table") for i in stages]
    windows = [window_of(table) for table in tables]
    if len(set(windows)) != 1:
        raise UserError(f"the stages have position tables for windows of {windows}; make them one with --window_size")
    dim, hidden = get(arrays, "backbone.layers.0.blocks.0.mlp.fc1.kernel").shape
    return {
        "name": "swin",
        "embed_dim": patches.shape[-1],
        "depths": [count(arrays, rf"backbone\.layers\.{i}\.blocks\.(\d+)\..*") for i in stages],
        "num_heads": [table.shape[1] for table in tables],
        "window_size": windows[0],
        "patch_size": patches.shape[0],
        "mlp_ratio": hidden / dim,
    }


def window_of(table: np.ndarray) -> int:
    """Window size of a position table ((2w - 1)^2, heads)."""
    side = math.isqrt(table.shape[0])
    if side * side != table.shape[0] or side % 2 == 0:
        raise UserError(f"a relative position table has shape {table.shape}, expected ((2w - 1)^2, heads) for a window of w x w")
    return (side + 1) // 2


def tasks_of(arrays: Arrays) -> dict[str, int]:
    """{task: outputs} in the order of the checkpoint's decoders."""
    names = found(arrays, r"decoders\.(\w+)\..*")
    return {task: get(arrays, f"decoders.{task}.head.classifier.bias").shape[0] for task in names}


def decoder_of(arrays: Arrays, tasks: Sequence[str]) -> dict[str, Any]:
    heads = {task: next((head for head, mark in MARKS.items() if f"decoders.{task}.head.{mark}" in arrays), "unknown") for task in tasks}
    if len(set(heads.values())) != 1:
        raise UserError(f"all tasks must have the same kind of decoder, but the checkpoint has {heads}")
    name, prefix = heads[tasks[0]], f"decoders.{tasks[0]}."
    projections = count(arrays, re.escape(prefix) + r"projections\.(\d+)\..*")
    if projections == 0:
        raise UserError(f"{prefix}projections: the checkpoint has no 1x1 projections before the decoders (MODEL.DECODER_DOWNSAMPLER False)")
    decoder: dict[str, Any] = {
        "name": name,
        "channels": [get(arrays, f"{prefix}projections.{i}.kernel").shape[1] for i in range(projections)],
    }
    if name in ("segformer", "aspp"):
        decoder["width"] = get(arrays, prefix + "head.classifier.kernel").shape[0]
    if name == "segformer":
        decoder["dead_classifier"] = prefix + "head.conv_seg.kernel" in arrays
    return decoder


def method_of(arrays: Arrays, tasks: Sequence[str], stages: int, settings: Settings) -> dict[str, Any]:
    """MTLoRA with the ranks and locations of the factors that are there; full fine-tuning where there are none."""
    if not found(arrays, r"(.*)\.shared_a"):
        return {"name": "full"}
    merging = "lora" if found(arrays, r"(.*\.downsample\.reduction)\.shared_a") else "freeze" if settings.merging_frozen else "train"
    return {
        "name": "mtlora",
        "rank": [rank(arrays, rf"backbone\.layers\.{i}\.blocks\.(.*)\.shared_a") for i in range(stages)],
        "task_rank": {task: [rank(arrays, rf"backbone\.layers\.{i}\.(.*)\.task_a\.{task}") for i in range(stages)] for task in tasks},
        "scale": per_stage(unless_single(settings.scale), stages, "scale"),
        "task_scale": {task: per_stage(unless_single(of_task(settings.task_scale, task)), stages, "task_scale") for task in tasks},
        "dropout": unless_single(settings.dropout),
        "locations": [name for name, layer in LOCATIONS.items() if found(arrays, rf"(.*)\.{'.'.join(layer)}\.shared_a")],
        "ts_base": "shared",
        "merging": merging,
        "freeze": list(settings.freeze),
    }


def rank(arrays: Arrays, pattern: str) -> int:
    """Columns of the first factor A that matches; 0 without one."""
    return next((a.shape[1] for path, a in arrays.items() if re.fullmatch(pattern, path)), 0)


def of_task(value: Any, task: str) -> Any:
    if not isinstance(value, Mapping):
        return value
    if task not in value:
        raise UserError(f"the checkpoint's configuration gives no scale for task {task}; give one with --scale")
    return value[task]


def unless_single(value: Any) -> Any:
    """The reference writes one number for all stages as a list that repeats it."""
    return value[0] if isinstance(value, Sequence) and len(set(value)) == 1 else value


def resize_tables(arrays: Arrays, window: int) -> tuple[dict[str, np.ndarray], int]:
    """Fits every relative position table to `window`; how many were not of that size is the second result."""
    if window < 1:
        raise UserError(f"--window_size={window} must be at least 1")
    resized = {
        path: resize_table(table, window)
        for path, table in arrays.items()
        if path.endswith("relative_position_bias_table") and window_of(table) != window
    }
    return {**arrays, **resized}, len(resized)


def resize_table(table: np.ndarray, window: int) -> np.ndarray:
    """((2w - 1)^2, heads) -> ((2 window - 1)^2, heads), bicubic over the grid of offsets, as Swin does for another window."""
    old, new = 2 * window_of(table) - 1, 2 * window - 1
    grids = [cv2.resize(head.reshape(old, old), (new, new), interpolation=cv2.INTER_CUBIC) for head in np.ascontiguousarray(table.T)]
    return np.stack(grids, -1).reshape(new * new, -1)
