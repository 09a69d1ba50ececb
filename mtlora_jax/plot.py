"""Plots the losses and scores of runs, side by side, from their log.jsonl.

    python -m mtlora_jax.plot runs/mtlora runs/decoders_only --output=runs/curves.png

Needs matplotlib: pip install mtlora_jax[plots].
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from mtlora_jax import cli
from mtlora_jax.errors import UserError


def main(argv: Sequence[str] | None = None) -> None:
    """Writes one picture: losses above, in total and of each task, and the scores of the tasks below."""
    parser = cli.Parser("mtlora_jax.plot", __doc__)
    parser.add_argument("runs", nargs="+", help="workdirs of runs")
    parser.add_argument("--output", required=True, help="PNG, PDF or SVG file")
    args = parser.parse(argv)
    try:
        import matplotlib
    except ImportError as error:
        raise UserError("plots need matplotlib: pip install mtlora_jax[plots]") from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from mtlora_jax.tasks import TASKS

    logs = {pathlib.Path(run).name: read_log(pathlib.Path(run)) for run in args.runs}
    keys = {key for log in logs.values() for line in log for key in line}
    scores = {name: task.primary for name, task in ((n, cls()) for n, cls in TASKS.items()) if f"eval/{name}/{task.primary}" in keys}
    columns = [("loss", "loss", "", "")]
    columns += [(f"{name} loss", f"loss/{name}", f"{name} {primary}", f"eval/{name}/{primary}") for name, primary in scores.items()]
    figure, axes = plt.subplots(2, len(columns), figsize=(3.6 * len(columns), 5.4), layout="constrained", squeeze=False)
    for column, (loss_title, loss, score_title, score) in enumerate(columns):
        draw(axes[0][column], loss_title, loss, logs, None, "log")
        draw(axes[1][column], score_title, score, logs, "o", "linear")
    axes[1][0].axis("off")  # there is no score of all tasks together: its place is taken by the names of the runs
    axes[1][0].legend(*axes[0][0].get_legend_handles_labels(), loc="upper left")
    pathlib.Path(args.output).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.output, dpi=110)
    print(args.output)


def draw(axis: Any, title: str, key: str, logs: Mapping[str, Sequence[Mapping[str, float]]], marker: str | None, scale: str) -> None:
    """One curve per run of what its log has under `key`."""
    for run, log in logs.items():
        points = [(line["step"], line[key]) for line in log if key in line]
        axis.plot(*zip(*points, strict=True) if points else ([], []), marker=marker, label=run)
    axis.set(title=title, xlabel="step", yscale=scale)
    axis.yaxis.set_major_formatter("{x:g}")
    if scale == "log":
        axis.yaxis.set_minor_formatter("{x:g}")
    axis.tick_params(axis="y", which="minor", labelsize=7)
    axis.grid(alpha=0.3, which="both")


def read_log(run: pathlib.Path) -> list[dict]:
    """The lines of WORKDIR/log.jsonl. Raises UserError if there is none."""
    path = run / "log.jsonl"
    if not path.is_file():
        raise UserError(f"{run} is no workdir of a run: it has no log.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


if __name__ == "__main__":
    cli.run(main)
