"""MTLoRA in JAX: low-rank adaptation of one frozen Swin Transformer to several dense tasks at once."""

from typing import Any

__version__ = "0.1.0"


def load(folder: Any) -> Any:
    """Opens a model folder; see `mtlora_jax.folder.Model` for what it gives.

    >>> model = mtlora_jax.load("weights/mtlora_tiny")
    >>> logits = model(images)["semseg"]     # images (B, H, W, 3) float32, normalised -> (B, H, W, 21)
    """
    from mtlora_jax import folder as folders  # here, so that data workers need not import the models

    return folders.load(folder)
