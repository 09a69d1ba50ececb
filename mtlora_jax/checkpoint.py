"""Checkpoints of training: the state, the position in the data and the record of the best scores, with orbax."""

import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp

from mtlora_jax.step import TrainState


class Checkpoints:
    """The newest checkpoints of a run, in WORKDIR/checkpoints/STEP. Saving goes on in the background while training does."""

    def __init__(self, workdir: pathlib.Path, keep: int):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep)
        self._manager = ocp.CheckpointManager((workdir / "checkpoints").absolute(), options=options)

    def latest(self) -> int | None:
        """Step of the newest whole checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState, data: dict[str, Any], progress: dict[str, Any]) -> None:
        """Starts saving.

        Args:
          step: updates made so far.
          state: its arrays are copied before this returns, so they may be donated.
          data: state of the data iterator, JSON-able.
          progress: what else the loop must remember, JSON-able.
        """
        if step == self.latest():
            return
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(data), progress=ocp.args.JsonSave(progress))
        self._manager.save(step, args=items)

    def restore(self, like: TrainState) -> tuple[TrainState, dict[str, Any], dict[str, Any]]:
        """(state, data, progress) of the newest checkpoint; shapes, dtypes and shardings are those of `like`."""
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        items = ocp.args.Composite(state=ocp.args.StandardRestore(shapes), data=ocp.args.JsonRestore(), progress=ocp.args.JsonRestore())
        restored = self._manager.restore(self.latest(), args=items)
        return restored["state"], restored["data"], restored["progress"]

    def close(self) -> None:
        """Waits until everything is written."""
        self._manager.wait_until_finished()
        self._manager.close()
