"""From checkpoints of other libraries to model folders; the command is `python -m mtlora_jax.convert`."""

import math
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mtlora_jax import parameters
from mtlora_jax.architecture import build
from mtlora_jax.convert import hf, mtlora, reading, swin, timm
from mtlora_jax.convert.geometry import Settings, architecture_of, resize_tables
from mtlora_jax.convert.table import apply
from mtlora_jax.errors import UserError
from mtlora_jax.models.backbones.swin import VARIANTS

FORMATS = {"swin": swin, "mtlora": mtlora, "timm": timm, "hf": hf}

DEFAULTS = Settings(image_size=448, drop_path_rate=0.2, scale=4.0, task_scale=4.0, dropout=0.05, freeze=(), merging_frozen=False)


class Conversion(NamedTuple):
    architecture: dict[str, Any]
    arrays: dict[str, np.ndarray]  # every parameter and batch statistic of the architecture's model, float32
    report: list[str]  # lines for people
    format: str  # key of FORMATS


def convert(
    source: str | pathlib.Path,
    format: str = "auto",
    *,
    scale: float | None = None,
    image_size: int | None = None,
    window_size: int | None = None,
    tasks: Sequence[str] | None = None,
) -> Conversion:
    """Converts the checkpoint `source`.

    Args:
      source: `.safetensors`, `.pth`, `.pt` or `.bin` file, or a directory with `model.safetensors` or `pytorch_model.bin`.
      format: key of `FORMATS`, or "auto" to tell it by the names of the tensors.
      scale: of all low-rank branches. None takes it from the checkpoint's configuration, else 4.0.
      image_size: side of the images in pixels. None takes it from the configuration, else from the attention masks, else 448.
      window_size: position tables are resized to it; None keeps that of the checkpoint.
      tasks: which tasks of an MTLoRA checkpoint to keep, in this order; None keeps all.

    Raises:
      UserError: the file cannot be read, is of no known format, or its tensors are not exactly those of a model we can build.
    """
    path, state, config = reading.read(source)
    name, evidence = recognise(path, state, format)
    report = [f"format     {name} ({evidence})"]
    converted = apply(FORMATS[name].table(state), state)
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
        "checkpoint's configuration": mtlora.settings(config),
        "attention masks": masked_image_size(state, arrays),
        "default": DEFAULTS._asdict(),
    }
    origin = {key: next(label for label, values in known.items() if key in values) for key in Settings._fields}
    architecture = architecture_of(arrays, Settings(**{key: known[label][key] for key, label in origin.items()}))
    if tasks is not None:
        architecture["tasks"] = {task: architecture["tasks"][task] for task in tasks}
    parameters.assign(build(architecture), arrays, str(path))

    report += described(architecture, origin)
    report += [f"dropped    {what} ({number} tensors)" for what, number in converted.dropped.items()]
    report += [f"resized    {resized}"] if resized else []
    report += [f"tensors    {len(arrays)} with {sum(a.size for a in arrays.values()):,} values"]
    return Conversion(architecture, arrays, report, name)


def recognise(path: pathlib.Path, keys: Collection[str], format: str) -> tuple[str, str]:
    """(format, how it is known)."""
    if format != "auto":
        if format not in FORMATS:
            raise UserError(f"--from={format} is not one of auto, {', '.join(FORMATS)}")
        return format, "as told"
    for name, module in FORMATS.items():
        if evidence := module.recognise(keys):
            return name, evidence
    raise UserError(f"{path}: no Swin Transformer of a known format ({', '.join(FORMATS)}); its tensors are {parameters.named(list(keys))}")


def keep_tasks(arrays: Mapping[str, np.ndarray], tasks: Sequence[str]) -> dict[str, np.ndarray]:
    """Leaves out the tensors of all other tasks. Raises UserError for tasks that are not there, or there twice."""
    present = list(dict.fromkeys(path.split(".")[1] for path in arrays if path.startswith("decoders.")))
    if not present:
        raise UserError(f"--tasks={','.join(tasks)}: the checkpoint has no tasks")
    unknown = [task for task in tasks if task not in present]
    if unknown or len(set(tasks)) != len(tasks) or not tasks:
        raise UserError(f"--tasks={','.join(tasks)}: expected some of {', '.join(present)}, each once")
    others = set(present) - set(tasks)
    return {path: a for path, a in arrays.items() if not (others & {*path.split(".")[1:2], path.rpartition(".")[2]})}


def masked_image_size(state: Mapping[str, np.ndarray], arrays: Mapping[str, np.ndarray]) -> dict[str, int]:
    """The image size a saved attention mask (windows, N, N) of stage 0 was made for."""
    mask = next((value for key, value in state.items() if key.endswith("layers.0.blocks.1.attn_mask")), None)
    patches = arrays.get("backbone.patch_embed.proj.kernel")
    if mask is None or patches is None:
        return {}
    return {"image_size": math.isqrt(mask.shape[0]) * math.isqrt(mask.shape[1]) * patches.shape[0]}


def described(architecture: Mapping[str, Any], origin: Mapping[str, str]) -> list[str]:
    """What was read off the tensors, and where the rest comes from."""
    backbone, decoder, method = (architecture[part] for part in ("backbone", "decoder", "method"))
    variants = (name for name, sizes in VARIANTS.items() if all(np.array_equal(backbone[key], size) for key, size in sizes.items()))
    lines = [
        f"backbone   Swin {next(variants, 'of its own size')}: embed_dim {backbone['embed_dim']}, depths {backbone['depths']}, "
        f"num_heads {backbone['num_heads']}, window_size {backbone['window_size']}, patch_size {backbone['patch_size']}, "
        f"mlp_ratio {backbone['mlp_ratio']:g}, drop_path_rate {backbone['drop_path_rate']:g} ({origin['drop_path_rate']})",
        f"image size {architecture['image_size'][0]} ({origin['image_size']})",
    ]
    if decoder:
        lines.append(f"tasks      {', '.join(f'{task} {outputs}' for task, outputs in architecture['tasks'].items())} outputs")
        lines.append(f"decoder    {decoder['name']} on {decoder['channels']} channels")
    if method["name"] == "mtlora":
        lines += [
            f"low rank   {brief(method['rank'])} on {', '.join(method['locations'])}; merging: {method['merging']}",
            f"task ranks {brief(method['task_rank'])}",
            f"scale      {brief(method['scale'])} ({origin['scale']}), of tasks {brief(method['task_scale'])} ({origin['task_scale']})",
            f"dropout    {brief(method['dropout'])} ({origin['dropout']})",
        ]
    return lines


def brief(value: Any) -> str:
    """One number where all stages have the same, otherwise all of them; for tasks, with their names."""
    if isinstance(value, Mapping):
        return ", ".join(f"{task} {brief(stages)}" for task, stages in value.items())
    if not isinstance(value, Sequence):
        return f"{value:g}"
    return f"{value[0]:g}" if len(set(value)) == 1 else "/".join(f"{number:g}" for number in value)
