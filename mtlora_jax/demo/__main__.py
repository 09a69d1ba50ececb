"""Demo: renders a data set, fine-tunes MTLoRA and the decoders alone, and compares scores and predictions.

    python -m mtlora_jax.demo --workdir=demo

The scenes are written in the layout of PASCAL_MT and built like it. Both runs start from the same pre-trained Swin
(mtlora_jax/demo/swin_micro), with the same seed and number of steps (configs/demo.py). After an interruption, the
same command continues with the parts that are missing.
"""

import pathlib
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from mtlora_jax import cli
from mtlora_jax import config as configs
from mtlora_jax.defaults import Config
from mtlora_jax.errors import UserError
from mtlora_jax.io import locks
from mtlora_jax.io.files import user_path

CONFIG = "configs/demo.py"
METHODS = ("decoders_only", "mtlora")
PANELS = 6


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the flags and runs the demo below --workdir."""
    parser = cli.Parser("mtlora_jax.demo", __doc__)
    parser.add_argument(
        "--workdir", default="demo", type=user_path, help="folder for data, runs and pictures (default: demo)"
    )
    parser.add_argument("--train", type=int, default=2000, help="scenes to train on (default: 2000)")
    parser.add_argument("--val", type=int, default=160, help="scenes to evaluate on (default: 160)")
    parser.add_argument("--epochs", type=int, default=0, help="epochs of each run (default: as the config says)")
    args = parser.parse(argv)

    with locks.hold_lock(args.workdir, "wait for its end, or choose another --workdir"):
        run(args.workdir, {"train": args.train, "val": args.val}, args.epochs)


def run(workdir: pathlib.Path, counts: dict[str, int], epochs: int) -> None:
    """Makes whatever is missing of data and two runs, then a table, panels and curves."""
    from mtlora_jax import plot
    from mtlora_jax.console import console
    from mtlora_jax.experiment import open_dataset
    from mtlora_jax.train.run import train

    overrides = [f"data.root={workdir / 'data'}"] + ([f"epochs={epochs}"] if epochs else [])
    chosen = {method: configs.load(f"{CONFIG}:{method}", overrides) for method in METHODS}
    run_command("rendered", str(workdir / "PASCAL_MT"), *(f"--{split}={count}" for split, count in counts.items()))
    run_command("build", f"--manual_dir={workdir / 'PASCAL_MT'}", f"--data_dir={workdir / 'data'}", "--allow_partial")
    data: Any = chosen["mtlora"].data
    splits = {"train": data.train_split, "val": data.eval_split}
    found = {name: len(open_dataset(chosen["mtlora"], split)) for name, split in splits.items()}
    if found != counts:
        raise UserError(f"{workdir / 'data'} holds {found}, not the {counts} asked for; choose another --workdir")
    for method, config in chosen.items():
        console.rule(f"{method}, {config.epochs} epochs")
        train(config, workdir / method)

    console.rule()
    print_comparison(workdir)
    draw_panels(chosen["mtlora"], workdir)
    plot.main([*(str(workdir / method) for method in METHODS), f"--output={workdir / 'curves.png'}"])
    console.print(f"pictures of the best models: {workdir / 'panels'}")


def run_command(name: str, *args: str) -> None:
    """Runs a command of `tfds_pascal_context`; exits with its code if it fails."""
    code = subprocess.run([sys.executable, "-m", f"tfds_pascal_context.{name}", *args]).returncode
    if code:
        raise SystemExit(code if code > 0 else 128 - code)


def print_comparison(workdir: pathlib.Path) -> None:
    """Prints the last scores of each run, and those of the model before training, which is the same in both."""
    from rich.table import Table

    from mtlora_jax import model_factory
    from mtlora_jax.analysis.param_counts import summarise
    from mtlora_jax.console import console
    from mtlora_jax.model_io import model_folder
    from mtlora_jax.tasks import make_tasks

    table = Table(title="Scores on scenes not used for training")
    table.add_column("method")
    table.add_column("trainable", justify="right")
    for number, method in enumerate(METHODS):
        architecture = model_folder.read_config(workdir / method / "best")["architecture"]
        tasks = make_tasks(architecture["tasks"])
        summary = summarise(
            model_factory.build(architecture), model_factory.method_of(architecture), tuple(architecture["image_size"])
        )
        first, *_, last = read_evaluations(workdir / method)
        names = {f"eval/{name}/{task.primary_metric}": task for name, task in tasks.items()}
        if number == 0:
            for name, task in tasks.items():
                note = "" if task.higher_is_better else ", lower is better"
                table.add_column(f"{name}\n{task.primary_metric}{note}", justify="right")
            table.add_row("untrained", "", *(f"{first[key]:.2f}" for key in names))
        table.add_row(method, f"{summary['trainable']:,}", *(f"{last[key]:.2f}" for key in names))
    console.print(table)


def read_evaluations(run: pathlib.Path) -> list[Mapping[str, float]]:
    """Reads the lines of WORKDIR/log.jsonl with scores, first to last."""
    from mtlora_jax.plot import read_log

    return [line for line in read_log(run) if any(key.startswith("eval/") for key in line)]


def draw_panels(config: Config, workdir: pathlib.Path) -> None:
    """Draws WORKDIR/panels/ID.png of the first validation scenes: labels, then predictions of each run's best model."""
    import numpy as np

    import mtlora_jax
    from mtlora_jax.experiment import open_dataset
    from mtlora_jax.predict.panels import draw_panel

    data = open_dataset(config, config.data.eval_split)
    models = {method: mtlora_jax.load(workdir / method / "best") for method in METHODS}
    (workdir / "panels").mkdir(exist_ok=True)
    for index in range(min(PANELS, len(data))):
        example: dict[str, Any] = data[index]
        image = example["image"]
        labels = {name: task.visualize(task.to_device_format(example[name])) for name, task in data.tasks.items()}
        rows = [{"labels": image} | labels]
        for method, model in models.items():
            logits = model(image)
            predicted = {name: task.visualize(np.asarray(logits[name])) for name, task in data.tasks.items()}
            rows.append({method: image} | predicted)
        target = workdir / "panels" / f"{example['image_id']}.png"
        draw_panel(rows, 240, 240).save(target)


if __name__ == "__main__":
    cli.run(main)
