"""Converts checkpoints of other libraries to model folders; the command is `python -m mtlora_jax.convert`."""

import math
import pathlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mtlora_jax.convert import checkpoint_reader, hf, hub_config, mmseg, mtlora, swin, timm, torchvision
from mtlora_jax.convert.checkpoint_reader import Checkpoint
from mtlora_jax.convert.infer_architecture import Settings, infer_architecture, resize_tables
from mtlora_jax.convert.key_mapping import Table, apply, first_match
from mtlora_jax.convert.torchfile import check_is_dense
from mtlora_jax.errors import UserError
from mtlora_jax.model_factory import backbone_class, build
from mtlora_jax.models import parameters

FORMATS = {"swin": swin, "mtlora": mtlora, "timm": timm, "hf": hf, "mmseg": mmseg, "torchvision": torchvision}
# {pattern of a key: the unsupported network or file that has it}
UNSUPPORTED = {
    r"(.*\.)?(attn|attention|w_msa|self)\.(.*\.)?(logit_scale|cpb_mlp\..*|continuous_position_bias_mlp\..*)": (
        "a Swin V2, which is another network and not supported yet: only the first Swin Transformer is"
    ),
    r"(.*\.)?patch_embed\.proj\.kernel": (
        "a file of weights of mtlora_jax; expected its model folder, with a valid config.json"
    ),
}

DEFAULTS = Settings(
    image_size=448, drop_path_rate=0.2, scale=4.0, task_scale=4.0, dropout=0.05, freeze=(), merging_frozen=False
)


class Conversion(NamedTuple):
    architecture: dict[str, Any]
    arrays: dict[str, np.ndarray]  # every parameter and batch statistic of the architecture's model, float32
    report: list[str]  # lines to print
    format: str  # key of FORMATS


def convert(
    source: str | pathlib.Path,
    format: str = "auto",
    *,
    scale: float | None = None,
    image_size: int | None = None,
    window_size: int | None = None,
    tasks: Sequence[str] | None = None,
    ema: bool = False,
) -> Conversion:
    """Converts the checkpoint `source`.

    Args:
      source: a file of weights, an index of several, or a directory with one of these (`convert.checkpoint_reader`).
      format: key of `FORMATS`, or "auto" to recognise it by the names of the tensors.
      scale: of all low-rank branches. None takes it from the checkpoint's configuration, else 4.0.
      image_size: side of the images in pixels. None takes it from the checkpoint's configuration, else from config.json
        beside it, else from the attention masks, else 448.
      window_size: size to which position tables are resized; None keeps that of the checkpoint.
      tasks: the tasks of an MTLoRA checkpoint to keep, in this order; None keeps all.
      ema: take the EMA weights, averaged during training.

    Raises:
      UserError: for a file that cannot be read, an unknown format, tensors that are not exactly those of a model we can
        build, or values that are not finite floats.
    """
    checkpoint = checkpoint_reader.read(source, format, ema)
    path, state = checkpoint.path, checkpoint.state
    name, evidence = recognise(checkpoint, format)
    report = [f"format     {name} ({evidence})", *checkpoint.report]
    table = FORMATS[name].table(state)
    converted = apply(table, state, checkpoint.sources)
    arrays = converted.arrays
    if not arrays:
        raise UserError(f"{path}: holds no weights in the {name} format")
    if tasks is not None:
        arrays = keep_tasks(arrays, tasks)
    resized = ""
    if window_size is not None:
        arrays, number = resize_tables(arrays, window_size)
        resized = f"{number} position tables to window {window_size}"

    given = {"scale": scale, "task_scale": scale, "image_size": image_size}
    known = {
        "flag": {key: value for key, value in given.items() if value is not None},
        "checkpoint's configuration": mtlora.read_settings(checkpoint.config),
        "config.json": hub_config.read_settings(
            checkpoint.hub_config, {} if image_size is None else {"image_size": image_size}
        ),
        "attention masks": infer_image_size(state, arrays),
        "default": DEFAULTS._asdict(),
    }
    sources = {key: next(label for label, values in known.items() if key in values) for key in Settings._fields}
    architecture = infer_architecture(arrays, Settings(**{key: known[label][key] for key, label in sources.items()}))
    if tasks is not None:
        architecture["tasks"] = {task: architecture["tasks"][task] for task in tasks}
    try:
        model = build(architecture)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    parameters.assign(model, arrays, str(path))

    report += describe_architecture(architecture, sources)
    if window_size is None:
        report += hub_config.describe_differences(checkpoint.hub_config, architecture["backbone"])
    dropped = converted.dropped + count_other_parts(checkpoint, table)
    report += [f"dropped    {what} ({number} tensors)" for what, number in dropped.items()]
    report += [f"resized    {resized}"] if resized else []
    report += [f"tensors    {len(arrays)} with {sum(a.size for a in arrays.values()):,} values"]
    return Conversion(architecture, arrays, report, name)


def recognise(checkpoint: Checkpoint, format: str) -> tuple[str, str]:
    """Returns the format and the evidence for it. Raises UserError if there is none."""
    path, keys = checkpoint.path, checkpoint.state
    for key in keys:
        if what := first_match(UNSUPPORTED, key):
            raise UserError(f"{path}: is {what} ({key})")
    if format != "auto":
        if format not in FORMATS:
            raise UserError(f"--from={format} is not one of auto, {', '.join(FORMATS)}")
        return format, "given by --from"
    for name, module in FORMATS.items():
        if evidence := module.recognise(keys):
            return name, evidence
    for key, value in checkpoint.state.items():
        check_is_dense(value, checkpoint.sources[key])
    known, found = ", ".join(FORMATS), parameters.list_keys(list(keys))
    raise UserError(f"{path}: no Swin Transformer of a known format ({known}); its tensors are {found}")


def count_other_parts(checkpoint: Checkpoint, table: Table) -> Counter[str]:
    """Counts the tensors of each part other than the Swin, such as the decoder of a segmentation network."""
    return Counter(first_match(table.dropped, key) or key.partition(".")[0] for key in checkpoint.other_keys)


def keep_tasks(arrays: Mapping[str, np.ndarray], tasks: Sequence[str]) -> dict[str, np.ndarray]:
    """Drops the tensors of all other tasks. Raises UserError for unknown or repeated tasks."""
    present = list(dict.fromkeys(path.split(".")[1] for path in arrays if path.startswith("decoders.")))
    if not present:
        raise UserError(f"--tasks={','.join(tasks)}: the checkpoint has no tasks")
    unknown = [task for task in tasks if task not in present]
    if unknown or len(set(tasks)) != len(tasks) or not tasks:
        raise UserError(f"--tasks={','.join(tasks)}: expected some of {', '.join(present)}, each once")
    others = set(present) - set(tasks)
    return {path: a for path, a in arrays.items() if not (others & {*path.split(".")[1:2], path.rpartition(".")[2]})}


def infer_image_size(state: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Infers the image size from a saved attention mask (windows, N, N) of stage 0; empty without one."""
    mask = next((value for key, value in state.items() if key.endswith("layers.0.blocks.1.attn_mask")), None)
    patches = arrays.get("backbone.patch_embed.proj.kernel")
    if mask is None or patches is None or len(mask.shape) != 3:
        return {}
    return {"image_size": math.isqrt(mask.shape[0]) * math.isqrt(mask.shape[1]) * patches.shape[0]}


def describe_architecture(architecture: Mapping[str, Any], sources: Mapping[str, str]) -> list[str]:
    """Describes the architecture, and the origin of each setting that tensors do not determine."""
    backbone, decoder, method = (architecture[part] for part in ("backbone", "decoder", "method"))
    sizes = ", ".join(
        f"{key} {backbone[key]}" for key in ("embed_dim", "depths", "num_heads", "window_size", "patch_size")
    )
    rate = f"drop_path_rate {backbone['drop_path_rate']:g} ({sources['drop_path_rate']})"
    title = backbone_class(backbone).title(backbone)
    lines = [
        f"backbone   {title}: {sizes}, mlp_ratio {backbone['mlp_ratio']:g}, {rate}",
        f"image size {format_stages(architecture['image_size'])} ({sources['image_size']})",
    ]
    if decoder:
        tasks = ", ".join(f"{task} {outputs}" for task, outputs in architecture["tasks"].items())
        lines += [f"tasks      {tasks} outputs", f"decoder    {decoder['name']} on {decoder['channels']} channels"]
    if method["name"] == "mtlora":
        locations = ", ".join(method["locations"])
        lines += [
            f"low rank   {format_stages(method['rank'])} on {locations}; merging: {method['merging']}",
            f"task ranks {format_stages(method['task_rank'])}",
            f"scale      {format_stages(method['scale'])} ({sources['scale']}), "
            f"of tasks {format_stages(method['task_scale'])} ({sources['task_scale']})",
            f"dropout    {format_stages(method['dropout'])} ({sources['dropout']})",
        ]
    return lines


def format_stages(value: Any) -> str:
    """Formats one number if all stages share it, otherwise all of them; for tasks, with their names."""
    if isinstance(value, Mapping):
        return ", ".join(f"{task} {format_stages(stages)}" for task, stages in value.items())
    if not isinstance(value, Sequence):
        return f"{value:g}"
    return f"{value[0]:g}" if len(set(value)) == 1 else "/".join(f"{number:g}" for number in value)
