"""Exports a model as StableHLO by `jax.export`, with its weights beside it, to run without this package."""

import importlib.metadata
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import export as jax_export

from mtlora_jax.errors import UserError
from mtlora_jax.model_io.model_folder import Model
from mtlora_jax.models import parameters
from mtlora_jax.models.inputs import MEAN, STD, normalise

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
INPUTS = {"uint8": jnp.uint8, "float32": jnp.float32}
PROGRAM, WEIGHTS, METADATA, LOADER = "model.jax_export", "weights.safetensors", "metadata.json", "load.py"
COMPATIBILITY = "runs with a jaxlib from three weeks older to six months newer than the one it was exported with"

Forward = Callable[[parameters.Flat, jax.Array], dict[str, jax.Array]]
Size = tuple[int, int]


def make_forward(model: Model) -> Forward:
    """Makes the forward pass a pure function of {path: weight} and images (B, H, W, 3).

    Images are uint8 RGB or normalised floats. Raises UserError for a bare backbone.
    """
    if not model.tasks:
        what = "the model folder holds a bare backbone without tasks"
        raise UserError(f"{what}: there are no logits to export; fine-tune it first")
    graph = nnx.graphdef(model.module)

    def run(weights: parameters.Flat, images: jax.Array) -> dict[str, jax.Array]:
        inputs = normalise(images) if images.dtype == jnp.uint8 else images
        return parameters.bind(graph, weights)(inputs)

    return run


def make_images_spec(model: Model, size: Size | None, inputs: str) -> jax.ShapeDtypeStruct:
    """Returns the shape and dtype of the input: (B, H, W, 3) with unknown B, and unknown H and W if `size` is None."""
    least = model.module.backbone.smallest_open_side
    sides = ("H", "W") if size is None else size
    constraints = () if size else (f"H >= {least}", f"W >= {least}")
    shape = jax_export.symbolic_shape(", ".join(map(str, ("B", *sides, 3))), constraints=constraints)
    return jax.ShapeDtypeStruct(shape, INPUTS[inputs])


def export_stablehlo(
    model: Model, platforms: Sequence[str], size: Size | None = None, inputs: str = "uint8"
) -> jax_export.Exported:
    """Lowers a model for several platforms, none of which has to be present.

    Args:
      model: with tasks.
      platforms: of `PLATFORMS`.
      size: (height, width) of the images; None for any that is at least `Backbone.smallest_open_side`.
      inputs: "uint8" for RGB images, "float32" for images normalised by the ImageNet mean and standard deviation.

    Returns:
      A function of ({path: weight}, images) that returns {task: logits (B, H, W, C) float32}.

    Raises:
      UserError: for a bare backbone.
      jax.errors.InconclusiveDimensionOperation: if the model needs to know the size of its images.
    """
    run = make_forward(model)  # first, since it checks the model
    weights = {
        path: jax.ShapeDtypeStruct(v.shape, v.dtype) for path, v in parameters.flat_variables(model.module).items()
    }
    return jax_export.export(jax.jit(run), platforms=platforms)(weights, make_images_spec(model, size, inputs))


def make_metadata(model: Model, size: Size | None, inputs: str) -> dict[str, Any]:
    """Returns what a program that uses the artifact needs to know, for any format; can be written as JSON."""
    least = model.module.backbone.smallest_open_side
    classes = model.config.get("classes") or {}
    return {
        "format": 1,
        "tasks": {name: _task(outputs, classes.get(name)) for name, outputs in model.architecture["tasks"].items()},
        "input": {
            "dtype": inputs,
            "shape": ["B", *(size or ("H", "W")), 3],
            **({} if size else {"smallest": [least, least]}),
            "content": "RGB" if inputs == "uint8" else "RGB / 255, minus mean, divided by std",
            "normalisation": {
                "mean": np.round(MEAN.astype(float), 3).tolist(),
                "std": np.round(STD.astype(float), 3).tolist(),
            },
        },
        "output": {
            "dtype": "float32",
            "shape": ["B", *(size or ("H", "W")), "outputs of the task"],
            "content": "logits",
        },
        "image_size": list(model.architecture["image_size"]),
        "method": model.architecture["method"],
        "backbone": model.architecture["backbone"],
        "versions": {name: importlib.metadata.version(name) for name in ("mtlora_jax", "jax", "jaxlib")},
    }


def _task(outputs: int, classes: Sequence[str] | None) -> dict[str, Any]:
    return {"outputs": outputs} | ({"classes": list(classes)} if classes else {})


def describe_program(exported: jax_export.Exported) -> dict[str, Any]:
    """Returns the part of the metadata about the StableHLO program."""
    (weights, _), _ = jax.tree.unflatten(exported.in_tree, exported.in_avals)
    names = [*sorted(weights), "images"]  # in the order in which JAX flattens them
    return {
        "file": PROGRAM,
        "weights": WEIGHTS,
        "platforms": list(exported.platforms),
        "calling_convention_version": exported.calling_convention_version,
        "compatibility": COMPATIBILITY,
        "arguments": [names[index] for index in exported.module_kept_var_idx],
    }


def format_json(entries: Mapping[str, Any]) -> str:
    """Formats JSON for files."""
    return json.dumps(entries, indent=2) + "\n"
