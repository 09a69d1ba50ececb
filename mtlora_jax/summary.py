"""Explains the size and the cost of a config's model, without weights and without data.

    python -m mtlora_jax.summary --config=configs/mtlora_tiny_448.py:64
    python -m mtlora_jax.summary --config=configs/mtlora_tiny_448.py:64 --batch_size=16 --json
    python -m mtlora_jax.summary --paper

--paper compares trained parameters and multiply-accumulates with what the tables of the MTLoRA paper print.

Keys of --json:
  trainable, total: numbers of values
  groups: {group: {total, trainable}}
  trainable_unused: trained values that no logit depends on
  gmacs: 10^9 multiply-accumulates of one image's forward pass, layer by layer: linear layers, convolutions, attention
  gmacs_linear: of linear layers and convolutions alone, as papers count
  gmacs_everything: also of interpolation, as the matrix products that JAX makes of it, and of operations on single
    elements, such as those of norms, softmax, GELU, biases and residuals; two of these count as one, moving data is
    free
  modules: {module: {total, trainable, gmacs}}, gmacs of products with the module's weights
  tasks, image_size, method: as in the architecture
  gmacs_fused: as gmacs, for the program as executed, which combines consecutive products
  gmacs_merged: as gmacs_fused, after mtlora_jax.merge
  total_merged: values of the merged model; like gmacs_merged, null for a method that cannot be merged
  per_task: {task: {trainable, total, gmacs, gmacs_fused, gmacs_merged}} of the model of the tasks up to this one
  memory: bytes of a training step on one device: parameters, gradients, optimizer, batch, activations that the forward
    pass keeps for the backward pass, total; and batch_size; estimated from shapes, see mtlora_jax.benchmark.memory

Keys of --paper --json:
  rows: [{table, row, computed, printed, note}], trained values, in Table 6 multiply-accumulates
  remarks: notes on the rows
"""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from mtlora_jax import cli
from mtlora_jax.errors import UserError


def main(argv: Sequence[str] | None = None) -> None:
    """Print the summary, or the comparison with the paper."""
    argv = sys.argv[1:] if argv is None else argv
    parser = cli.Parser("mtlora_jax.summary", __doc__, config="--paper" not in argv)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    parser.add_argument("--batch_size", type=int, help="of the memory estimate (default: the config's)")
    parser.add_argument("--paper", action="store_true", help="compare with the paper's tables; goes with --json alone")
    args = parser.parse(argv)
    if args.paper:
        if args.batch_size is not None:
            raise UserError("--batch_size: --paper compares no memory; give --config=FILE instead")
        print_paper(args.json)
        return
    batch_size = args.config.batch_size if args.batch_size is None else args.batch_size
    if batch_size < 1:
        raise UserError(f"--batch_size={batch_size} must be at least 1")
    summary = explain(args.config, batch_size)
    if args.json:
        print(json.dumps(summary))
    else:
        tell(summary)


def explain(config: Any, batch_size: int) -> dict[str, Any]:
    """Return the whole summary, with the keys of --json. Raises UserError for a config that describes no model."""
    from mtlora_jax import model_factory
    from mtlora_jax.analysis.param_counts import summarise
    from mtlora_jax.benchmark.memory import estimate
    from mtlora_jax.experiment import build_tasks, check_encoder_microbatches

    check_encoder_microbatches(config.encoder_microbatches, batch_size, 1)
    tasks = build_tasks(config)
    architecture = model_factory.from_config(config, {name: task.channels for name, task in tasks.items()})
    size = tuple(architecture["image_size"])
    summary = summarise(model_factory.build(architecture), model_factory.method_of(architecture), size)
    per_task = {list(some)[-1]: size_and_cost(architecture | {"tasks": some}) for some in first(architecture["tasks"])}
    whole = list(per_task.values())[-1]
    return summary | {
        "tasks": architecture["tasks"],
        "image_size": architecture["image_size"],
        "method": architecture["method"],
        "gmacs_merged": whole["gmacs_merged"],
        "total_merged": whole["total_merged"],
        "per_task": per_task,
        "memory": {**estimate(config, architecture, tasks, batch_size), "batch_size": batch_size},
    }


def first(tasks: Mapping[str, int]) -> list[dict[str, int]]:
    """Return the first task, the first two, ..., all."""
    items = list(tasks.items())
    return [dict(items[: count + 1]) for count in range(len(items))]


def size_and_cost(architecture: Mapping[str, Any]) -> dict[str, Any]:
    """Count parameters and 10^9 multiply-accumulates of a model, as it is and merged (None if it cannot be)."""
    from mtlora_jax import model_factory
    from mtlora_jax.analysis.macs import macs_of
    from mtlora_jax.analysis.param_counts import count_parameters
    from mtlora_jax.model_io.merging import merged_architecture

    size = tuple(architecture["image_size"])
    model = model_factory.build(architecture)
    counts = count_parameters(model, model_factory.method_of(architecture)).values()
    sums = {key: sum(count[key] for count in counts) for key in ("trainable", "total")}
    cost = {
        name: macs_of(model, size, fused)[0].products / 1e9 for name, fused in (("gmacs", False), ("gmacs_fused", True))
    }
    if not model_factory.method_class(architecture["method"]).MERGEABLE:
        return {**sums, "total_merged": None, **cost, "gmacs_merged": None}
    merged = model_factory.build(merged_architecture(architecture))
    total = sum(count["total"] for count in count_parameters(merged, model_factory.method_of(architecture)).values())
    return {**sums, "total_merged": total, **cost, "gmacs_merged": macs_of(merged, size, True)[0].products / 1e9}


def tell(summary: Mapping[str, Any]) -> None:
    """Print the summary as tables."""
    from mtlora_jax.console import console, print_parameters, print_table

    print_parameters(summary)
    modules = [
        (name, f"{count['total']:,}", f"{count['trainable']:,}", f"{count['gmacs']:.3f}")
        for name, count in summary["modules"].items()
    ]
    print_table("Parameters and products with them", ("module", "total", "trainable", "GMACs"), modules)

    size, tasks = "x".join(map(str, summary["image_size"])), len(summary["tasks"])
    told = {
        "linear layers and convolutions, as papers count": summary["gmacs_linear"],
        "and attention products": summary["gmacs"],
        "and interpolation and element-wise operations": summary["gmacs_everything"],
        "as executed in training: linear layers, convolutions, attention": summary["gmacs_fused"],
        "as executed once merged": summary["gmacs_merged"],
    }
    rows = [(what, f"{value:.2f}") for what, value in told.items() if value is not None]
    print_table(f"One image of {size}, {tasks} tasks", ("forward pass", "GMACs"), rows)
    merges = summary["total_merged"] is not None
    console.print(
        f"merged: {summary['total_merged']:,} parameters\n" if merges else "models of this method cannot be merged\n"
    )

    keys = ("trainable", "gmacs", *(["gmacs_merged"] if merges else []))
    rows, before = [], dict.fromkeys(keys, 0)
    for task, values in summary["per_task"].items():
        cells = [
            [f"{x:,}" if isinstance(x, int) else f"{x:.2f}" for x in (values[key], values[key] - before[key])]
            for key in keys
        ]
        rows.append((task, *(cell for pair in cells for cell in (pair[0], f"+{pair[1]}" if rows else ""))))
        before = values
    headings = ("with", "trainable", "added", "GMACs", "added", *(("merged", "added") if merges else ()))
    print_table("Task by task", headings, rows)

    memory = dict(summary["memory"])
    heading = f"Memory of a training step, {memory.pop('batch_size')} images, estimated from shapes"
    print_table(heading, ("what", "GB"), [(what, f"{count / 1e9:.3f}") for what, count in memory.items()])


def print_paper(as_json: bool) -> None:
    """Print the numbers of the paper next to those counted here."""
    from mtlora_jax.analysis.paper_tables import REMARKS, compared, entries
    from mtlora_jax.console import console, print_table

    if as_json:
        print(json.dumps({"rows": list(entries()), "remarks": REMARKS}))
        return
    headings = ("table", "row", "computed", "printed", "note")
    print_table(
        "MTLoRA, arXiv 2403.20320: trained parameters; in Table 6 multiply-accumulates", headings, list(compared())
    )
    for remark in REMARKS:
        console.print(remark)


if __name__ == "__main__":
    cli.run(main)
