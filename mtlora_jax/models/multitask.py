"""One encoder, one decoder per task, one forward pass for all."""

from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx

from mtlora_jax.models.decoders import Decoder, Features, Kernels
from mtlora_jax.models.functional import precise
from mtlora_jax.models.layers import resize_bilinear
from mtlora_jax.models.remat import in_parts, plain, rematerialised
from mtlora_jax.models.task_features import Streams


class MultiTaskModel(nnx.Module):
    """Backbone whose features every task's decoder reads, each from its own stream. The order of `decoders` is the task order.

    How it is executed, in which precision and with how much memory, is set by `mtlora_jax.model_factory.configure`.
    """

    def __init__(self, backbone: nnx.Module, decoders: Mapping[str, Decoder]):
        self.backbone: Any = backbone  # one of BACKBONES
        self.tasks = tuple(decoders)
        self.decoders = nnx.Dict(dict(decoders))
        self.compute = "float32"
        self.remat_decoders = False
        self.fused = True

    def __call__(self, images: jax.Array, train: bool = False, rngs: nnx.Rngs | None = None, parts: int = 1) -> dict[str, jax.Array]:
        """Logits of every task at the size of the images.

        Args:
          images: (B, H, W, 3) float32, normalised by the ImageNet mean and standard deviation.
          train: batch statistics in BatchNorm, and its running statistics move.
          rngs: stream "dropout" for dropout and stochastic depth; None switches both off.
          parts: the backbone takes the batch in so many parts, one after the other, and keeps only their features for the backward
            pass. The decoders, whose BatchNorm looks at all images, take the whole batch: the result is that of one part.

        Returns:
          {task: (B, H, W, C)} float32.
        """

        logits = self.on_features(images, train, rngs, parts)
        return {task: resize_bilinear(own, *images.shape[1:3]) for task, own in logits.items()}

    def on_features(self, images: jax.Array, train: bool = False, rngs: nnx.Rngs | None = None, parts: int = 1) -> dict[str, jax.Array]:
        """What `__call__` resizes: {task: (B, h, w, C)} float32 on the grid of the finest features."""

        def backbone(module: Any, images: jax.Array, rngs: nnx.Rngs | None) -> list[Streams]:
            return module(images, rngs, reduced=not self.fused)

        def decode(decoder: Decoder, inputs: tuple[Features, Kernels], rngs: nnx.Rngs | None) -> jax.Array:
            return precise(decoder(inputs[0], train, rngs, inputs[1]))

        inputs = images.astype(self.compute)
        features = backbone(self.backbone, inputs, rngs) if parts == 1 else in_parts(backbone, self.backbone, inputs, rngs, parts)
        # Reducing each task stream and projecting it to the decoder's channels is one product with the product of the two matrices.
        pending = [None if layer is None or not self.fused else layer.kernel[...] for layer in self.backbone.pending]
        run = rematerialised if self.remat_decoders else plain
        return {task: run(decode, self.decoders[task], ([f.task(t) for f in features], pending), rngs) for t, task in enumerate(self.tasks)}

    def fuse(self, fused: bool) -> None:
        """Sets, in place, whether products that follow each other are taken together wherever that is faster. See `configure`."""
        module: Any
        for _, module in nnx.iter_modules(self):
            if hasattr(module, "fused"):
                module.fused = fused

    def fold(self) -> None:
        """Changes the model, in place, into one that computes the same in evaluation with fewer operations; it cannot be trained further.

        Works on a declared model too, and then only changes what there is to declare. What folds into what: docs/merging.md.
        """
        before = self.backbone.fold()
        for decoder in self.decoders.values():
            decoder.fold(before)
