"""A model of one encoder and one decoder per task, with one forward pass for all."""

from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx

from mtlora_jax.models.backbones import Backbone
from mtlora_jax.models.decoders import Decoder
from mtlora_jax.models.functional import to_float32
from mtlora_jax.models.layers import resize_bilinear
from mtlora_jax.models.remat import in_microbatches, no_remat, remat
from mtlora_jax.models.task_features import TaskFeatures


class MultiTaskModel(nnx.Module):
    """A backbone, and a decoder per task that reads its features. The order of `decoders` is the task order.

    `mtlora_jax.model_factory.configure` sets how it is executed: precision, memory, fast forms.
    """

    def __init__(self, backbone: Backbone, decoders: Mapping[str, Decoder]):
        self.backbone = backbone
        self.tasks = tuple(decoders)
        self.decoders = nnx.Dict(dict(decoders))
        self.compute = "float32"
        self.remat_decoders = False
        self.fused = True

    def __call__(
        self, images: jax.Array, train: bool = False, rngs: nnx.Rngs | None = None, parts: int = 1
    ) -> dict[str, jax.Array]:
        """Compute the logits of every task at the size of the images.

        Args:
          images: (B, H, W, 3) float32, normalised by the ImageNet mean and standard deviation.
          train: whether BatchNorm uses batch statistics and updates its running statistics.
          rngs: stream "dropout" for dropout and stochastic depth; None switches both off.
          parts: number of micro-batches that the backbone processes one after the other, keeping only their features
            for the backward pass. Decoders take the whole batch, since BatchNorm depends on all images; so the result
            stays the same.

        Returns:
          {task: (B, H, W, C)} float32.
        """
        logits = self.coarse_logits(images, train, rngs, parts)
        return {task: resize_bilinear(own, *images.shape[1:3]) for task, own in logits.items()}

    def coarse_logits(
        self, images: jax.Array, train: bool = False, rngs: nnx.Rngs | None = None, parts: int = 1
    ) -> dict[str, jax.Array]:
        """Compute the logits before resizing, {task: (B, h, w, C)} float32 on the grid of the finest features."""

        def encode(backbone: Any, images: jax.Array, rngs: nnx.Rngs | None) -> list[TaskFeatures]:
            return backbone(images, rngs)

        def decode(
            decoder: Decoder, features: list[tuple[jax.Array, jax.Array | None]], rngs: nnx.Rngs | None
        ) -> jax.Array:
            return to_float32(decoder(features, train, rngs))

        inputs = images.astype(self.compute)
        features = (
            encode(self.backbone, inputs, rngs)
            if parts == 1
            else in_microbatches(encode, self.backbone, inputs, rngs, parts)
        )
        run = remat if self.remat_decoders else no_remat
        return {
            task: run(decode, self.decoders[task], [(level.task(t), level.projection) for level in features], rngs)
            for t, task in enumerate(self.tasks)
        }

    def set_fused(self, fused: bool) -> None:
        """Set, in place, whether modules run in their fast form, if they have one. See `model_factory.configure`."""
        module: Any
        for _, module in nnx.iter_modules(self):
            if hasattr(module, "fused"):
                module.fused = fused

    def fold_batch_norm(self) -> None:
        """Fold every BatchNorm into the preceding layer, in place; the model can then only be evaluated."""
        for decoder in self.decoders.values():
            decoder.head.fold_batch_norm()
