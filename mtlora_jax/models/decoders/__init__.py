"""Decoders: 1x1 projections of the four feature maps, a head per kind. All give logits on the finest feature grid."""

from collections.abc import Sequence

import jax
from flax import nnx

from mtlora_jax.models.decoders.aspp import ASPPHead
from mtlora_jax.models.decoders.hrnet import HRNetHead
from mtlora_jax.models.decoders.segformer import SegFormerHead
from mtlora_jax.models.layers import Conv1x1, Linear, folded

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

    def __call__(self, features: Sequence[jax.Array], train: bool = False, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Features (B, H_i, W_i, C_i) -> logits (B, H_0, W_0, outputs)."""
        return self.head([project(x) for project, x in zip(self.projections, features, strict=True)], train, rngs)

    def fold(self, before: Sequence[Linear | None]) -> None:
        """Merges what merges exactly, in place; each projection takes in the linear layer (without bias) given for its feature map."""
        for project, layer in zip(self.projections, before, strict=True):
            if layer is not None:
                project.kernel = folded(lambda w, first: first @ w, project.kernel, layer.kernel)
        self.head.fold()
