"""Converts our models to checkpoints that the MTLoRA reference loads, by inverting the tables of `convert.mtlora`."""

import io
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mtlora_jax.convert.key_mapping import Row, unapply
from mtlora_jax.convert.mtlora import BACKBONE, FREEZE, HEADS, LORA, PROJECTIONS
from mtlora_jax.errors import UserError
from mtlora_jax.io import files, weights
from mtlora_jax.methods.mtlora.method import LOCATIONS, per_stage, per_task
from mtlora_jax.models.backbones.swin_windows import attention_mask, relative_position_index

Arrays = Mapping[str, np.ndarray]

PLAIN_METHODS = ("full", "decoders_only", "single_task")  # methods whose models are plain multi-task Swins
STRIDES = (1, 2, 4, 8)  # of the stages, in patches


def save(out: pathlib.Path, architecture: Mapping[str, Any], arrays: Arrays) -> None:
    """Writes a PyTorch file {"model": state dict, "config": other settings} atomically.

    Raises UserError for a model without a format in the reference, for values that are not finite, if `out` cannot be
    written, and if PyTorch is not installed.
    """
    state = make_state_dict(architecture, weights.check(arrays, str(out)))
    try:
        import torch
    except ImportError:
        raise UserError(
            f"{out}: writing this needs PyTorch, install it with: pip install 'mtlora_jax[convert]'"
        ) from None
    tensors = {key: torch.from_numpy(np.array(value)) for key, value in state.items()}
    content = io.BytesIO()
    torch.save({"model": tensors, "config": make_config(architecture)}, content)
    files.write_bytes(out, content.getbuffer())


def make_state_dict(architecture: Mapping[str, Any], arrays: Arrays) -> dict[str, np.ndarray]:
    """Returns {key: tensor} for the reference's `load_state_dict` with `strict=True`, with derived buffers."""
    check_supported(architecture)
    adapted = {path.removesuffix("shared_a") for path in arrays if path.endswith(".shared_a")}
    plain = [*BACKBONE, *HEADS[architecture["decoder"]["name"]], *PROJECTIONS]

    def rows_for(path: str) -> Sequence[Row]:
        return LORA if any(path.startswith(layer) for layer in adapted) else plain

    # The order of decoders in a checkpoint is that of its tasks, but `arrays` may be sorted by name.
    decoders = {f"decoders.{task}.": number for number, task in enumerate(architecture["tasks"], 1)}
    ordered = sorted(
        arrays, key=lambda path: next((number for start, number in decoders.items() if path.startswith(start)), 0)
    )
    state = unapply(rows_for, {path: arrays[path] for path in ordered})
    counts = {
        key.replace("running_mean", "num_batches_tracked"): np.zeros((), np.int64)
        for key in state
        if key.endswith("running_mean")
    }
    return {**state, **counts, **make_window_buffers(architecture)}


def check_supported(architecture: Mapping[str, Any]) -> None:
    """Raises UserError for a model that the reference has no format for."""
    method, decoder, size = (architecture[part] for part in ("method", "decoder", "image_size"))
    name = method["name"]
    if name == "merged":
        raise UserError("--to=mtlora: the reference has no format for merged models; convert the model that was merged")
    if name not in ("mtlora", *PLAIN_METHODS):
        raise UserError(
            f"--to=mtlora: the reference has no method {name}, only mtlora and plain Swins ({', '.join(PLAIN_METHODS)})"
        )
    if decoder is None:
        raise UserError("--to=mtlora: this is a bare backbone without tasks; the reference's checkpoints have decoders")
    if method.get("ts_base", "shared") != "shared":
        raise UserError(f"--to=mtlora: the reference computes ts_base 'shared', this model {method['ts_base']!r}")
    if decoder["name"] == "segformer" and not decoder.get("dead_classifier", True):
        raise UserError("--to=mtlora: decoder.dead_classifier = False leaves out a classifier that the reference has")
    grids, window = grid_sizes(architecture), architecture["backbone"].get("window_size", 7)
    if size[0] != size[1] or len(grids) != len(STRIDES) or any(grid % window for grid in grids):
        needs = f"square images and four stages whose grids its windows of {window} divide"
        found = f"this model takes {size[0]}x{size[1]} pixels, its grids are {grids}"
        raise UserError(f"--to=mtlora: the reference needs {needs}; {found}")


def grid_sizes(architecture: Mapping[str, Any]) -> list[int]:
    """Returns the side of the grid of each stage, in tokens; 0 if it is not whole."""
    patches = architecture["image_size"][0] / architecture["backbone"].get("patch_size", 4)
    strides = STRIDES[: len(architecture["backbone"]["depths"])]
    return [int(patches / stride) if patches % stride == 0 else 0 for stride in strides]


def make_window_buffers(architecture: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Computes the buffers that the reference derives from the geometry and yet stores in checkpoints."""
    window = architecture["backbone"].get("window_size", 7)
    found: dict[str, np.ndarray] = {}
    for i, (depth, grid) in enumerate(zip(architecture["backbone"]["depths"], grid_sizes(architecture), strict=True)):
        for j in range(depth):
            block = f"backbone.layers.{i}.blocks.{j}."
            index = relative_position_index((window, window), window)
            found[block + "attn.relative_position_index"] = index.astype(np.int64)
            if j % 2 and grid > window:
                found[block + "attn_mask"] = np.asarray(attention_mask((grid, grid), (window, window), window // 2))
    return found


def make_config(architecture: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings under the reference's names; `convert.mtlora.read_settings` reads them back."""
    method, depths = architecture["method"], architecture["backbone"]["depths"]
    config: dict[str, Any] = {
        "DATA": {"IMG_SIZE": architecture["image_size"][0]},
        "MODEL": {"DROP_PATH_RATE": architecture["backbone"].get("drop_path_rate", 0.2)},
    }
    if method["name"] == "mtlora":
        tasks, stages = list(architecture["tasks"]), len(depths)
        ranks, scales = (per_task(method.get(key, 4), tasks, stages, key) for key in ("task_rank", "task_scale"))
        config["MODEL"]["MTLORA"] = {
            "ENABLED": True,
            "R_PER_TASK": {task: [stage[task] for stage in ranks] for task in tasks}
            | {"shared": per_stage(method.get("rank", 64), stages, "rank")},
            "SCALE_PER_TASK": {task: [float(stage[task]) for stage in scales] for task in tasks},
            "SHARED_SCALE": [float(scale) for scale in per_stage(method.get("scale", 4.0), stages, "scale")],
            "DROPOUT": [float(rate) for rate in per_stage(method.get("dropout", 0.05), stages, "dropout")],
            "DOWNSAMPLER_ENABLED": method.get("merging", "train") == "lora",
            **{f"{name.upper()}_ENABLED": name in method.get("locations", LOCATIONS) for name in LOCATIONS},
        }
        config["TRAIN"] = {theirs: ours in method.get("freeze", ()) for theirs, ours in FREEZE.items()}
        config["TRAIN"]["FREEZE_DOWNSAMPLE_REDUCTION"] = method.get("merging", "train") != "train"
    return config
