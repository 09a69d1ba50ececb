"""What config.json of timm and of Hugging Face says of a model and its tensors do not."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mtlora_jax.convert.mtlora import entry
from mtlora_jax.errors import UserError

NAMES = {  # where each setting may stand; the first that is there counts
    "image_size": (
        "image_size",  # Hugging Face
        "backbone_config.image_size",  # its UPerNet, MaskFormer, Mask2Former
        "model_args.img_size",  # timm, where it differs from that of the pre-training
        "pretrained_cfg.input_size",
        "input_size",  # timm before 0.9
    ),
    "drop_path_rate": ("drop_path_rate", "backbone_config.drop_path_rate", "model_args.drop_path_rate"),
}
GEOMETRY = ("embed_dim", "depths", "num_heads", "window_size")  # what tensors tell too
ONLY = {"hidden_act": ("gelu",), "layer_norm_eps": (1e-5,)}  # what our Swin computes with, and no tensor tells
PARTS = ("", "backbone_config.")


def settings(config: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Image size and rate of stochastic depth, under our names.

    Args:
      config: config.json.
      given: what flags say, which is not looked for.

    Raises:
      UserError: for values that are none, and for another activation or norm than our Swin has.
    """
    for name, supported in ONLY.items():
        if (value := first(config, [part + name for part in PARTS])) not in (None, *supported):
            raise UserError(f"{name} = {value!r} in config.json is not supported, only {supported[0]!r}")
    found = {name: first(config, places) for name, places in NAMES.items() if name not in given}
    return {name: READ[name](value) for name, value in found.items() if value is not None}


def first(config: Mapping[str, Any], names: Any) -> Any:
    return next((value for name in names if (value := entry(config, name)) is not None), None)


def image_size(value: Any) -> list[int]:
    """[height, width] from a side, (height, width) or (channels, height, width)."""
    sides = [value, value] if isinstance(value, int) else list(value)[-2:] if isinstance(value, list) else []
    if len(sides) != 2 or not all(isinstance(side, int) and not isinstance(side, bool) and 0 < side < 2**16 for side in sides):
        raise UserError(f"the image size {value!r} in config.json is none; give it with --image_size")
    return sides


def rate(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise UserError(f"drop_path_rate = {value!r} in config.json is no number from 0 to 1")
    return float(value)


READ: Mapping[str, Callable[[Any], Any]] = {"image_size": image_size, "drop_path_rate": rate}


def differences(config: Mapping[str, Any], backbone: Mapping[str, Any]) -> Iterator[str]:
    """Lines for people where the tensors are of another geometry than config.json says; they are what counts."""
    for name in GEOMETRY:
        told = first(config, [part + name for part in PARTS])
        if told is not None and told != backbone[name]:
            yield f"note       config.json says {name} {told!r}, the tensors are of {backbone[name]!r}"
