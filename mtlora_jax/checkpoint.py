"""Checkpoints of training: the state, the position in the data and the record of the best scores, with orbax."""

import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp

from mtlora_jax.parameters import Flat
from mtlora_jax.step import TrainState


class Checkpoints:
    """The newest checkpoints of a run, in WORKDIR/checkpoints/STEP. Saving goes on in the background while training does.

    A checkpoint holds what trains and nothing that is frozen. Trained weights and optimizer are items of their own, so that an
    evaluation need not read the optimizer.
    """

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
        items = ocp.args.Composite(
            weights=ocp.args.StandardSave(weights_of(state)),
            optimizer=ocp.args.StandardSave({"step": state.step, "opt_state": state.opt_state}),
            data=ocp.args.JsonSave(data),
            progress=ocp.args.JsonSave(progress),
        )
        self._manager.save(step, args=items)

    def restore(self, like: TrainState) -> tuple[TrainState, dict[str, Any], dict[str, Any]]:
        """(state, data, progress) of the newest checkpoint; shapes, dtypes and shardings are those of `like`."""
        optimizer = {"step": like.step, "opt_state": like.opt_state}
        items = ocp.args.Composite(
            weights=restore_like(weights_of(like)),
            optimizer=restore_like(optimizer),
            data=ocp.args.JsonRestore(),
            progress=ocp.args.JsonRestore(),
        )
        restored = self._manager.restore(self.latest(), args=items)
        return TrainState(**restored["weights"], **restored["optimizer"]), restored["data"], restored["progress"]

    def restore_weights(self, trainable: Flat, batch_stats: Flat) -> tuple[Flat, Flat]:
        """(trainable, batch_stats) of the newest checkpoint, shaped and placed as those given."""
        items = ocp.args.Composite(weights=restore_like({"trainable": trainable, "batch_stats": batch_stats}))
        weights = self._manager.restore(self.latest(), args=items)["weights"]
        return weights["trainable"], weights["batch_stats"]

    def close(self) -> None:
        """Waits until everything is written."""
        self._manager.wait_until_finished()
        self._manager.close()


def weights_of(state: TrainState) -> dict[str, Flat]:
    """What of the state is weights."""
    return {"trainable": state.trainable, "batch_stats": state.batch_stats}


def restore_like(tree: Any) -> ocp.args.StandardRestore:
    """Asks for arrays with the shapes, dtypes and shardings of those in `tree`."""
    return ocp.args.StandardRestore(jax.tree.map(ocp.utils.to_shape_dtype_struct, tree))
