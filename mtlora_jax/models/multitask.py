"""One encoder, one decoder per task, one forward pass for all."""

from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx

from mtlora_jax.models.decoders import Decoder
from mtlora_jax.models.layers import resize_bilinear


class MultiTaskModel(nnx.Module):
    """Backbone whose features every task's decoder reads, each from its own stream. The order of `decoders` is the task order."""

    def __init__(self, backbone: nnx.Module, decoders: Mapping[str, Decoder]):
        self.backbone: Any = backbone  # one of BACKBONES
        self.tasks = tuple(decoders)
        self.decoders = nnx.Dict(dict(decoders))

    def __call__(self, images: jax.Array, train: bool = False, rngs: nnx.Rngs | None = None) -> dict[str, jax.Array]:
        """Logits of every task at the size of the images.

        Args:
          images: (B, H, W, 3) float32, normalised by the ImageNet mean and standard deviation.
          train: batch statistics in BatchNorm, and its running statistics move.
          rngs: stream "dropout" for dropout and stochastic depth; None switches both off.

        Returns:
          {task: (B, H, W, C)}.
        """
        height, width = images.shape[1:3]
        features = self.backbone(images, rngs)
        logits = {}
        for t, task in enumerate(self.tasks):
            coarse = self.decoders[task]([f.task(t) for f in features], train, rngs)
            logits[task] = resize_bilinear(coarse, height, width)
        return logits
