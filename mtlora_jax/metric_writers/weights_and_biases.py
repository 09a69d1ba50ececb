"""Weights & Biases, whose failures never stop a run."""

import contextlib
import pathlib
import queue
import threading
import uuid
from collections.abc import Mapping
from typing import Any

import numpy as np

from mtlora_jax.console import console
from mtlora_jax.io import files

WAITING = 1000  # largest number of entries waiting to be sent; further ones are dropped
PATIENCE = 30.0  # seconds that the end of a run waits for entries still to be sent


class WeightsAndBiases:
    """Sends scalars and pictures from a thread of its own.

    Neither a missing package nor a slow or absent network thus delays the run. The first error is reported in one line;
    after it nothing is sent. Needs pip install mtlora_jax[wandb].

    Args:
      workdir: of the run. WORKDIR/wandb_id holds the id under which a resumed run continues.
      project: of the run at Weights & Biases.
      mode: "offline" writes below WORKDIR/wandb, to be sent later by `wandb sync`; "online" sends at once.
    """

    def __init__(self, workdir: pathlib.Path, project: str, mode: str = "offline"):
        self._options = {
            "project": project,
            "mode": mode,
            "dir": str(workdir),
            "name": workdir.resolve().name,
            "id": _id_of(workdir),
        }
        self._waiting: queue.Queue[tuple[int, Mapping[str, Any]] | None] = queue.Queue(WAITING)
        self._thread = threading.Thread(target=self._send, daemon=True)
        self._thread.start()

    def scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Hands over the scalars of a step."""
        self._put((step, dict(scalars)))

    def images(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Hands over pictures, RGB uint8 (H, W, 3) by tag."""
        self._put((step, dict(pictures)))

    def close(self) -> None:
        """Waits for entries still to be sent, for at most `PATIENCE` seconds."""
        self._put(None)
        self._thread.join(PATIENCE)
        if self._thread.is_alive():
            _warn(f"not everything was sent in {PATIENCE:.0f} s")

    def _put(self, entry: tuple[int, Mapping[str, Any]] | None) -> None:
        if self._thread.is_alive():
            with contextlib.suppress(queue.Full):
                self._waiting.put_nowait(entry)

    def _send(self) -> None:
        try:
            import wandb

            run = wandb.init(resume="allow", settings=wandb.Settings(console="off", silent=True), **self._options)
            while entry := self._waiting.get():
                step, values = entry
                images = {tag: wandb.Image(value) for tag, value in values.items() if isinstance(value, np.ndarray)}
                run.log({**values, **images}, step=step)
            run.finish()
        except ImportError:
            _warn("the package is missing: pip install mtlora_jax[wandb]")
        except BaseException as error:  # some of its errors would end the interpreter
            _warn(" ".join(str(error).split()) or type(error).__name__)


def _warn(reason: str) -> None:
    console.print(f"Weights & Biases is left out: {reason}")


def _id_of(workdir: pathlib.Path) -> str:
    path = workdir / "wandb_id"
    if not path.exists():
        files.write_text(path, uuid.uuid4().hex)
    return files.read_text(path).strip()
