"""Swin Transformer encoder (Liu et al., 2021), without classifier and final norm."""

import re
from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mtlora_jax.errors import UserError
from mtlora_jax.models.backbones.base import Backbone, Stage
from mtlora_jax.models.backbones.swin_windows import (
    attention_mask,
    effective_window,
    relative_position_index,
    window_partition,
    window_reverse,
)
from mtlora_jax.models.functional import to_float32
from mtlora_jax.models.layers import (
    MLP,
    SWIN_INIT,
    Conv,
    Layer,
    LayerNorm,
    Linear,
    abstract_param,
    drop_path,
    pad_to_multiple,
)
from mtlora_jax.models.task_features import TaskFeatures
from mtlora_jax.schema import list_of, number, whole

DEEPEST = 128  # blocks in all
# File names of the official checkpoints, which have other names on the Hub.
OFFICIAL = r"swin_(tiny|small|base|large)_patch4_window(7|12)_(224|384)(_22k)?\.\w+"


class PatchEmbed(nnx.Module):
    """Non-overlapping patches: a strided convolution, then LayerNorm."""

    def __init__(self, patch_size: int, embed_dim: int):
        self.proj = Conv(3, embed_dim, patch_size, stride=patch_size)
        self.norm = LayerNorm(embed_dim)
        self.patch_size = patch_size

    def __call__(self, images: jax.Array) -> TaskFeatures:
        """(B, H, W, 3) -> features of (B, ceil(H/P), ceil(W/P), C)."""
        padded = pad_to_multiple(images, self.patch_size, self.patch_size)
        return self.norm.forward(self.proj.forward(TaskFeatures(padded)))


class PatchMerging(nnx.Module):
    """Joins 2x2 neighbours, (0,0) (1,0) (0,1) (1,1) in (row, column), then norm and 4C -> 2C."""

    def __init__(self, dim: int):
        self.norm = LayerNorm(4 * dim)
        self.reduction = Linear(4 * dim, 2 * dim, use_bias=False)

    def __call__(self, x: TaskFeatures, rngs: nnx.Rngs | None = None) -> TaskFeatures:
        """Features of (..., H, W, C) -> features of (..., ceil(H/2), ceil(W/2), 2C)."""
        return self.reduction.forward(self.norm.forward(x.map(self.concat_neighbours)), rngs)

    @staticmethod
    def concat_neighbours(x: jax.Array) -> jax.Array:
        """(..., H, W, C) -> (..., ceil(H/2), ceil(W/2), 4C)."""
        x = pad_to_multiple(x, 2, 2)
        return jnp.concatenate([x[..., row::2, column::2, :] for column in (0, 1) for row in (0, 1)], -1)


class WindowAttention(Layer):
    """Multi-head attention inside (shifted) windows with a relative position bias."""

    def __init__(self, dim: int, num_heads: int, window_size: int, shifted: bool):
        self.qkv = Linear(dim, 3 * dim)
        self.proj = Linear(dim, dim)
        self.relative_position_bias_table = abstract_param(((2 * window_size - 1) ** 2, num_heads), SWIN_INIT)
        self.num_heads = num_heads
        self.window_size = window_size
        self.shifted = shifted

    def forward(self, x: TaskFeatures, rngs: nnx.Rngs | None = None) -> TaskFeatures:
        """Features of (B, H, W, C) -> features of (B, H, W, C)."""
        height, width = x.grid
        window, shift = effective_window((height, width), self.window_size, self.shifted)
        padded = (-(-height // window[0]) * window[0], -(-width // window[1]) * window[1])
        mask = attention_mask(padded, window, shift) if shift else None

        def split(y: jax.Array) -> jax.Array:
            y = pad_to_multiple(y, *window)
            if shift:
                y = jnp.roll(y, (-shift, -shift), (1, 2))
            return window_partition(y, window)

        def restore(y: jax.Array) -> jax.Array:
            y = window_reverse(y, padded, window)
            if shift:
                y = jnp.roll(y, (shift, shift), (1, 2))
            return y[:, :height, :width]

        def attend(qkv: jax.Array, table: jax.Array) -> jax.Array:
            return self.attend(qkv, table, window, mask)

        qkv = self.qkv.forward(x.map(split), rngs)
        # The projection may give every task an output of its own. Restored before it, what all share moves only once.
        return self.proj.forward(qkv.combine(attend, self.position_table()).map(restore), rngs)

    def position_table(self) -> TaskFeatures:
        """Return the relative position bias of each offset and head, ((2w - 1)^2, heads).

        A method may have one per task.
        """
        return TaskFeatures(self.relative_position_bias_table[...])

    def attend(
        self, qkv: jax.Array, table: jax.Array, window: tuple[int, int], mask: np.ndarray | jax.Array | None
    ) -> jax.Array:
        """Attend among the N tokens of each of M windows, (B, M, N, 3C) -> (B, M, N, C).

        `mask` (M, N, N) is added to the logits.
        """
        b, m, n, c = qkv.shape
        heads, dim = self.num_heads, c // 3 // self.num_heads
        # Each of q, k, v is (B, M, heads, N, D), so that both products are plain batched matrix products.
        q, k, v = jnp.moveaxis(qkv.reshape(b, m, n, 3, heads, dim), (3, 4), (0, 3))
        logits = to_float32((q * dim**-0.5) @ k.mT)
        index = relative_position_index(window, self.window_size)
        logits += jnp.moveaxis(table[index], -1, 0)
        if mask is not None:
            logits += mask[:, None]
        out = jax.nn.softmax(logits, -1).astype(v.dtype) @ v
        return jnp.moveaxis(out, 2, 3).reshape(b, m, n, heads * dim)


class SwinBlock(nnx.Module):
    """Window attention and MLP, each pre-normed with a residual and stochastic depth."""

    def __init__(
        self, dim: int, num_heads: int, window_size: int, shifted: bool, mlp_ratio: float, drop_path_rate: float
    ):
        self.norm1 = LayerNorm(dim)
        self.attn = WindowAttention(dim, num_heads, window_size, shifted)
        self.norm2 = LayerNorm(dim)
        self.mlp = MLP(dim, int(dim * mlp_ratio))
        self.drop_path_rate = drop_path_rate

    def __call__(self, x: TaskFeatures, rngs: nnx.Rngs | None = None) -> TaskFeatures:
        """Features of (B, H, W, C) -> features of (B, H, W, C)."""
        x += self.drop_path(self.attn.forward(self.norm1.forward(x), rngs), rngs)
        return x + self.drop_path(self.mlp(self.norm2.forward(x), rngs), rngs)

    def drop_path(self, x: TaskFeatures, rngs: nnx.Rngs | None) -> TaskFeatures:
        """Drop the branch of single images."""
        return x.map_random(lambda y, rngs: drop_path(y, self.drop_path_rate, rngs), rngs)


class SwinStage(Stage):
    """Blocks, alternately unshifted and shifted, then patch merging (not in the last stage)."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int,
        mlp_ratio: float,
        drop_path_rates: Sequence[float],
        downsample: bool,
    ):
        self.blocks = nnx.List(
            [
                SwinBlock(dim, num_heads, window_size, j % 2 == 1, mlp_ratio, rate)
                for j, rate in enumerate(drop_path_rates)
            ]
        )
        self.downsample = PatchMerging(dim) if downsample else None

    def __call__(self, x: TaskFeatures, rngs: nnx.Rngs | None = None) -> TaskFeatures:
        """Features of (B, H, W, C) -> features of (B, H/2, W/2, 2C), or of (B, H, W, C) in the last stage."""
        x = self.run_blocks(x, rngs)
        return x if self.downsample is None else self.downsample(x, rngs)


class Swin(Backbone):
    """Swin Transformer for images of any size, padded to whole patches and windows."""

    VARIANTS: ClassVar = {
        "micro": {"embed_dim": 32, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 4, 8)},  # of the demo; not in the paper
        "tiny": {"embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24)},
        "small": {"embed_dim": 96, "depths": (2, 2, 18, 2), "num_heads": (3, 6, 12, 24)},
        "base": {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32)},
        "large": {"embed_dim": 192, "depths": (2, 2, 18, 2), "num_heads": (6, 12, 24, 48)},
    }
    OPTIONS: ClassVar = {
        "embed_dim": whole(1, 4096),
        "depths": list_of(whole(1, DEEPEST), 1, 8),
        "num_heads": list_of(whole(1, 1024), 1, 8),
        "window_size": whole(1, 256),
        "patch_size": whole(1, 64),
        "mlp_ratio": number(0.01, 64),
        "drop_path_rate": number(),
    }

    LINEAR_LAYERS: ClassVar = {"qkv": ("attn.qkv",), "proj": ("attn.proj",), "fc1": ("mlp.fc1",), "fc2": ("mlp.fc2",)}
    PARAM_GROUPS: ClassVar = {
        "patch_embed": r"patch_embed\..*",
        "norms": r"(.*\.)?norm\d?\.(scale|bias)",
        "position_tables": r".*\.relative_position_bias_table",
        "merging": r".*\.downsample\.reduction\.kernel",
    }

    def __init__(
        self,
        *,
        embed_dim: int,
        depths: Sequence[int],
        num_heads: Sequence[int],
        window_size: int = 7,
        patch_size: int = 4,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.2,
    ):
        if len(depths) != len(num_heads) or any(embed_dim * 2**i % heads for i, heads in enumerate(num_heads)):
            raise UserError(
                f"backbone: num_heads {list(num_heads)} must have one entry for each of the depths {list(depths)} "
                f"and divide the widths {[embed_dim * 2**i for i in range(len(depths))]}"
            )
        if sum(depths) > DEEPEST:
            raise UserError(f"backbone.depths = {list(depths)} are {sum(depths)} blocks; expected at most {DEEPEST}")
        if not 0.0 <= drop_path_rate < 1.0:
            raise UserError(f"backbone.drop_path_rate = {drop_path_rate} must be at least 0 and below 1")
        self.patch_embed = PatchEmbed(patch_size, embed_dim)
        rates = np.split(np.linspace(0, drop_path_rate, sum(depths)), np.cumsum(depths)[:-1])
        last = len(depths) - 1
        self.layers = nnx.List(
            [
                SwinStage(
                    embed_dim * 2**i, num_heads[i], window_size, mlp_ratio, [float(r) for r in rates[i]], i < last
                )
                for i in range(len(depths))
            ]
        )
        self.out_channels = tuple(embed_dim * 2 ** min(i + 1, last) for i in range(len(depths)))
        self.strides = tuple(patch_size * 2 ** min(i + 1, last) for i in range(len(depths)))

    @property
    def smallest_open_side(self) -> int:
        """One pixel more than a window of the last stage covers: from there on every stage is cut into windows."""
        return self.strides[-1] * self.layers[0].blocks[0].attn.window_size + 1

    def __call__(self, images: jax.Array, rngs: nnx.Rngs | None = None) -> list[TaskFeatures]:
        """Normalised images (B, H, W, 3) -> features of each stage after its merging, at strides 8, 16, 32 and 32."""
        return self.run_stages(self.patch_embed(images), rngs)

    @classmethod
    def hub_name(cls, file: str, format: str) -> str:
        found = re.fullmatch(OFFICIAL, file)
        if found is None or format != "swin":
            return ""
        size, window, pixels, larger = found.groups()
        return f"microsoft/swin-{size}-patch4-window{window}-{pixels}{'-in22k' if larger else ''}"
