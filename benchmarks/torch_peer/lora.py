"""Layers of the PyTorch peer with several task streams: linear ones with low-rank branches, and helpers for streams."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mtlora_jax.methods.mtlora.method import LOCATIONS, per_stage, per_task

Tasks = dict[str, Tensor]  # a stream per task, {} before the first layer with task-specific branches


@dataclasses.dataclass(frozen=True)
class Adaptation:
    """The low-rank branches of one stage; `locations` are some of qkv, proj, fc1, fc2 and merging."""

    locations: Sequence[str] = ()
    rank: int = 0
    scale: float = 0.0
    dropout: float = 0.0
    task_rank: Mapping[str, int] = dataclasses.field(default_factory=dict)
    task_scale: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def linear(
        self, location: str, inputs: int, outputs: int, bias: bool = True, specific: bool = False
    ) -> "Linear | LoRALinear":
        """The layer at a location, with task-specific branches if `specific`."""
        if location not in self.locations:
            return Linear(inputs, outputs, bias)
        return LoRALinear(inputs, outputs, bias, self, specific)


class Linear(nn.Linear):
    """A layer without adaptation: task streams end here, and each task continues from the shared output."""

    def forward(self, x: Tensor, tasks: Tasks) -> tuple[Tensor, Tasks]:
        """(..., I) -> (..., O)."""
        return super().forward(x), {}


class LoRALinear(nn.Module):
    """Eq. 1 and 2 of the paper: y = x W + b + s (x A) B, and for each task y_t = x W + b + s_t (x_t A_t) B_t."""

    def __init__(self, inputs: int, outputs: int, bias: bool, options: Adaptation, specific: bool):
        super().__init__()
        ranks = options.task_rank if specific else {}
        self.linear = nn.Linear(inputs, outputs, bias)
        self.lora_shared_A = nn.Parameter(torch.zeros(options.rank, inputs))
        self.lora_shared_B = nn.Parameter(torch.zeros(outputs, options.rank))
        self.lora_tasks_A = nn.ParameterDict(
            {task: nn.Parameter(torch.zeros(rank, inputs)) for task, rank in ranks.items()}
        )
        self.lora_tasks_B = nn.ParameterDict(
            {task: nn.Parameter(torch.zeros(outputs, rank)) for task, rank in ranks.items()}
        )
        self.dropout = nn.Dropout(options.dropout)
        self.options = options

    def forward(self, x: Tensor, tasks: Tasks) -> tuple[Tensor, Tasks]:
        """(..., I) -> (..., O) of the shared stream and of each task. Dropout acts on the shared input."""
        base = self.linear(x)
        dropped = self.dropout(x)
        shared = base + self.options.scale * (dropped @ self.lora_shared_A.T @ self.lora_shared_B.T)
        own = {}
        for task in self.lora_tasks_A:
            low = tasks.get(task, dropped) @ self.lora_tasks_A[task].T @ self.lora_tasks_B[task].T
            own[task] = base + self.options.task_scale[task] * low
        return shared, own


class DropPath(nn.Module):
    """Stochastic depth, one draw per image."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        keep = 1 - self.rate
        return x * (x.new_empty(len(x), *[1] * (x.ndim - 1)).bernoulli_(keep) / keep)


def each(fn: Callable[[Tensor], Tensor], tasks: Tasks) -> Tasks:
    """Applies `fn` to one task after the other."""
    return {task: fn(x) for task, x in tasks.items()}


def add(x: Tensor, x_tasks: Tasks, y: Tensor, y_tasks: Tasks) -> tuple[Tensor, Tasks]:
    """Adds streams one by one; the shared stream stands in for missing ones."""
    return x + y, {task: x_tasks.get(task, x) + y_tasks.get(task, y) for task in {**x_tasks, **y_tasks}}


def adaptations(architecture: Mapping[str, Any]) -> list[Adaptation]:
    """The adaptation of each stage; none for methods without low-rank branches."""
    method, stages = architecture["method"], len(architecture["backbone"]["depths"])
    if method["name"] != "mtlora":
        return [Adaptation()] * stages
    tasks = list(architecture["tasks"])
    locations = [*method.get("locations", LOCATIONS), *["merging"] * (method.get("merging") == "lora")]
    ranks, scales = (per_task(method.get(key, 4), tasks, stages, key) for key in ("task_rank", "task_scale"))
    ranks_shared, scales_shared, dropouts = (
        per_stage(method.get(key, default), stages, key)
        for key, default in (("rank", 64), ("scale", 4.0), ("dropout", 0.05))
    )
    return [
        Adaptation(
            locations,
            rank=ranks_shared[i],
            scale=scales_shared[i],
            dropout=dropouts[i],
            task_rank={task: rank for task, rank in ranks[i].items() if rank},
            task_scale=scales[i],
        )
        for i in range(stages)
    ]
