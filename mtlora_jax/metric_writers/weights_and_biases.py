"""Weights & Biases as a guest: whatever becomes of it, the run goes on."""

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

WAITING = 1000  # entries at most that wait to be sent; what comes on top is dropped
PATIENCE = 30.0  # seconds that the end of a run waits for what is still to be sent


class WeightsAndBiases:
    """Sends scalars and pictures from a thread of its own, so that neither a missing package nor a slow or absent network holds up a run.

    What goes wrong is told in one line, once; from then on nothing is sent. Needs pip install mtlora_jax[wandb].

    Args:
      workdir: of the run. WORKDIR/wandb_id holds the id under which a resumed run goes on.
      project: where the run is filed.
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
        """Waits for what is still to be sent, half a minute at most."""
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
                shown = {
                    tag: wandb.Image(value) if isinstance(value, np.ndarray) else value for tag, value in values.items()
                }
                run.log(shown, step=step)
            run.finish()
        except ImportError:
            _warn("the package is missing: pip install mtlora_jax[wandb]")
        except BaseException as error:  # it is only a guest; some of its errors end the interpreter
            _warn(" ".join(str(error).split()) or type(error).__name__)


def _warn(reason: str) -> None:
    console.print(f"Weights & Biases is left out: {reason}")


def _id_of(workdir: pathlib.Path) -> str:
    path = workdir / "wandb_id"
    if not path.exists():
        files.write_text(path, uuid.uuid4().hex)
    return files.read_text(path).strip()
