"""Plots the losses and scores of runs, side by side, from their log.jsonl.

    python -m mtlora_jax.plot runs/mtlora runs/decoders_only --output=runs/curves.png

Needs matplotlib: pip install mtlora_jax[plots].
"""

import collections
import io
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from mtlora_jax import cli
from mtlora_jax.errors import UserError
from mtlora_jax.io.files import user_path
from mtlora_jax.io.jsonl import Line, parse_lines
from mtlora_jax.io.output_folder import OutputFolder

SUFFIXES = (".png", ".pdf", ".svg")


def main(argv: Sequence[str] | None = None) -> None:
    """Write one picture: losses above, in total and of each task, and the scores of the tasks below."""
    parser = cli.Parser("mtlora_jax.plot", __doc__)
    parser.add_argument("runs", nargs="+", type=user_path, help="workdirs of runs")
    parser.add_argument(
        "--output", required=True, type=user_path, help="PNG, PDF or SVG file; an earlier one is replaced"
    )
    args = parser.parse(argv)
    if args.output.suffix not in SUFFIXES or args.output.is_dir():
        raise UserError(f"--output={args.output}: expected a file whose name ends in {', '.join(SUFFIXES)}")
    outputs = OutputFolder(args.output.parent)
    logs = {name: read_log(run) for name, run in named(args.runs).items()}
    try:
        import matplotlib
    except ImportError as error:
        raise UserError("plots need matplotlib: pip install mtlora_jax[plots]") from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from mtlora_jax.tasks import TASKS

    keys = {key for log in logs.values() for line in log for key in line}
    primary_metrics = {name: kind().primary_metric for name, kind in TASKS.items()}
    scores = {name: primary for name, primary in primary_metrics.items() if f"eval/{name}/{primary}" in keys}
    columns = [("loss", "loss", "", "")]
    columns += [
        (f"{name} loss", f"loss/{name}", f"{name} {primary}", f"eval/{name}/{primary}")
        for name, primary in scores.items()
    ]
    figure, axes = plt.subplots(2, len(columns), figsize=(3.6 * len(columns), 5.4), layout="constrained", squeeze=False)
    for column, (loss_title, loss, score_title, score) in enumerate(columns):
        draw(axes[0][column], loss_title, loss, logs, None, "log")
        draw(axes[1][column], score_title, score, logs, "o", "linear")
    axes[1][0].axis("off")  # there is no score of all tasks together, so the legend takes its place
    axes[1][0].legend(*axes[0][0].get_legend_handles_labels(), loc="upper left")
    picture = io.BytesIO()
    figure.savefig(picture, format=args.output.suffix[1:], dpi=110)
    print(outputs.write(args.output.name, picture.getvalue()))


def named(runs: Sequence[pathlib.Path]) -> dict[str, pathlib.Path]:
    """Return {name: workdir}; the name is that of the folder, or the whole path if two folders have the same."""
    count = collections.Counter(run.resolve().name for run in runs)
    return {run.resolve().name if count[run.resolve().name] == 1 else str(run): run for run in runs}


def draw(axis: Any, title: str, key: str, logs: Mapping[str, Sequence[Line]], marker: str | None, scale: str) -> None:
    """Draw one curve per run of the values under `key` in its log."""
    for run, log in logs.items():
        points = [(line["step"], line[key]) for line in log if key in line]
        axis.plot(*zip(*points, strict=True) if points else ([], []), marker=marker, label=run)
    axis.set(title=title, xlabel="step", yscale=scale)
    axis.yaxis.set_major_formatter("{x:g}")
    if scale == "log":
        axis.yaxis.set_minor_formatter("{x:g}")
    axis.tick_params(axis="y", which="minor", labelsize=7)
    axis.grid(alpha=0.3, which="both")


def read_log(run: pathlib.Path) -> list[Line]:
    """Read the lines of WORKDIR/log.jsonl. Raises UserError if it is missing or not as runs write it."""
    path = run / "log.jsonl"
    if not path.is_file():
        raise UserError(f"{run} is no workdir of a run: it has no log.jsonl")
    log = [line for _, line in parse_lines(path)]
    if log and log[-1] is None:  # the last line of a killed run may be cut off
        log.pop()
    if None in log:
        raise UserError(f"{path}: line {log.index(None) + 1} is not one that a run writes")
    whole = [line for line in log if line is not None]
    if not whole:
        raise UserError(f"{path} holds no step yet")
    return whole


if __name__ == "__main__":
    cli.run(main)
