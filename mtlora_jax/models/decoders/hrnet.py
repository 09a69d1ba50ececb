"""The head of HRNet (Wang et al., 2020), the default of MTLoRA."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from mtlora_jax.models.layers import BatchNorm, Conv1x1, resize_bilinear


class HRNetHead(nnx.Module):
    """Everything to the finest grid, concatenated, one hidden 1x1 layer four times as wide."""

    def __init__(self, channels: Sequence[int], outputs: int):
        total = sum(channels)
        self.fuse = Conv1x1(total, 4 * total)
        self.norm = BatchNorm(4 * total)
        self.classifier = Conv1x1(4 * total, outputs)

    def __call__(self, features: Sequence[jax.Array], train: bool, rngs: nnx.Rngs | None) -> jax.Array:
        """(B, H_i, W_i, C_i) -> (B, H_0, W_0, outputs)."""
        height, width = features[0].shape[1:3]
        x = jnp.concatenate([resize_bilinear(f, height, width) for f in features], -1)
        return self.classifier(jax.nn.relu(self.norm(self.fuse(x), train)))

    def fold(self) -> None:
        """Folds the norm into the layer before it, in place."""
        self.norm = self.norm.fold_into(self.fuse)
