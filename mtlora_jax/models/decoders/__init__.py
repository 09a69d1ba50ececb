"""Decoders: 1x1 projections of the four feature maps, then a head; logits are on the finest feature grid."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from mtlora_jax.models.decoders.aspp import ASPPHead
from mtlora_jax.models.decoders.hrnet import HRNetHead
from mtlora_jax.models.decoders.segformer import SegFormerHead
from mtlora_jax.models.layers import Conv1x1, map_weights, matmul

HEADS = {"hrnet": HRNetHead, "segformer": SegFormerHead, "aspp": ASPPHead}


class Decoder(nnx.Module):
    """Decoder of one task.

    Args:
      head: a key of `HEADS`; `options` are those of the head.
      in_channels: channels of the features that it reads, fine to coarse.
      channels: channels of each projected feature map, the input of the head.
      outputs: channels of the logits.
    """

    def __init__(self, head: str, in_channels: Sequence[int], channels: Sequence[int], outputs: int, **options):
        self.projections = nnx.List(
            [Conv1x1(before, own, use_bias=False) for before, own in zip(in_channels, channels, strict=True)]
        )
        self.head = HEADS[head](channels, outputs, **options)

    def __call__(
        self, features: Sequence[tuple[jax.Array, jax.Array | None]], train: bool = False, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        """Features (B, H_i, W_i, C_i) -> logits (B, H_0, W_0, outputs).

        Each map comes with the matrix (C_i, D_i) that still has to be applied to it (`TaskFeatures.projection`), or
        None. The projection, which then reads D_i channels, is multiplied by that matrix first: one product with pixels
        instead of two.
        """
        projected = []
        for project, (x, before) in zip(self.projections, features, strict=True):
            kernel = project.kernel[...]
            projected.append(matmul(x, kernel if before is None else jnp.matmul(before, kernel, precision="highest")))
        return self.head(projected, train, rngs)

    def absorb(self, level: int, kernel: nnx.Variable) -> None:
        """Have the projection of a feature map, in place, first apply a bias-free linear layer with this kernel."""
        project = self.projections[level]
        project.kernel = map_weights(lambda w, first: first @ w, project.kernel, kernel)
