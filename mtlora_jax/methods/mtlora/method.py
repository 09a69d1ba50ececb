"""MTLoRA and MTLoRA+ (section 3): low-rank branches in every block.

The last block of each stage also has task-specific branches.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from flax import nnx

from mtlora_jax.errors import UserError
from mtlora_jax.methods.base import Method
from mtlora_jax.methods.mtlora import merge
from mtlora_jax.methods.mtlora.fused_mlp import FusedMLP
from mtlora_jax.methods.mtlora.layers import DeferredLinear, LoRALinear, SharedInputLinear, TaskLoRALinear
from mtlora_jax.methods.param_groups import groups_of
from mtlora_jax.models.multitask import MultiTaskModel
from mtlora_jax.schema import Check, either, list_of, mapping, number, text, whole

LOCATIONS = ("qkv", "proj", "fc1", "fc2")  # of a block, in its order; see `Backbone.LINEAR_LAYERS`
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
    """A value for all stages, or a list of one value per stage."""
    return either(check, list_of(check, 1, 8), expected=f"{check.expected}, or a list of one per stage")


def of_each_task(check: Check) -> Check:
    """As `of_each_stage`, or {task: that}."""
    stages = of_each_stage(check)
    return either(stages, mapping(stages, text(100)), expected=f"{stages.expected}, or {{task: either of them}}")


@dataclasses.dataclass(frozen=True)
class MTLoRA(Method):
    """Options of the method.

    Attributes:
      rank, scale: of the task-agnostic branches; a number or one per stage.
      task_rank, task_scale: of the task-specific branches; a number, one per stage, or {task: either}. Rank 0 for all
        tasks omits the task-specific branches (Figure 4 of the paper): every decoder then reads the shared features.
      dropout: on the shared input of the low-rank branches; a number or one per stage.
      locations: linear layers of a block that are adapted, of qkv, proj, fc1, fc2.
      ts_base: input of the frozen weight in a task stream, "shared" (reference) or "task" (Eq. 2 read literally).
      merging: "train" trains patch merging (MTLoRA), "freeze" freezes it, "lora" freezes it with a task-agnostic branch
        (MTLoRA+).
      freeze: groups that are not trained, of ta_lora, patch_embed, norms, position_tables. With all four, and merging
        frozen, everything that tasks share is unchanged: a further task is trained beside those that a model has.
    """

    TITLE: ClassVar = "MTLoRA"
    MERGEABLE: ClassVar = True
    PER_TASK_OPTIONS: ClassVar = ("task_rank", "task_scale")
    TRAINING_OPTIONS: ClassVar = ("dropout", "freeze")
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
    locations: Sequence[str] = LOCATIONS
    ts_base: str = "shared"
    merging: str = "train"
    freeze: Sequence[str] = ()

    def __post_init__(self):
        for name, values, allowed in (
            ("locations", self.locations, LOCATIONS),
            ("freeze", self.freeze, FREEZABLE),
            ("ts_base", (self.ts_base,), TS_BASES),
            ("merging", (self.merging,), MERGING),
        ):
            wrong = [value for value in values if value not in allowed]
            if wrong:
                raise UserError(f"method.{name} = {wrong[0]!r} is not one of {', '.join(allowed)}")

    def adapt(self, model: MultiTaskModel) -> None:
        """Replace the backbone's linear layers by low-rank layers.

        Raises UserError for ranks that do not fit, and for a backbone whose blocks lack one of `LOCATIONS`.
        """
        missing = [location for location in LOCATIONS if location not in model.backbone.LINEAR_LAYERS]
        if missing:
            raise UserError(
                f"method mtlora: the blocks of {type(model.backbone).__name__} have no layer {', '.join(missing)}"
            )
        stages = model.backbone.stages
        count = len(stages)
        ranks, scales = per_stage(self.rank, count, "rank"), per_stage(self.scale, count, "scale")
        dropouts = per_stage(self.dropout, count, "dropout")
        task_ranks = per_task(self.task_rank, model.tasks, count, "task_rank")
        task_scales = per_task(self.task_scale, model.tasks, count, "task_scale")
        if not all(0.0 <= rate < 1.0 for rate in dropouts):
            raise UserError(f"method.dropout = {self.dropout} must be at least 0 and below 1")
        flat = [r for stage in task_ranks for r in stage.values()]
        has_task_branches = any(flat)
        if not all(isinstance(r, int) and r >= 1 for r in [*ranks, *(flat if has_task_branches else ())]):
            raise UserError(
                "method ranks must be at least 1 in every stage (or task_rank 0 for all), and whole numbers: "
                f"rank {ranks}, task_rank {self.task_rank!r}"
            )

        model.backbone.carry_tasks = False  # section 3.2: the next stage starts from the shared features
        for i, stage in enumerate(stages):
            shared: dict[str, Any] = {"rank": ranks[i], "scale": scales[i], "dropout": dropouts[i]}
            branches: dict[str, Any] = {"task_rank": task_ranks[i], "task_scale": task_scales[i]}
            branches["ts_base"] = self.ts_base
            for block in stage.blocks:
                with_tasks = has_task_branches and block is stage.blocks[-1]
                self.adapt_block(model.backbone.block_layers(block), shared, branches if with_tasks else None)
                if with_tasks and self.ts_base == "shared" and {"fc1", "fc2"} <= set(self.locations):
                    block.mlp = FusedMLP(block.mlp)
            if stage.downsample is not None:
                reduction = stage.downsample.reduction
                if self.merging == "lora":
                    stage.downsample.reduction = LoRALinear(reduction, **shared)
                elif has_task_branches:
                    stage.downsample.reduction = DeferredLinear(reduction)

    def adapt_block(
        self, places: Mapping[str, Sequence[Any]], shared: Mapping[str, Any], branches: Mapping[str, Any] | None
    ) -> None:
        """Adapt the linear layers of one block.

        `branches` are the options of its task-specific branches; None if it has none.
        """
        for location, found in places.items():
            for owner, name in found:
                base = getattr(owner, name)
                own = branches if location != "qkv" else None  # attention itself is shared
                if location in self.locations:
                    lora = LoRALinear(base, **shared) if own is None else TaskLoRALinear(base, **shared, **own)
                    setattr(owner, name, lora)
                elif own is not None and self.ts_base == "shared":
                    setattr(owner, name, SharedInputLinear(base))

    def is_trainable(self, path: str, variable: nnx.Variable) -> bool:
        """Train low-rank factors, decoders and, unless frozen, patch embedding, norms, position tables and merging."""
        trained = {"ts_lora", "decoders", *FREEZABLE} - set(self.freeze)
        if self.merging == "train":
            trained.add("merging")
        return not trained.isdisjoint(groups_of(variable))

    def merge(self, model: MultiTaskModel) -> None:
        merge.merge(model)

    @classmethod
    def inference_options(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """As in the base class; trained and frozen merging compute the same."""
        kept = super().inference_options(options)
        return kept | ({"merging": "train"} if kept.get("merging") == "freeze" else {})
