"""MTLoRA and MTLoRA+ (section 3): low-rank branches in every block, task-specific ones in the last block of each stage."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from flax import nnx

from mtlora_jax.errors import UserError
from mtlora_jax.methods.mtlora.layers import LoRALinear, TaskLoRALinear
from mtlora_jax.methods.param_groups import groups_of
from mtlora_jax.models.multitask import MultiTaskModel
from mtlora_jax.schema import Check, either, list_of, mapping, number, text, whole

LOCATIONS = {"qkv": ("attn", "qkv"), "proj": ("attn", "proj"), "fc1": ("mlp", "fc1"), "fc2": ("mlp", "fc2")}
FREEZABLE = ("ta_lora", "patch_embed", "norms", "position_tables")
TS_BASES = ("shared", "task")
MERGING = ("train", "freeze", "lora")


def per_stage(value: Any, stages: int, name: str) -> list:
    """One number for all stages, or a list of one number per stage -> list. Raises UserError for anything else."""
    values = list(value) if isinstance(value, list | tuple) else [value] * stages
    if not all(isinstance(number, int | float) for number in values):
        raise UserError(f"method.{name} = {value!r} must be a number, or a list of one number per stage")
    if len(values) != stages:
        raise UserError(f"method.{name} = {value!r} has {len(values)} entries; the backbone has {stages} stages")
    return values


def per_task(value: Any, tasks: Sequence[str], stages: int, name: str) -> list[dict[str, Any]]:
    """A number, a list per stage, or {task: either of them} -> for each stage {task: number}."""
    if isinstance(value, Mapping):
        missing = [task for task in tasks if task not in value]
        if missing:
            raise UserError(f"method.{name} gives no value for {', '.join(missing)}; it has {', '.join(value)}")
        table = {task: per_stage(value[task], stages, f"{name}.{task}") for task in tasks}
    else:
        table = {task: per_stage(value, stages, name) for task in tasks}
    return [{task: table[task][i] for task in tasks} for i in range(stages)]


def of_each_stage(check: Check) -> Check:
    """A value for all stages, or a list of one for each."""
    return either(check, list_of(check, 1, 8), expected=f"{check.expected}, or a list of one per stage")


def of_each_task(check: Check) -> Check:
    """As `of_each_stage`, or {task: that}."""
    stages = of_each_stage(check)
    return either(stages, mapping(stages, text(100)), expected=f"{stages.expected}, or {{task: either of them}}")


@dataclasses.dataclass(frozen=True)
class MTLoRA:
    """Options of the method.

    Attributes:
      rank, scale: of the task-agnostic branches; a number or one per stage.
      task_rank, task_scale: of the task-specific branches; a number, one per stage, or {task: either}. Rank 0 for all tasks
        leaves the task-specific branches out (Figure 4 of the paper): every decoder then reads the shared features.
      dropout: on the shared input of the low-rank branches; a number or one per stage.
      locations: which linear layers of a block are adapted, of qkv, proj, fc1, fc2.
      ts_base: what the frozen weight of a task stream acts on, "shared" input (reference) or "task" input (Eq. 2 read literally).
      merging: patch merging is trained (MTLoRA), frozen, or frozen with a task-agnostic branch ("lora": MTLoRA+).
      freeze: groups that are not trained, of ta_lora, patch_embed, norms, position_tables. With all four, and merging frozen, what
        tasks share stays as it was: a further task is trained beside those that a model has.
    """

    OPTIONS: ClassVar = {
        "rank": of_each_stage(whole(0, 4096)),
        "task_rank": of_each_task(whole(0, 4096)),
        "scale": of_each_stage(number()),
        "task_scale": of_each_task(number()),
        "dropout": of_each_stage(number()),
        "locations": list_of(text(100)),
        "ts_base": text(100),
        "merging": text(100),
        "freeze": list_of(text(100)),
    }

    rank: int | Sequence[int] = 64
    task_rank: int | Sequence[int] | Mapping[str, Any] = 4
    scale: float | Sequence[float] = 4.0
    task_scale: float | Sequence[float] | Mapping[str, Any] = 4.0
    dropout: float | Sequence[float] = 0.05
    locations: Sequence[str] = tuple(LOCATIONS)
    ts_base: str = "shared"
    merging: str = "train"
    freeze: Sequence[str] = ()

    def __post_init__(self):
        for name, values, allowed in (
            ("locations", self.locations, tuple(LOCATIONS)),
            ("freeze", self.freeze, FREEZABLE),
            ("ts_base", (self.ts_base,), TS_BASES),
            ("merging", (self.merging,), MERGING),
        ):
            wrong = [value for value in values if value not in allowed]
            if wrong:
                raise UserError(f"method.{name} = {wrong[0]!r} is not one of {', '.join(allowed)}")

    def adapt(self, model: MultiTaskModel) -> None:
        """Puts low-rank layers in the place of the backbone's linear layers. Raises UserError for ranks that do not fit."""
        layers = model.backbone.layers
        stages = len(layers)
        ranks, scales = per_stage(self.rank, stages, "rank"), per_stage(self.scale, stages, "scale")
        dropouts = per_stage(self.dropout, stages, "dropout")
        task_ranks = per_task(self.task_rank, model.tasks, stages, "task_rank")
        task_scales = per_task(self.task_scale, model.tasks, stages, "task_scale")
        if not all(0.0 <= rate < 1.0 for rate in dropouts):
            raise UserError(f"method.dropout = {self.dropout} must be at least 0 and below 1")
        flat = [r for stage in task_ranks for r in stage.values()]
        specific = any(flat)
        if not all(isinstance(r, int) and r >= 1 for r in [*ranks, *(flat if specific else ())]):
            raise UserError(
                "method ranks must be at least 1 in every stage (or task_rank 0 for all), and whole numbers: "
                f"rank {ranks}, task_rank {self.task_rank!r}"
            )

        for i, stage in enumerate(layers):
            shared: dict[str, Any] = {"rank": ranks[i], "scale": scales[i], "dropout": dropouts[i]}
            for block in stage.blocks:
                task_stream = specific and block is stage.blocks[-1]
                for location in self.locations:
                    part, name = LOCATIONS[location]
                    owner = getattr(block, part)
                    base = getattr(owner, name)
                    if task_stream and location != "qkv":
                        adapted = TaskLoRALinear(base, task_rank=task_ranks[i], task_scale=task_scales[i], ts_base=self.ts_base, **shared)
                    else:
                        adapted = LoRALinear(base, **shared)
                    setattr(owner, name, adapted)
            if self.merging == "lora" and stage.downsample is not None:
                stage.downsample.reduction = LoRALinear(stage.downsample.reduction, **shared)

    def trainable(self, path: str, variable: nnx.Variable) -> bool:
        """Low-rank factors, decoders and, unless frozen, patch embedding, norms, position tables and merging."""
        trained = {"ts_lora", "decoders", *FREEZABLE} - set(self.freeze)
        if self.merging == "train":
            trained.add("merging")
        return not trained.isdisjoint(groups_of(path, variable))
