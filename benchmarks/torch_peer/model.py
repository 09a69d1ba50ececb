"""MTLoRA on Swin in plain PyTorch, the peer of `benchmarks/peer.py`.

It is written like most PyTorch code of this kind: eager modules, channels last in the encoder and NCHW in the decoders,
softmax attention from two matrix products, and a loop over the tasks wherever tasks differ. Each task's stream passes
the norms, the low-rank branches and the patch merging by itself, and has its own projections, upsampling and head.
Modules have the names of the reference's checkpoints, so that `load_state_dict` accepts the output of
`mtlora_jax.convert.to_mtlora`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtlora_jax.errors import UserError
from torch_peer.lora import Adaptation, DropPath, Tasks, adaptations, add, each

DERIVED = ("attn_mask", "relative_position_index")  # tensors of a checkpoint that the modules compute themselves
MASK_VALUE = -100.0


def split_windows(x: Tensor, window: int) -> Tensor:
    """(B, S, S, C) -> (B M, N, C): M windows of N tokens."""
    b, side, _, c = x.shape
    cut = side // window
    return x.view(b, cut, window, cut, window, c).transpose(2, 3).reshape(-1, window * window, c)


def join_windows(x: Tensor, window: int, side: int) -> Tensor:
    """(B M, N, C) -> (B, S, S, C)."""
    cut, c = side // window, x.shape[-1]
    return x.view(-1, cut, cut, window, window, c).transpose(2, 3).reshape(-1, side, side, c)


def relative_positions(window: int) -> Tensor:
    """Row of the position table for each pair of tokens, int64 (N, N)."""
    places = torch.cartesian_prod(torch.arange(window), torch.arange(window))
    down, right = (places[:, None] - places[None] + window - 1).unbind(-1)
    return down * (2 * window - 1) + right


def shift_mask(side: int, window: int, shift: int) -> Tensor:
    """Mask (M, N, N) between tokens that are neighbours only through the cyclic shift."""
    band = torch.zeros(side, dtype=torch.long)
    band[-window:], band[-shift:] = 1, 2
    regions = split_windows((3 * band[:, None] + band)[None, :, :, None], window).squeeze(-1)
    return (regions[:, :, None] != regions[:, None]) * MASK_VALUE


class WindowAttention(nn.Module):
    """Attention inside windows, with a bias for each relative position."""

    relative_position_index: Tensor

    def __init__(self, dim: int, heads: int, window: int, adapt: Adaptation, specific: bool):
        super().__init__()
        self.qkv = adapt.linear("qkv", dim, 3 * dim)
        self.proj = adapt.linear("proj", dim, dim, specific=specific)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.register_buffer("relative_position_index", relative_positions(window), persistent=False)
        self.heads = heads

    def forward(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tasks]:
        """(B M, N, C) -> the same shape, also for each task if `proj` has task-specific branches."""
        windows, n, c = x.shape
        heads = self.heads
        qkv, _ = self.qkv(x, {})
        q, k, v = qkv.reshape(windows, n, 3, heads, c // heads).permute(2, 0, 3, 1, 4)
        logits = (q * (c // heads) ** -0.5) @ k.transpose(-2, -1)
        logits = logits + self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)
        if mask is not None:
            logits = (logits.view(-1, len(mask), heads, n, n) + mask[:, None]).view(-1, heads, n, n)
        return self.proj((logits.softmax(-1) @ v).transpose(1, 2).reshape(windows, n, c), {})


class MLP(nn.Module):
    """Linear, GELU, linear."""

    def __init__(self, dim: int, hidden: int, adapt: Adaptation, specific: bool):
        super().__init__()
        self.fc1 = adapt.linear("fc1", dim, hidden, specific=specific)
        self.fc2 = adapt.linear("fc2", hidden, dim, specific=specific)

    def forward(self, x: Tensor, tasks: Tasks) -> tuple[Tensor, Tasks]:
        x, tasks = self.fc1(x, tasks)
        return self.fc2(F.gelu(x), each(F.gelu, tasks))


class Block(nn.Module):
    """A Swin block; in the last one of a stage (`specific`) task streams begin."""

    def __init__(
        self,
        dim: int,
        heads: int,
        window: int,
        side: int,
        shift: int,
        ratio: float,
        rate: float,
        adapt: Adaptation,
        specific: bool,
    ):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, heads, window, adapt, specific)
        self.mlp = MLP(dim, int(dim * ratio), adapt, specific)
        self.drop_path = DropPath(rate)
        self.register_buffer("attn_mask", shift_mask(side, window, shift) if shift else None, persistent=False)
        self.window, self.side, self.shift = window, side, shift

    def forward(self, x: Tensor) -> tuple[Tensor, Tasks]:
        """(B, S, S, C) -> the same shape, also for each task."""
        rolled = torch.roll(self.norm1(x), (-self.shift, -self.shift), (1, 2)) if self.shift else self.norm1(x)
        a, a_tasks = self.attn(split_windows(rolled, self.window), self.attn_mask)
        h, h_tasks = add(x, {}, self.restore(a), each(self.restore, a_tasks))
        m, m_tasks = self.mlp(self.norm2(h), each(self.norm2, h_tasks))
        return add(h, h_tasks, self.drop_path(m), each(self.drop_path, m_tasks))

    def restore(self, windows: Tensor) -> Tensor:
        x = join_windows(windows, self.window, self.side)
        return self.drop_path(torch.roll(x, (self.shift, self.shift), (1, 2)) if self.shift else x)


class PatchMerging(nn.Module):
    """Concatenates 2x2 neighbours, normalises them and halves the channels."""

    def __init__(self, dim: int, adapt: Adaptation):
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = adapt.linear("merging", 4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, S, S, C) -> (B, S/2, S/2, 2C)."""
        quads = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(quads, -1)), {})[0]


class Stage(nn.Module):
    """Blocks, then the patch merging of one stream after the other."""

    def __init__(
        self,
        dim: int,
        heads: int,
        window: int,
        side: int,
        ratio: float,
        rates: Sequence[float],
        adapt: Adaptation,
        merge: bool,
    ):
        super().__init__()
        last = len(rates) - 1
        shifts = [window // 2 if j % 2 and side > window else 0 for j in range(len(rates))]
        sizes = dim, heads, window, side
        self.blocks = nn.ModuleList(
            [Block(*sizes, shifts[j], ratio, rates[j], adapt, j == last) for j in range(len(rates))]
        )
        self.downsample = PatchMerging(dim, adapt) if merge else nn.Identity()

    def forward(self, x: Tensor) -> tuple[Tensor, Tasks]:
        tasks: Tasks = {}
        for block in self.blocks:
            x, tasks = block(x)
        return self.downsample(x), each(self.downsample, tasks)


class PatchEmbed(nn.Module):
    """Patch embedding with norm."""

    def __init__(self, patch: int, dim: int):
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch, patch)
        self.norm = nn.LayerNorm(dim)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, S, S, C)."""
        return self.norm(self.proj(images).permute(0, 2, 3, 1))


class Swin(nn.Module):
    """The encoder; only the shared stream of a stage is the input of the next one."""

    def __init__(self, architecture: Mapping[str, Any]):
        super().__init__()
        options = architecture["backbone"]
        patch, window, dim = options.get("patch_size", 4), options.get("window_size", 7), options["embed_dim"]
        depths, adapts = options["depths"], adaptations(architecture)
        rates = torch.linspace(0, options.get("drop_path_rate", 0.2), sum(depths)).split(list(depths))
        side = architecture["image_size"][0] // patch
        self.patch_embed = PatchEmbed(patch, dim)
        self.layers = nn.ModuleList()
        for i, heads in enumerate(options["num_heads"]):
            sizes = dim << i, heads, window, side >> i
            self.layers.append(
                Stage(*sizes, options.get("mlp_ratio", 4.0), rates[i].tolist(), adapts[i], i + 1 < len(depths))
            )
        self.widths = [dim << min(i + 1, len(depths) - 1) for i in range(len(depths))]

    def forward(self, images: Tensor) -> list[tuple[Tensor, Tasks]]:
        """(B, 3, H, W) -> the shared stream and those of the tasks after each stage."""
        x, features = self.patch_embed(images), []
        for stage in self.layers:
            x, tasks = stage(x)
            features.append((x, tasks))
        return features


class Head(nn.Module):
    """The head of HRNet."""

    def __init__(self, channels: int, outputs: int):
        super().__init__()
        hidden = 4 * channels
        self.last_layer = nn.Sequential(
            nn.Conv2d(channels, hidden, 1), nn.BatchNorm2d(hidden), nn.ReLU(), nn.Conv2d(hidden, outputs, 1)
        )

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """(B, C_i, h_i, w_i) -> (B, n, h_0, w_0)."""
        return self.last_layer(torch.cat([upsample(x, features[0].shape[-2:]) for x in features], 1))


class Heads(nn.Module):
    """A head for each task."""

    def __init__(self, channels: int, tasks: Mapping[str, int]):
        super().__init__()
        self.decoders = nn.ModuleDict({task: Head(channels, outputs) for task, outputs in tasks.items()})


def projections(sizes: Sequence[tuple[int, int]]) -> nn.ModuleDict:
    """1x1 projections of one task, one per stage; `sizes` are the channels before and after each."""
    layers = [nn.Conv2d(wide, narrow, 1, bias=False) for wide, narrow in sizes]
    return nn.ModuleDict({f"downsample_{i}": layer for i, layer in enumerate(layers)})


class MTLoRA(nn.Module):
    """The whole network."""

    def __init__(self, architecture: Mapping[str, Any]):
        super().__init__()
        tasks, decoder = architecture["tasks"], architecture["decoder"]
        if decoder is None or decoder["name"] != "hrnet":
            raise UserError(f"the peer has decoder hrnet only, not {decoder and decoder['name']}")
        self.backbone = Swin(architecture)
        sizes = list(zip(self.backbone.widths, decoder["channels"], strict=True))
        self.downsampler = nn.ModuleDict({task: projections(sizes) for task in tasks})
        self.decoders = Heads(sum(decoder["channels"]), tasks)

    def forward(self, images: Tensor) -> Tasks:
        """Normalised float32 (B, 3, H, W) -> logits {task: (B, n, H, W)}."""
        features, logits = self.backbone(images), {}
        for task, project in self.downsampler.items():
            maps = [tasks.get(task, shared).permute(0, 3, 1, 2) for shared, tasks in features]
            low = self.decoders.decoders[task]([conv(x) for conv, x in zip(project.children(), maps, strict=True)])
            logits[task] = upsample(low, images.shape[-2:])
        return logits


def upsample(x: Tensor, size: Sequence[int]) -> Tensor:
    """Resizes bilinearly, (B, C, h, w) -> (B, C, *size)."""
    return F.interpolate(x, list(size), mode="bilinear", align_corners=False)


def load(architecture: Mapping[str, Any], state: Mapping[str, Any], trainable: frozenset[str]) -> MTLoRA:
    """The network with the weights of a checkpoint of the reference, {name: array}; gradients for `trainable` only."""
    model = MTLoRA(architecture)
    model.load_state_dict({name: torch.as_tensor(value) for name, value in state.items() if not name.endswith(DERIVED)})
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trainable)
    return model
