"""Decoders: 1x1 projections of the four feature maps, a head per kind. All give logits on the finest feature grid."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from mtlora_jax.models.decoders.aspp import ASPPHead
from mtlora_jax.models.decoders.hrnet import HRNetHead
from mtlora_jax.models.decoders.segformer import SegFormerHead
from mtlora_jax.models.layers import Conv1x1, Linear, folded, product

Features = Sequence[jax.Array]
Kernels = Sequence[jax.Array | None]
HEADS = {"hrnet": HRNetHead, "segformer": SegFormerHead, "aspp": ASPPHead}


class Decoder(nnx.Module):
    """Decoder of one task.

    Args:
      head: a key of `HEADS`; `options` are that head's own.
      widths: channels of the features it reads, fine to coarse.
      channels: what each feature map is projected to before the head.
      outputs: channels of the logits.
    """

    def __init__(self, head: str, widths: Sequence[int], channels: Sequence[int], outputs: int, **options):
        self.projections = nnx.List([Conv1x1(width, channel, use_bias=False) for width, channel in zip(widths, channels, strict=True)])
        self.head = HEADS[head](channels, outputs, **options)

    def __call__(self, features: Features, train: bool = False, rngs: nnx.Rngs | None = None, before: Kernels = ()) -> jax.Array:
        """Features (B, H_i, W_i, C_i) -> logits (B, H_0, W_0, outputs).

        `before` are kernels (C_i, D_i), or None, that act on the features before the projections, which take D_i channels then.
        """
        kernels = [project.kernel[...] for project in self.projections]
        for i, first in enumerate(before):
            if first is not None:
                kernels[i] = jnp.matmul(first, kernels[i], precision="highest")
        return self.head([product(x, kernel) for x, kernel in zip(features, kernels, strict=True)], train, rngs)

    def fold(self, before: Sequence[Linear | None]) -> None:
        """Merges what merges exactly, in place; each projection takes in the linear layer (without bias) given for its feature map."""
        for project, layer in zip(self.projections, before, strict=True):
            if layer is not None:
                project.kernel = folded(lambda w, first: first @ w, project.kernel, layer.kernel)
        self.head.fold()
