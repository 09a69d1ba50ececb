"""Plots the losses and scores of runs, side by side, from their log.jsonl.

    python -m mtlora_jax.plot runs/mtlora runs/decoders_only --output=runs/curves.png

Needs matplotlib: pip install mtlora_jax[plots].
"""

import json
import pathlib
from collections.abc import Sequence

from mtlora_jax import cli
from mtlora_jax.errors import UserError


def main(argv: Sequence[str] | None = None) -> None:
    """Writes one picture: the total loss, then one plot per task with its score."""
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
    primary = {f"eval/{name}/{task.primary}": f"{name} {task.primary}" for name, task in ((n, cls()) for n, cls in TASKS.items())}
    present = [key for key in primary if any(key in line for log in logs.values() for line in log)]
    titles = {"loss": "training loss", **{key: primary[key] for key in present}}
    figure, axes = plt.subplots(1, len(titles), figsize=(4 * len(titles), 3.2), layout="constrained", squeeze=False)
    for axis, (key, title) in zip(axes[0], titles.items(), strict=True):
        for run, log in logs.items():
            points = [(line["step"], line[key]) for line in log if key in line]
            axis.plot(*zip(*points, strict=True) if points else ([], []), marker="o" if key != "loss" else None, label=run)
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
    axes[0][0].legend()
    pathlib.Path(args.output).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.output, dpi=110)
    print(args.output)


def read_log(run: pathlib.Path) -> list[dict]:
    """The lines of WORKDIR/log.jsonl. Raises UserError if there is none."""
    path = run / "log.jsonl"
    if not path.is_file():
        raise UserError(f"{run} is no workdir of a run: it has no log.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


if __name__ == "__main__":
    cli.run(main)
