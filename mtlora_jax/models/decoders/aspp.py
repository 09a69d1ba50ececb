"""Atrous spatial pyramid pooling, the head of DeepLabV3 (Chen et al., 2017)."""

from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from mtlora_jax.models.layers import BatchNorm, Conv, Conv1x1, dropout, resize_bilinear
from mtlora_jax.schema import list_of, number, whole


def conv3x3(in_features: int, out_features: int, dilation: int) -> Conv:
    """A 3x3 convolution without bias that keeps the size."""
    return Conv(in_features, out_features, 3, dilation=dilation, padding=dilation, use_bias=False)


class ASPPHead(nnx.Module):
    """Five branches on the concatenated features (1x1, three dilations, global mean), fused, then one 3x3 layer.

    In training the pooled branch normalises B values per channel, so it needs a batch of at least two images.
    """

    smallest_batch: ClassVar = 2
    OPTIONS: ClassVar = {
        "channels": list_of(whole(1, 8192), 1, 8),
        "width": whole(1, 8192),
        "dilations": list_of(whole(1, 256), 1, 16),
        "dropout": number(0, 0.999),
    }

    def __init__(
        self,
        channels: Sequence[int],
        outputs: int,
        *,
        width: int = 256,
        dilations: Sequence[int] = (12, 24, 36),
        dropout: float = 0.5,
    ):
        total = sum(channels)
        branches = [conv3x3(total, width, dilation) for dilation in dilations]
        pointwise, pooled = (Conv1x1(total, width, use_bias=False) for _ in range(2))
        self.branches = nnx.List([pointwise, *branches, pooled])
        self.branch_norms = nnx.List([BatchNorm(width) for _ in self.branches])
        self.project = Conv1x1(len(self.branches) * width, width, use_bias=False)
        self.project_norm = BatchNorm(width)
        self.conv = conv3x3(width, width, 1)
        self.conv_norm = BatchNorm(width)
        self.classifier = Conv1x1(width, outputs)
        self.dropout = dropout

    def __call__(self, features: Sequence[jax.Array], train: bool, rngs: nnx.Rngs | None) -> jax.Array:
        """(B, H_i, W_i, C_i) -> (B, H_0, W_0, outputs)."""
        height, width = features[0].shape[1:3]
        x = jnp.concatenate([resize_bilinear(f, height, width) for f in features], -1)
        inputs = [x] * (len(self.branches) - 1) + [jnp.mean(x, (1, 2), keepdims=True)]
        views = [
            jax.nn.relu(norm(branch(view), train))
            for branch, norm, view in zip(self.branches, self.branch_norms, inputs, strict=True)
        ]
        views[-1] = jnp.broadcast_to(views[-1], views[0].shape)
        x = jax.nn.relu(self.project_norm(self.project(jnp.concatenate(views, -1)), train))
        x = dropout(x, self.dropout, rngs)
        return self.classifier(jax.nn.relu(self.conv_norm(self.conv(x), train)))

    def fold_batch_norm(self) -> None:
        """Fold every norm into the layer before it, in place."""
        norms = zip(self.branches, self.branch_norms, strict=True)
        self.branch_norms = nnx.List([norm.fold_into(branch) for branch, norm in norms])
        self.project_norm = self.project_norm.fold_into(self.project)
        self.conv_norm = self.conv_norm.fold_into(self.conv)
