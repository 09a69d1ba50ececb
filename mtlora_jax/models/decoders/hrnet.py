"""The head of HRNet (Wang et al., 2020), the default of MTLoRA."""

from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from mtlora_jax.models.functional import to_float32
from mtlora_jax.models.layers import BatchNorm, Conv1x1, add_bias, matmul, resize_bilinear
from mtlora_jax.schema import list_of, whole


def cheaper_on_coarse_grid(grid: Sequence[int], coarse: Sequence[int]) -> bool:
    """Return whether multiplying a map is cheaper on the `coarse` grid; False if `jax.export` leaves sides open."""
    known = all(isinstance(side, int) for side in (*grid, *coarse))
    return known and 16 * coarse[0] * coarse[1] <= grid[0] * grid[1]


class HRNetHead(nnx.Module):
    """All maps resized to the finest grid and concatenated, then one hidden 1x1 layer four times as wide."""

    OPTIONS: ClassVar = {"channels": list_of(whole(1, 8192), 1, 8)}

    def __init__(self, channels: Sequence[int], outputs: int):
        total = sum(channels)
        self.fuse = Conv1x1(total, 4 * total)
        self.norm = BatchNorm(4 * total)
        self.classifier = Conv1x1(4 * total, outputs)
        self.fused = True

    def __call__(self, features: Sequence[jax.Array], train: bool, rngs: nnx.Rngs | None) -> jax.Array:
        """(B, H_i, W_i, C_i) -> (B, H_0, W_0, outputs)."""
        return self.classifier(jax.nn.relu(self.norm(self.fuse_all(features), train)))

    def fuse_all(self, features: Sequence[jax.Array]) -> jax.Array:
        """Apply `fuse` to all maps, resized to the finest grid and concatenated.

        Resizing commutes with a 1x1 layer. Maps on the coarsest grid are multiplied there, and the result resized, if
        that saves more than resizing the wider map costs. In measurements this was faster at a sixteenth of the pixels,
        but not at a quarter.
        """
        grid, coarsest = features[0].shape[1:3], features[-1].shape[1:3]
        fine = [f for f in features if f.shape[1:3] != coarsest]
        if not self.fused or not cheaper_on_coarse_grid(grid, coarsest):
            return self.fuse(self.concat_resized(features, grid))
        kernel, bias = self.fuse.kernel[...], self.fuse.bias
        assert bias is not None
        rest = sum(f.shape[-1] for f in fine)
        wide = matmul(self.concat_resized(features[len(fine) :], coarsest), kernel[rest:])
        narrow = matmul(self.concat_resized(fine, grid), kernel[:rest])
        return add_bias(to_float32(narrow) + resize_bilinear(wide, *grid), bias[...]).astype(wide.dtype)

    def concat_resized(self, features: Sequence[jax.Array], grid: Sequence[int]) -> jax.Array:
        """Resize all maps to one grid and concatenate them."""
        return jnp.concatenate([resize_bilinear(f, *grid) for f in features], -1)

    def fold_batch_norm(self) -> None:
        """Fold the norm into the layer before it, in place."""
        self.norm = self.norm.fold_into(self.fuse)
