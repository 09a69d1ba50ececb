"""What a run writes down: lines on the terminal, log.jsonl, TensorBoard events."""

import json
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import tensorboardX
from rich.console import Console
from rich.table import Table

console = Console(highlight=False, soft_wrap=True)


class Records:
    """Scalars of one run by step, in WORKDIR/log.jsonl and WORKDIR/tensorboard. Does nothing in any process but the first."""

    def __init__(self, workdir: pathlib.Path, start_step: int, active: bool):
        self._active = active
        if not active:
            return
        path = workdir / "log.jsonl"
        forget_after(path, start_step)
        self._log = path.open("a", buffering=1)
        self._events = tensorboardX.SummaryWriter(str(workdir / "tensorboard"), purge_step=start_step + 1)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Appends one line and the TensorBoard scalars of a step."""
        if not self._active:
            return
        self._log.write(json.dumps({"step": step, **scalars}) + "\n")
        for name, value in scalars.items():
            self._events.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes and closes the files."""
        if self._active:
            self._log.close()
            self._events.close()


def forget_after(path: pathlib.Path, step: int) -> None:
    """Drops the lines of a log that belong to steps after `step`: the run goes on from there and will write them again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines(keepends=True):
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except ValueError:
            pass  # the last line of a killed run may be cut off
    path.write_text("".join(kept))


class Speed:
    """Seconds per training step and per evaluation, each measured on its own, for the rate and the remaining time."""

    def __init__(self):
        self._step_seconds: float | None = None
        self._eval_seconds: float | None = None
        self._since = time.monotonic()
        self._steps = 0

    def start(self) -> None:
        """Starts a stretch of training; what came before (compilation, evaluation, checkpoints) does not count."""
        self._since, self._steps = time.monotonic(), 0

    def elapsed(self) -> float:
        """Seconds since this stretch began."""
        return time.monotonic() - self._since

    def step(self) -> None:
        """One more step of this stretch was started."""
        self._steps += 1

    def steps_per_second(self) -> float | None:
        """Mean over this stretch, smoothed with earlier ones; None before any was timed. Call it when the steps counted are done."""
        if self._steps:
            now = (time.monotonic() - self._since) / self._steps
            self._step_seconds = now if self._step_seconds is None else 0.7 * self._step_seconds + 0.3 * now
            self.start()
        return 1 / self._step_seconds if self._step_seconds else None

    def evaluated(self, seconds: float) -> None:
        """An evaluation took so long."""
        self._eval_seconds = seconds

    def remaining(self, steps: int, evaluations: int) -> str:
        """Time left as h:mm:ss."""
        if self._step_seconds is None:
            return "?"
        seconds = round(steps * self._step_seconds + evaluations * (self._eval_seconds or 0.0))
        return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def print_parameters(summary: Mapping[str, Any]) -> None:
    """Table of parameters by group."""
    table = Table(title="Parameters")
    for column in ("group", "total", "trainable"):
        table.add_column(column, justify="left" if column == "group" else "right")
    for group, count in summary["groups"].items():
        table.add_row(group, f"{count['total']:,}", f"{count['trainable']:,}")
    table.add_section()
    table.add_row("all", f"{summary['total']:,}", f"{summary['trainable']:,}")
    table.add_row("share", "", f"{100 * summary['trainable'] / summary['total']:.2f} %")
    unused = summary["trainable_unused"]
    if unused["count"]:
        table.add_row("trainable, unused", "", f"{unused['count']:,}")
    console.print(table)


def print_scores(scores: Mapping[str, float], title: str) -> None:
    """Table of scores, without the ones per class."""
    table = Table(title=title)
    table.add_column("score")
    table.add_column("value", justify="right")
    for name, value in scores.items():
        if name.count("/") < 2:
            table.add_row(name, f"{value:.2f}")
    console.print(table)
