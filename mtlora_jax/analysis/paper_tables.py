"""Sizes and costs printed in the tables of the MTLoRA paper (arXiv 2403.20320), and counted by this package."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mtlora_jax import model_factory
from mtlora_jax.analysis.macs import macs_of
from mtlora_jax.analysis.param_counts import count_parameters
from mtlora_jax.defaults import default

OUTPUTS = {"semseg": 21, "human_parts": 7, "sal": 1, "normals": 3}  # of PASCAL-Context
OTHER_HEADS = "other heads"
CUT = "cut off, not rounded"
DEAD = "with the dead classifier"
SEGFORMER = {"name": "segformer", "channels": (18, 36, 72, 144)}
ASPP = {"name": "aspp", "channels": (18, 36, 72, 144)}
ALL = ("qkv", "proj", "fc1", "fc2")


REMARKS = (
    f"{OTHER_HEADS}: the paper counts SegFormer heads of width 256 on normalised features before merging, "
    "which this package does not have",
    f"{DEAD}: a layer that the reference's head has and never calls",
    "unknown: these rows were computed, but this package does not have the printed numbers",
    "Table 1 has more rows (adapters, prompts, hypernetworks), of methods that this package does not have",
    "Table 6 is the plain multi-task Swin, without low-rank branches; "
    "the printed numbers are 0.2 to 0.5 % above linear layers and convolutions alone",
    "Table 7, two and three tasks: task rank 8 and frozen merging give the printed counts; "
    "the paper does not state these settings",
)


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a table, for Swin-Tiny at 448.

    Attributes:
      table: its number.
      name: of the row, chosen here.
      method: see `mtlora_jax.methods.METHODS`.
      options: changes to the method's defaults.
      printed: 10^6 trainable parameters, or in Table 6 10^9 multiply-accumulates; None if it is unknown.
      tasks, decoder: of the model.
      single: whether the printed number is a sum over models of one task each.
      note: why the numbers differ.
    """

    table: int
    name: str
    method: str
    printed: float | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tasks: Sequence[str] = tuple(OUTPUTS)
    decoder: Mapping[str, Any] | None = None
    single: bool = False
    note: str = ""

    def architectures(self) -> list[dict[str, Any]]:
        """Architectures of the models whose sum is printed."""
        config = default(self.method)
        with config.unlocked():
            config.method.update(self.options)
            if self.decoder:
                config.decoder = dict(self.decoder)
        models = [[task] for task in self.tasks] if self.single else [self.tasks]
        return [model_factory.from_config(config, {task: OUTPUTS[task] for task in tasks}) for tasks in models]


def mtlora(
    table: int, name: str, printed: float | None, note: str = "", tasks: Sequence[str] = tuple(OUTPUTS), **options: Any
) -> Row:
    """A row of MTLoRA."""
    return Row(table, name, "mtlora", printed, options, tasks, note=note)


ROWS = (
    Row(1, "single task, four models", "single_task", 112.62, single=True, note=OTHER_HEADS),
    Row(1, "decoders only", "decoders_only", 1.94, note=CUT),
    Row(1, "full fine-tuning", "full", 30.06, note=OTHER_HEADS),
    *(mtlora(1, f"MTLoRA r={rank}", printed, rank=rank) for rank, printed in ((16, 4.95), (32, 6.08), (64, 8.34))),
    *(
        mtlora(1, f"MTLoRA+ r={rank}", printed, note, rank=rank, task_rank=rank, merging="lora")
        for rank, printed, note in ((4, 2.57, ""), (8, 3.15, ""), (16, 4.29, CUT))
    ),
    *(mtlora(2, f"r=64 without {out}", None, locations=tuple(name for name in ALL if name != out)) for out in ALL),
    *(mtlora(3, f"r=64, frozen {name}", None, freeze=(name,)) for name in ("patch_embed", "norms", "position_tables")),
    mtlora(3, "r=64, frozen merging", None, merging="freeze"),
    Row(5, "HRNet decoders", "decoders_only", 1.94, note=CUT),
    mtlora(5, "HRNet, MTLoRA r=32", 6.08, rank=32),
    Row(5, "SegFormer decoders", "decoders_only", 2.08, decoder=SEGFORMER, note=DEAD),
    Row(5, "SegFormer, MTLoRA r=32", "mtlora", 6.22, {"rank": 32}, decoder=SEGFORMER, note=DEAD),
    Row(5, "ASPP decoders", "decoders_only", 12.44, decoder=ASPP),
    Row(5, "ASPP, MTLoRA r=32", "mtlora", 16.58, {"rank": 32}, decoder=ASPP),
    mtlora(7, "semseg, normals", 5.83, tasks=("semseg", "normals"), task_rank=8, merging="freeze"),
    mtlora(7, "semseg, sal", 5.83, tasks=("semseg", "sal"), task_rank=8, merging="freeze"),
    mtlora(7, "semseg, normals, sal", 6.45, tasks=("semseg", "normals", "sal"), task_rank=8, merging="freeze"),
    mtlora(7, "all four", 8.34, "task rank 4, trained merging"),
)
TABLE_6 = (
    *(
        Row(6, f"{count} task{'s' * (count > 1)}, one encoder", "full", printed, tasks=tuple(OUTPUTS)[:count])
        for count, printed in enumerate((18.48, 19.50, 20.49, 21.49), 1)
    ),
    *(
        Row(6, f"{count} tasks, one model each", "full", printed, tasks=tuple(OUTPUTS)[:count], single=True)
        for count, printed in enumerate((36.91, 55.32, 73.74), 2)
    ),
)


def trainable(row: Row) -> int:
    """Number of trained values, over all models of a row."""
    total = 0
    for architecture in row.architectures():
        counts = count_parameters(model_factory.build(architecture), model_factory.method_of(architecture))
        total += sum(count["trainable"] for count in counts.values())
    return total


def linear_macs(row: Row) -> int:
    """Multiply-accumulates of linear layers and convolutions for one image, over all models of a row."""
    return sum(macs_of(model_factory.build(architecture), (448, 448))[0].linear for architecture in row.architectures())


def entries() -> Iterator[dict[str, Any]]:
    """The rows by table, with the computed and the printed number.

    Numbers are trained values, in Table 6 multiply-accumulates. "printed" is None if it is unknown.
    """
    for row in sorted((*ROWS, *TABLE_6), key=lambda row: row.table):
        counts, unit = (linear_macs, 1e9) if row.table == 6 else (trainable, 1e6)
        printed = None if row.printed is None else round(row.printed * unit)
        yield {"table": row.table, "row": row.name, "computed": counts(row), "printed": printed, "note": row.note}


def compared() -> Iterator[tuple[str, str, str, str, str]]:
    """(table, row, computed, printed, note) as text."""
    for entry in entries():
        of_macs = entry["table"] == 6
        computed = f"{entry['computed'] / 1e9:.2f} G" if of_macs else f"{entry['computed']:,}"
        factor, unit = (1e9, "G") if of_macs else (1e6, "M")
        printed = f"{entry['printed'] / factor:.2f} {unit}" if entry["printed"] else "unknown"
        yield str(entry["table"]), entry["row"], computed, printed, entry["note"]
