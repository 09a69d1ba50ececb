"""Scalars and pictures of one run, for log.jsonl, TensorBoard and, on request, Weights & Biases."""

import functools
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from mtlora_jax.console import console
from mtlora_jax.errors import UserError
from mtlora_jax.io import files
from mtlora_jax.io.jsonl import parse_lines
from mtlora_jax.metric_writers.weights_and_biases import WeightsAndBiases


class MetricWriter:
    """Writes scalars and pictures by step, in WORKDIR/log.jsonl, WORKDIR/tensorboard and, on request, Weights & Biases.

    Does nothing in any process but the first.

    Args:
      workdir: of the run; must exist if `active`.
      start_step: the step from which the run continues. Entries of later steps are dropped, since they will be recorded
        again; at 0, where a run begins, all entries are.
      active: whether this is the process that writes.
      wandb: False, or {"project": str, "mode": "online" or "offline"}; no project means no Weights & Biases.
    """

    def __init__(
        self, workdir: pathlib.Path, start_step: int, active: bool, wandb: Mapping[str, Any] | Literal[False] = False
    ):
        self._active = active
        if not active:
            return
        path = workdir / "log.jsonl"
        forget_after(path, start_step)
        try:
            # Each line is handed to the system as soon as it ends, so that a kill loses none.
            self._log = path.open("a", buffering=1, encoding="utf-8")
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({files.describe_error(error)})") from error
        self._folder, self._purge_step = workdir / "tensorboard", start_step + 1 if start_step else 0
        self._wandb = WeightsAndBiases(workdir, **wandb) if wandb and wandb["project"] else None

    @functools.cached_property
    def _tensorboard(self):
        from mtlora_jax.metric_writers.tensorboard import TensorBoard  # takes seconds

        return TensorBoard(self._folder, self._purge_step)

    def open(self) -> None:
        """Opens the files for TensorBoard, which takes seconds that the first line would otherwise take."""
        if self._active:
            _ = self._tensorboard

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Appends one line and the TensorBoard scalars of a step.

        Values that are not finite are null in the line, so that it is strict JSON.
        """
        if not self._active:
            return
        self._log.write(json.dumps({"step": step, **finite_or_none(scalars)}, allow_nan=False) + "\n")
        self._tensorboard.scalars(step, {name: value for name, value in scalars.items() if math.isfinite(value)})
        if self._wandb:
            self._wandb.scalars(step, scalars)

    def images(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Shows pictures {tag: RGB uint8 (H, W, 3)} in TensorBoard and Weights & Biases."""
        if not self._active:
            return
        self._tensorboard.images(step, pictures)
        if self._wandb:
            self._wandb.images(step, pictures)

    def close(self) -> None:
        """Flushes and closes the files."""
        if not self._active:
            return
        self._log.close()
        if "_tensorboard" in vars(self):
            self._tensorboard.close()
        if self._wandb:
            self._wandb.close()


def finite_or_none(scalars: Mapping[str, float]) -> dict[str, float | None]:
    """The scalars for a JSON file, with None for NaN and infinity, which JSON lacks."""
    return {name: value if math.isfinite(value) else None for name, value in scalars.items()}


def forget_after(path: pathlib.Path, step: int) -> None:
    """Drops the lines of a log that belong to steps after `step`, or all lines if that is 0.

    A kill leaves either the old log or the new one.
    """
    if not path.exists():
        return
    lines = list(parse_lines(path))
    odd = sum(line is None for _, line in lines[:-1])  # the last line of a killed run may be cut off
    if odd:
        console.print(f"{path}: {odd} lines that no run writes are left out")
    kept = [text for text, line in lines if line is not None and 0 < step >= line["step"]]
    files.write_text(path, "".join(f"{text}\n" for text in kept))
