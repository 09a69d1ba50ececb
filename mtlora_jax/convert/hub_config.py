"""Reads the settings in config.json of timm and Hugging Face that tensors do not determine."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mtlora_jax.convert.mtlora import SIDE, get_entry
from mtlora_jax.errors import UserError
from mtlora_jax.schema import either, list_of, number, shown

NAMES = {  # possible names of each setting; the first one present counts
    "image_size": (
        "image_size",  # Hugging Face
        "backbone_config.image_size",  # its UPerNet, MaskFormer, Mask2Former
        "model_args.img_size",  # timm, where it differs from that of the pre-training
        "pretrained_cfg.input_size",
        "input_size",  # timm before 0.9
    ),
    "drop_path_rate": ("drop_path_rate", "backbone_config.drop_path_rate", "model_args.drop_path_rate"),
}
GEOMETRY = ("embed_dim", "depths", "num_heads", "window_size")  # also known from tensors
SUPPORTED = {"hidden_act": ("gelu",), "layer_norm_eps": (1e-5,)}  # what our Swin uses, not known from tensors
PARTS = ("", "backbone_config.")


def read_settings(config: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Reads image size and stochastic depth rate, under our names.

    Args:
      config: the contents of config.json.
      given: settings from flags, which are not read.

    Raises:
      UserError: for invalid values, and for an activation or norm that our Swin does not have.
    """
    for name, supported in SUPPORTED.items():
        if (value := first(config, [part + name for part in PARTS])) not in (None, *supported):
            raise UserError(f"{name} = {shown(value)} in config.json is not supported, only {shown(supported[0])}")
    found = {name: first(config, places) for name, places in NAMES.items() if name not in given}
    return {name: READ[name](value) for name, value in found.items() if value is not None}


def first(config: Mapping[str, Any], names: Any) -> Any:
    return next((value for name in names if (value := get_entry(config, name)) is not None), None)


def image_size(value: Any) -> list[int]:
    """[height, width] from a side, (height, width) or (channels, height, width)."""
    if not either(SIDE, list_of(SIDE, 2, 3)).holds(value):
        raise UserError(f"the image size {shown(value)} in config.json is not valid; give it with --image_size")
    return [value, value] if isinstance(value, int) else value[-2:]


def rate(value: Any) -> float:
    number(0, 1)(value, "config.json: drop_path_rate")
    return float(value)


READ: Mapping[str, Callable[[Any], Any]] = {"image_size": image_size, "drop_path_rate": rate}


def describe_differences(config: Mapping[str, Any], backbone: Mapping[str, Any]) -> Iterator[str]:
    """Yields a line for each value of config.json that differs from the geometry of the tensors, which counts."""
    for name in GEOMETRY:
        value = first(config, [part + name for part in PARTS])
        if value is not None and value != backbone[name]:
            yield f"note       config.json says {name} {shown(value)}, the tensors are of {shown(backbone[name])}"
