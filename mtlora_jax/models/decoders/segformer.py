"""The all-MLP head of SegFormer (Xie et al., 2021)."""

from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from mtlora_jax.models.layers import BatchNorm, Conv1x1, dropout2d, resize_bilinear
from mtlora_jax.schema import flag, list_of, number, whole


class SegFormerHead(nnx.Module):
    """One linear layer per scale to `width`, coarsest first in the concatenation, fused by a 1x1 convolution.

    `dead_classifier` keeps the 1x1 classifier that the reference inherits and never calls: it is in its checkpoints and
    in the paper's parameter count (Table 5).
    """

    OPTIONS: ClassVar = {
        "channels": list_of(whole(1, 8192), 1, 8),
        "width": whole(1, 8192),
        "dropout": number(0, 0.999),
        "dead_classifier": flag,
    }

    def __init__(
        self,
        channels: Sequence[int],
        outputs: int,
        *,
        width: int = 256,
        dropout: float = 0.1,
        dead_classifier: bool = True,
    ):
        self.linear = nnx.List([Conv1x1(channel, width) for channel in channels])
        self.fuse = Conv1x1(len(channels) * width, width, use_bias=False)
        self.norm = BatchNorm(width)
        self.classifier = Conv1x1(width, outputs)
        self.conv_seg = Conv1x1(width, outputs) if dead_classifier else None
        self.dropout = dropout

    def __call__(self, features: Sequence[jax.Array], train: bool, rngs: nnx.Rngs | None) -> jax.Array:
        """(B, H_i, W_i, C_i) -> (B, H_0, W_0, outputs)."""
        height, width = features[0].shape[1:3]
        scales = [resize_bilinear(linear(f), height, width) for linear, f in zip(self.linear, features, strict=True)]
        x = jax.nn.relu(self.norm(self.fuse(jnp.concatenate(scales[::-1], -1)), train))
        return self.classifier(dropout2d(x, self.dropout, rngs))

    def fold_batch_norm(self) -> None:
        """Fold the norm into the layer before it, in place, and drop the dead classifier."""
        self.norm = self.norm.fold_into(self.fuse)
        self.conv_seg = None
