"""Swin Transformer encoder (Liu et al., 2021) whose last block of each stage may carry task streams (MTLoRA section 3.2)."""

import functools
from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mtlora_jax.errors import UserError
from mtlora_jax.methods.mtlora.layers import SharedBase, through_hidden
from mtlora_jax.models.backbones.swin_windows import attention_mask, partition, relative_position_index, unpartition, window_of
from mtlora_jax.models.functional import gelu, precise
from mtlora_jax.models.layers import SWIN_INIT, Conv, LayerNorm, Linear, declare, drop_path, pad_to_multiple
from mtlora_jax.models.remat import plain, rematerialised
from mtlora_jax.models.task_features import Streams
from mtlora_jax.schema import list_of, number, whole

VARIANTS = {
    "micro": {"embed_dim": 32, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 4, 8)},  # of the demo; not in the paper
    "tiny": {"embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24)},
    "small": {"embed_dim": 96, "depths": (2, 2, 18, 2), "num_heads": (3, 6, 12, 24)},
    "base": {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32)},
    "large": {"embed_dim": 192, "depths": (2, 2, 18, 2), "num_heads": (6, 12, 24, 48)},
}


DEEPEST = 128  # blocks in all


class PatchEmbed(nnx.Module):
    """Non-overlapping patches: a strided convolution, then LayerNorm."""

    def __init__(self, patch_size: int, embed_dim: int):
        self.proj = Conv(3, embed_dim, patch_size, stride=patch_size)
        self.norm = LayerNorm(embed_dim)
        self.patch_size = patch_size

    def __call__(self, images: jax.Array) -> jax.Array:
        """(B, H, W, 3) -> (B, ceil(H/P), ceil(W/P), C)."""
        return self.norm(self.proj(pad_to_multiple(images, self.patch_size, self.patch_size)))


class PatchMerging(nnx.Module):
    """Joins 2x2 neighbours, (0,0) (1,0) (0,1) (1,1) in (row, column), then norm and 4C -> 2C."""

    def __init__(self, dim: int):
        self.norm = LayerNorm(4 * dim)
        self.reduction = Linear(4 * dim, 2 * dim, use_bias=False)

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        """(..., H, W, C) -> (..., ceil(H/2), ceil(W/2), 2C)."""
        return self.reduction(self.joined(x), rngs)

    def joined(self, x: jax.Array) -> jax.Array:
        """Neighbours side by side, normed: (..., H, W, C) -> (..., ceil(H/2), ceil(W/2), 4C)."""
        x = pad_to_multiple(x, 2, 2)
        quads = [x[..., row::2, column::2, :] for column in (0, 1) for row in (0, 1)]
        return self.norm(jnp.concatenate(quads, -1))

    def streams(self, x: Streams, rngs: nnx.Rngs | None = None, reduced: bool = True) -> Streams:
        """Every stream on its own; without `reduced`, task streams for whose reduction there is `pending` come out as they go into it."""
        if reduced or self.pending is None:
            return x.map(lambda y: self(y, rngs))
        joined = x.map(self.joined)
        return Streams(self.reduction(joined.shared, rngs), joined.tasks)

    @property
    def pending(self) -> Linear | None:
        """The linear layer without bias that readers of the unreduced task streams put before their own."""
        return self.reduction if type(self.reduction) is Linear else None


class MergedPatchMerging(PatchMerging):
    """Patch merging that reduces the shared stream alone.

    Task streams feed nothing but the decoders, whose projections have taken the reduction in: to them go the normed neighbours (4C).
    """

    def __init__(self, layer: PatchMerging):
        self.norm, self.reduction = layer.norm, layer.reduction

    def streams(self, x: Streams, rngs: nnx.Rngs | None = None, reduced: bool = True) -> Streams:
        """(..., H, W, C) -> (..., H/2, W/2, 2C) of the shared stream, (..., H/2, W/2, 4C) of the tasks."""
        joined = x.map(self.joined)
        return Streams(self.reduction(joined.shared), joined.tasks)

    @property
    def pending(self) -> None:
        """Nothing is left to be put before."""
        return None


class WindowAttention(nnx.Module):
    """Multi-head attention inside (shifted) windows with a relative position bias."""

    def __init__(self, dim: int, num_heads: int, window_size: int, shifted: bool):
        self.qkv = Linear(dim, 3 * dim)
        self.proj = Linear(dim, dim)
        self.relative_position_bias_table = declare(((2 * window_size - 1) ** 2, num_heads), SWIN_INIT)
        self.num_heads = num_heads
        self.window_size = window_size
        self.shifted = shifted

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> Streams:
        """(B, H, W, C) -> Streams of (..., B, H, W, C); task streams start at `proj` where it has TS branches."""
        height, width = x.shape[1:3]
        window, shift = window_of((height, width), self.window_size, self.shifted)
        x = pad_to_multiple(x, *window)
        padded = (x.shape[1], x.shape[2])
        if shift:
            x = jnp.roll(x, (-shift, -shift), (1, 2))
        attended = self.attend(partition(x, window), window, attention_mask(padded, window, shift) if shift else None, rngs)

        def restore(y: jax.Array) -> jax.Array:
            y = unpartition(y, padded, window)
            if shift:
                y = jnp.roll(y, (shift, shift), (-3, -2))
            return y[..., :height, :width, :]

        return self.proj.streams(Streams(attended), rngs).map(restore)

    def attend(self, x: jax.Array, window: tuple[int, int], mask: np.ndarray | jax.Array | None, rngs: nnx.Rngs | None) -> jax.Array:
        """Attention among the N tokens of each of M windows, (B, M, N, C) -> (B, M, N, C); mask (M, N, N) is added to the logits."""
        b, m, n, c = x.shape
        heads = self.num_heads
        qkv = self.qkv(x, rngs).reshape(b, m, n, 3, heads, c // heads)
        q, k, v = jnp.moveaxis(qkv, (3, 4), (0, 3))  # each (B, M, heads, N, D), so both products are plain batched matmuls
        logits = precise((q * (c // heads) ** -0.5) @ k.mT)
        index = relative_position_index(window, self.window_size)
        logits += jnp.moveaxis(self.relative_position_bias_table[...][index], -1, 0)
        if mask is not None:
            logits += mask[:, None]
        out = jax.nn.softmax(logits, -1).astype(v.dtype) @ v
        return jnp.moveaxis(out, 2, 3).reshape(b, m, n, c)


class MLP(nnx.Module):
    """Linear, GELU (exact), linear."""

    def __init__(self, dim: int, hidden: int):
        self.fc1 = Linear(dim, hidden)
        self.fc2 = Linear(hidden, dim)
        self.fused = True

    def __call__(self, x: Streams, rngs: nnx.Rngs | None = None) -> Streams:
        """Streams of (..., C) -> Streams of (..., C)."""
        fc1, fc2 = self.fc1, self.fc2
        if self.fused and isinstance(fc1, SharedBase) and isinstance(fc2, SharedBase) and fc1.shares_base and fc2.shares_base:
            return through_hidden(fc1, fc2, x, rngs)
        return fc2.streams(fc1.streams(x, rngs).map(gelu), rngs)


class SwinBlock(nnx.Module):
    """Window attention and MLP, each pre-normed with a residual; every stream draws its own stochastic depth."""

    def __init__(self, dim: int, num_heads: int, window_size: int, shifted: bool, mlp_ratio: float, drop_path_rate: float):
        self.norm1 = LayerNorm(dim)
        self.attn = WindowAttention(dim, num_heads, window_size, shifted)
        self.norm2 = LayerNorm(dim)
        self.mlp = MLP(dim, int(dim * mlp_ratio))
        self.drop_path_rate = drop_path_rate

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> Streams:
        """(B, H, W, C) -> Streams of (..., B, H, W, C)."""
        h = Streams(x) + self.attn(self.norm1(x), rngs).map(lambda a: drop_path(a, self.drop_path_rate, rngs))
        return h + self.mlp(h.map(self.norm2), rngs).map(lambda m: drop_path(m, self.drop_path_rate, rngs))

    @property
    def specific(self) -> bool:
        """Whether task streams come out."""
        return self.attn.proj.specific or self.mlp.fc2.specific

    def fold(self, feeds_next: bool) -> None:
        """Puts merged layers in the place of the linear ones.

        The last layer comes first, for what a layer may leave out hangs on what those after it read.

        Args:
          feeds_next: whether another block reads the shared stream.
        """
        attn, mlp = self.attn, self.mlp
        proj, fc1, fc2 = (layer.specific for layer in (attn.proj, mlp.fc1, mlp.fc2))
        shared = feeds_next or not (proj or fc2)
        mlp.fc2 = mlp.fc2.merged(shared=shared, streams=fc1)
        mlp.fc1 = mlp.fc1.merged(shared=mlp.fc2.reads_shared, tasks=fc2, streams=proj)
        attn.proj = attn.proj.merged(shared=shared or mlp.fc1.reads_shared)
        attn.qkv = attn.qkv.merged()


class Stage(nnx.Module):
    """Blocks, alternately unshifted and shifted, then patch merging of every stream (not in the last stage)."""

    def __init__(self, dim: int, num_heads: int, window_size: int, mlp_ratio: float, drop_path_rates: Sequence[float], merge: bool):
        self.blocks = nnx.List(
            [SwinBlock(dim, num_heads, window_size, j % 2 == 1, mlp_ratio, rate) for j, rate in enumerate(drop_path_rates)]
        )
        self.downsample = PatchMerging(dim) if merge else None
        self.remat_blocks = False

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None, reduced: bool = True) -> Streams:
        """(B, H, W, C) -> Streams of (..., B, H/2, W/2, 2C), or of (..., B, H, W, C) in the last stage. See `PatchMerging.streams`."""
        y = Streams(x)
        run = rematerialised if self.remat_blocks else plain
        for block in self.blocks:
            y = run(SwinBlock.__call__, block, y.shared, rngs)
        return y if self.downsample is None else self.downsample.streams(y, rngs, reduced)

    @property
    def pending(self) -> Linear | None:
        """See `PatchMerging`; None where there are no task streams."""
        return self.downsample.pending if self.downsample is not None and self.blocks[-1].specific else None

    def fold(self) -> Linear | None:
        """Merges what merges exactly, in place.

        Returns the linear layer without bias that readers of its task streams must put before their own; None where there is none.
        """
        for block in self.blocks:
            block.fold(self.downsample is not None or block is not self.blocks[-1])
        if self.downsample is None:
            return None
        self.downsample.reduction = self.downsample.reduction.merged()
        if not self.blocks[-1].specific:
            return None
        self.downsample = MergedPatchMerging(self.downsample)
        return self.downsample.reduction


class Swin(nnx.Module):
    """Swin without classifier and final norm. Any image size; what does not fit patches or windows is padded."""

    OPTIONS: ClassVar = {
        "embed_dim": whole(1, 4096),
        "depths": list_of(whole(1, DEEPEST), 1, 8),
        "num_heads": list_of(whole(1, 1024), 1, 8),
        "window_size": whole(1, 256),
        "patch_size": whole(1, 64),
        "mlp_ratio": number(0.01, 64),
        "drop_path_rate": number(),
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
                f"backbone: num_heads {list(num_heads)} must have one entry for each of the depths {list(depths)} and divide the widths "
                f"{[embed_dim * 2**i for i in range(len(depths))]}"
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
                Stage(embed_dim * 2**i, num_heads[i], window_size, mlp_ratio, [float(r) for r in rates[i]], i < last)
                for i in range(len(depths))
            ]
        )
        self.widths = tuple(embed_dim * 2 ** min(i + 1, last) for i in range(len(depths)))
        self.remat_stages = False

    def __call__(self, images: jax.Array, rngs: nnx.Rngs | None = None, reduced: bool = True) -> list[Streams]:
        """Normalised images (B, H, W, 3) -> features of each stage after its merging: widths `self.widths`, strides 8 16 32 32.

        Only the shared stream feeds the next stage. Without `reduced`, task streams of stages that have a layer in `pending` come out
        before it, normed neighbours of 4C channels instead of 2C.
        """
        x = self.patch_embed(images)
        run = rematerialised if self.remat_stages else plain
        features = []
        for stage in self.layers:
            y = run(functools.partial(Stage.__call__, reduced=reduced), stage, x, rngs)
            features.append(y)
            x = y.shared
        return features

    @property
    def pending(self) -> list[Linear | None]:
        """For each feature map the linear layer without bias that its readers put before their own if it is not `reduced`."""
        return [stage.pending for stage in self.layers]

    def fold(self) -> list[Linear | None]:
        """Merges what merges exactly, in place. Returns `Stage.fold` of each feature map."""
        return [stage.fold() for stage in self.layers]
