"""Build a model from a plain dict, its architecture.

Configs make this dict, model folders store it, and converters infer it from tensors:

    {"backbone": {"name": "swin", "embed_dim": 96, ...},
     "tasks": {"semseg": 21, ...},  # outputs per task, in task order; {} for a bare backbone
     "decoder": {"name": "hrnet", "channels": [18, 36, 72, 144]},  # None for a bare backbone
     "method": {"name": "mtlora", "rank": 64, ...},  # merged: {"name": "merged", "of": {"name": "mtlora", ...}}
     "image_size": [448, 448]}
"""

import json
from collections.abc import Mapping
from typing import Any

from mtlora_jax.errors import UserError
from mtlora_jax.methods import METHODS, make_method
from mtlora_jax.methods.base import Method
from mtlora_jax.methods.param_groups import label_groups
from mtlora_jax.models.backbones import BACKBONES, Backbone
from mtlora_jax.models.decoders import HEADS, Decoder
from mtlora_jax.models.multitask import MultiTaskModel
from mtlora_jax.models.parameters import PRECISIONS
from mtlora_jax.registry import find, resolve
from mtlora_jax.schema import list_of, mapping, shown, text, whole

Architecture = Mapping[str, Any]
PARTS = ("backbone", "tasks", "decoder", "method", "image_size")
REMAT = ("none", "block", "stage")
MOST_TASKS = 64
MOST_OUTPUTS = 4096
SIDES = (32, 8192)  # pixels of an image: one pixel of the coarsest feature map, and more than fits into memory
TASK_NAME = text(64, "[A-Za-z][A-Za-z0-9_]*", "a name of letters, digits and underscores")


def method_of(architecture: Architecture) -> Method:
    """Build the method of a model. Raises UserError for unknown or wrong options."""
    return make_method(architecture["method"])


def backbone_class(options: Mapping[str, Any]) -> type[Backbone]:
    """Return the class that the options of a backbone name. Raises UserError for an unknown name."""
    return find(BACKBONES, "backbone", options)


def method_class(options: Mapping[str, Any]) -> type[Method]:
    """Return the class that the options of a method name. Raises UserError for an unknown name."""
    return find(METHODS, "method", options)


def build(architecture: Architecture) -> MultiTaskModel:
    """Build a model with declared, but not yet filled parameters (see `mtlora_jax.models.parameters`).

    Raises UserError for names and options that do not exist or do not fit, and for sizes that are out of bounds.
    """
    check_tasks(architecture["tasks"])
    kind, options = resolve(BACKBONES, "backbone", architecture["backbone"])
    check_image_size(architecture["image_size"])
    backbone = kind(**options)
    decoders = {}
    if architecture["tasks"]:
        _, options = resolve(HEADS, "decoder", architecture["decoder"], ("self", "outputs"))
        head, channels = architecture["decoder"]["name"], options.pop("channels")
        if len(channels) != len(backbone.out_channels):
            raise UserError(
                f"decoder.channels = {list(channels)} must have {len(backbone.out_channels)} entries, "
                "one per feature map"
            )
        for task, outputs in architecture["tasks"].items():
            decoders[task] = Decoder(head, backbone.out_channels, channels, outputs, **options)
    model = MultiTaskModel(backbone, decoders)
    method_of(architecture).adapt(model)
    label_groups(model)
    return model


def configure(model: MultiTaskModel, *, compute: str = "float32", remat: str = "none", fused: bool = True) -> None:
    """Set, in place, how a model is executed.

    It computes the same, so none of this is part of the architecture.

    Args:
      model: as `build` makes it.
      compute: dtype of matrix products, convolutions and activations, one of `PRECISIONS`. Parameters and their
        gradients, softmax, norms and logits are always float32.
      remat: what is kept for the backward pass: everything ("none"), or only the inputs of each block or stage of the
        backbone and of each decoder, which are then computed twice.
      fused: whether consecutive products are combined, and hidden maps of tasks never stored, wherever that is faster.
        Otherwise every layer is executed as the paper draws it, for checking. The results differ only by rounding.

    Raises:
      UserError: for another value of `compute` or `remat`.
    """
    for key, value, allowed in (("compute_dtype", compute, PRECISIONS), ("remat", remat, REMAT)):
        if value not in allowed:
            raise UserError(f"{key} = {value!r} is not one of {', '.join(allowed)}")
    model.set_fused(fused)
    model.compute = compute
    model.remat_decoders = remat != "none"
    model.backbone.remat_stages = remat == "stage"
    for stage in model.backbone.stages:
        stage.remat_blocks = remat == "block"


def from_config(config: Mapping[str, Any], tasks: Mapping[str, int]) -> dict[str, Any]:
    """Return the architecture that a config describes, JSON-able.

    Args:
      config: as `mtlora_jax.defaults.default` makes it; its backbone has a `variant`, or embed_dim, depths and
        num_heads.
      tasks: {task: outputs}.

    Raises:
      UserError: for an unknown variant.
    """
    backbone = dict(config["backbone"])
    if "variant" in backbone:
        variant, variants = backbone.pop("variant"), backbone_class(backbone).VARIANTS
        if variant not in variants:
            raise UserError(f"backbone.variant = {variant!r} is not one of {', '.join(variants)}")
        backbone |= variants[variant]
    architecture = {
        "backbone": backbone,
        "tasks": dict(tasks),
        "decoder": dict(config["decoder"]),
        "method": plain(config["method"]),
        "image_size": list(config["image_size"]),
    }
    return json.loads(json.dumps(architecture))


def plain(options: Any) -> Any:
    """Convert nested mappings to dicts."""
    return {key: plain(value) for key, value in options.items()} if hasattr(options, "items") else options


def check_image_size(size: Any) -> None:
    """Check that `size` is two integers within `SIDES`. Raises UserError otherwise."""
    if not list_of(whole(*SIDES), 2, 2).holds(size):
        raise UserError(
            f"image_size = {shown(size)} must be (height, width), integers from {SIDES[0]} to {SIDES[1]} pixels"
        )


def check_tasks(tasks: Any) -> None:
    """Check that `tasks` is {name: outputs} with names fit for parameter paths, and bounded.

    Raises UserError otherwise.
    """
    mapping(whole(1, MOST_OUTPUTS), TASK_NAME, MOST_TASKS)(tasks, "tasks")
    for name in tasks:
        if hasattr(dict, name):
            raise UserError(f"tasks: {name!r} cannot be the name of a task; choose another word")
