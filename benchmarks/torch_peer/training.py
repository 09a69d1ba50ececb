"""The training recipe in plain PyTorch: the losses, AdamW, clipping."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtlora_jax.models.inputs import MEAN, STD
from mtlora_jax.tasks.edge import POSITIVE_WEIGHT
from mtlora_jax.tasks.losses import IGNORE
from mtlora_jax.tasks.normals import to_vectors
from torch_peer.lora import Tasks

RATE = 1e-4  # constant, as in `mtlora_jax.benchmark`


def cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """Mean over valid pixels; logits (B, C, H, W), label (B, H, W) int64."""
    return F.cross_entropy(logits, label, ignore_index=IGNORE)


def balanced_cross_entropy(logits: Tensor, label: Tensor, positive_weight: float | None = None) -> Tensor:
    """Mean over valid pixels; the default weight of positives is the share of negatives.

    logits (B, 1, H, W), label (B, H, W).
    """
    valid, positive = label != IGNORE, label == 1
    weight = (valid & ~positive).sum() / valid.sum() if positive_weight is None else positive_weight
    weights = torch.where(positive, weight, 1 - weight) * valid
    return F.binary_cross_entropy_with_logits(logits[:, 0], positive.float(), weights, reduction="sum") / valid.sum()


def edge_cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """`balanced_cross_entropy` with the fixed weight of edges."""
    return balanced_cross_entropy(logits, label, POSITIVE_WEIGHT)


def normals_l1(logits: Tensor, label: Tensor) -> Tensor:
    """Mean over valid components; logits and label (B, 3, H, W)."""
    return masked_l1(F.normalize(logits, dim=1), label)


def depth_l1(logits: Tensor, label: Tensor) -> Tensor:
    """Mean over valid pixels; logits (B, 1, H, W), label (B, H, W)."""
    return masked_l1(logits[:, 0], label)


def masked_l1(prediction: Tensor, label: Tensor) -> Tensor:
    """Mean absolute difference over valid values."""
    valid = label != IGNORE
    return ((prediction - label).abs() * valid).sum() / valid.sum()


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "semseg": cross_entropy,
    "human_parts": cross_entropy,
    "sal": balanced_cross_entropy,
    "normals": normals_l1,
    "edge": edge_cross_entropy,
    "depth": depth_l1,
}


def total_loss(logits: Tasks, labels: Tasks, weights: Mapping[str, float]) -> Tensor:
    """Weighted sum of the losses, each computed in float32."""
    return torch.stack([weights[task] * LOSSES[task](logits[task].float(), labels[task]) for task in logits]).sum()


def tensors(batch: Mapping[str, np.ndarray], device: torch.device) -> tuple[Tensor, Tasks]:
    """Converts our batch to PyTorch: normalised images (B, 3, H, W), and labels.

    Labels become int64 or float32 (B, H, W), vectors (B, 3, H, W).
    """

    def tensor(values: np.ndarray) -> Tensor:
        values = np.moveaxis(values, -1, 1) if values.ndim == 4 else values
        return torch.from_numpy(np.ascontiguousarray(values)).to(device)

    labels = {task: tensor(to_vectors(label)) for task, label in batch.items() if task != "image"}
    images = tensor(((batch["image"] / np.float32(255) - MEAN) / STD).astype(np.float32))
    return images, {task: label if label.is_floating_point() else label.long() for task, label in labels.items()}


def optimizer_of(model: nn.Module, options: Mapping[str, Any]) -> torch.optim.Optimizer:
    """AdamW for the trained parameters, without weight decay on vectors."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": options["weight_decay"]},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=RATE, betas=(options["b1"], options["b2"]), eps=options["eps"])


def update(model: nn.Module, loss: Callable[[], Tensor], optimizer: torch.optim.Optimizer, clip_norm: float) -> None:
    """Makes one training step on the loss that `loss` computes."""
    optimizer.zero_grad()
    loss().backward()
    nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    optimizer.step()
