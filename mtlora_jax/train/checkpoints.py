"""Checkpoints of training with orbax: the state, the position in the data, and what the loop must remember."""

import contextlib
import copy
import functools
import json
import logging
import pathlib
import re
import shutil
import sys
import tempfile
import time
import warnings
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import absl.logging
import jax
import numpy as np
import orbax.checkpoint as ocp

from mtlora_jax.console import console
from mtlora_jax.distributed import sharding
from mtlora_jax.errors import UserError
from mtlora_jax.io.files import describe_error, is_disk_full, make_folder
from mtlora_jax.models.parameters import Flat, list_keys
from mtlora_jax.train.step import TrainState

Contents = dict[str, list]  # {name of an array: [shape, dtype, CRC-32 of its bytes]}


class Restored(NamedTuple):
    """The arguments of `Checkpoints.save`, read back."""

    state: TrainState
    data: dict[str, Any]
    loop: dict[str, Any]


class Checkpoints:
    """The newest checkpoints of a run, in WORKDIR/checkpoints/STEP, saved in the background during training.

    A checkpoint holds what is trained and nothing that is frozen. It appears whole or not at all, since orbax renames
    it after everything is written. It lists its arrays with their checksums: files that were cut off, altered or copied
    from another run are recognised when they are read, and the newest checkpoint without a fault is used. Weights are
    an item of their own, so that an evaluation reads nothing else.

    The files of each save are checked; only then are older checkpoints removed.

    Args:
      workdir: of the run.
      keep: how many to keep.
      writing: whether this program trains. Otherwise nothing is changed, since another program may be training.

    Attributes:
      seconds: for how long `save` has blocked its caller so far.
    """

    def __init__(self, workdir: pathlib.Path, keep: int, writing: bool = False):
        self._folder = (workdir / "checkpoints").absolute()
        self._keep = keep
        self._writing = writing
        self._saved: int | None = None  # step of the last checkpoint, until its files are checked
        self._alias = contextlib.ExitStack()
        leave_faults_to_the_caller()
        told = absl.logging.get_verbosity()
        absl.logging.set_verbosity(absl.logging.ERROR)  # a read-only orbax warns that it writes nothing
        options = ocp.CheckpointManagerOptions(
            create=writing, cleanup_tmp_directories=writing, read_only=not writing, enable_async_checkpointing=True
        )
        if writing:
            make_folder(self._folder)
        self._manager = ocp.CheckpointManager(self._alias.enter_context(plain_path(self._folder)), options=options)
        absl.logging.set_verbosity(told)
        self.seconds = 0.0

    def latest(self) -> int | None:
        """Return the step of the newest checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState, data: dict[str, Any], loop: dict[str, Any]) -> None:
        """Start saving; do nothing if the checkpoint of this step exists.

        Args:
          step: updates made so far.
          state: its arrays are copied before this returns, so they may be donated. So are the other arguments.
          data: state of the data iterator, JSON-able.
          loop: what else the loop must remember, JSON-able.

        Raises:
          UserError: this or an earlier checkpoint could not be written.
        """
        if step in self._manager.all_steps():
            return
        start = time.monotonic()
        self.wait()
        trees = split_items(state)
        rest = copy.deepcopy({"data": data, "loop": loop})  # the caller may change them while they are written
        contents: dict[str, Any] = {name: make_manifest(tree) for name, tree in trees.items()}
        contents |= {name: compute_checksum(value) for name, value in rest.items()}
        arguments = ocp.args.Composite(
            **{name: ocp.args.StandardSave(tree) for name, tree in trees.items()},
            **{name: ocp.args.JsonSave(value) for name, value in rest.items()},
            contents=ocp.args.JsonSave(contents),
        )
        try:
            self._manager.save(step, args=arguments)
        except Exception as error:
            raise self._failed(error) from error
        self._saved = step
        self.seconds += time.monotonic() - start

    def check(self) -> None:
        """Check that past saves succeeded, without waiting for one in progress. Raises UserError if one failed."""
        if not self._manager.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Wait until everything is written. Raises UserError if a save failed or lacks files."""
        saved, self._saved = self._saved, None  # after an error, missing files need no check
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._failed(error) from error
        if saved is not None and jax.process_index() == 0 and (lacking := self._lacking(saved)):
            raise self._failed(ValueError(f"{saved}/{lacking} is missing although it was saved"))
        if saved is not None:
            self._remove_old()

    def restore(self, like: TrainState, until_step: int | None = None) -> Restored | None:
        """Read the newest whole checkpoint, with the shapes, dtypes and shardings of `like`; None if there is none.

        Newer ones that are damaged, or not of this run, are reported and, by a program that trains, moved to
        WORKDIR/damaged. Raises UserError if all are. Checkpoints after `until_step` are ignored.
        """
        found = self._newest_whole(split_items(like), ("data", "loop"), until_step)
        if found is None:
            return None
        _, trees, rest, passed_over = found
        if self._writing:
            self._set_aside(passed_over)
        return Restored(TrainState(**trees["weights"], **trees["optimizer"]), rest["data"], rest["loop"])

    def restore_weights(self, trainable: Flat, batch_stats: Flat) -> tuple[int, Flat, Flat]:
        """Read (step, trainable, batch_stats) of the newest whole checkpoint, shaped and placed as those given.

        Raises UserError as `restore`, and if there is no checkpoint.
        """
        found = self._newest_whole({"weights": {"trainable": trainable, "batch_stats": batch_stats}})
        if found is None:
            raise UserError(f"{self._folder}: no checkpoint")
        step, trees, *_ = found
        return step, trees["weights"]["trainable"], trees["weights"]["batch_stats"]

    def close(self) -> None:
        """Wait until everything is written. Raises UserError if it could not be."""
        with self._alias:
            self.wait()
            self._manager.close()

    def _newest_whole(
        self, like: Mapping[str, Any], further: tuple[str, ...] = (), until_step: int | None = None
    ) -> tuple[int, dict[str, Any], dict[str, Any], list[int]] | None:
        """Read the newest checkpoint that can be used; None if there is no checkpoint.

        Returns (step, trees like `like`, further items, steps of newer checkpoints that cannot be used).
        """
        reasons: dict[int, str] = {}
        steps = [step for step in self._manager.all_steps() if until_step is None or step <= until_step]
        # All processes take the steps that process 0 sees, and a fault that any of them finds, to restore the same.
        for step in sharding.allgather_json(sorted(steps, reverse=True))[0]:
            found, reason = None, ""
            try:
                found = self._read(step, like, further)
            except Exception as error:  # a damaged file may raise anything in the libraries
                reason = str(error) if isinstance(error, UserError) else f"it cannot be read ({describe_error(error)})"
            reason = next(filter(None, sharding.allgather_json(reason)), "")
            if found is not None and not reason:
                return step, *found, list(reasons)
            if reason:
                reasons[step] = reason
                console.print(f"checkpoint {step} is passed over: {reasons[step]}")
        if reasons:
            told = "; ".join(f"{step}: {reason}" for step, reason in reasons.items())
            raise UserError(
                f"{self._folder}: no checkpoint can be used; {told}. "
                "Choose another --workdir, or delete this folder to begin again from the first step"
            )
        return None

    def _read(
        self, step: int, like: Mapping[str, Any], further: tuple[str, ...]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        def restore(**items: Any) -> Any:
            return self._manager.restore(step, args=ocp.args.Composite(**items))

        if not (self._folder / str(step) / "contents").is_dir():
            raise UserError(
                "it does not list its contents: another version of this program wrote it, or something else"
            )
        stored = restore(contents=ocp.args.JsonRestore())["contents"]
        for name, tree in like.items():
            check_compatible(stored[name], tree)
        rest = restore(**{name: ocp.args.JsonRestore() for name in further}) if further else {}
        trees = restore(**{name: restore_like(tree) for name, tree in like.items()})
        found = {name: make_manifest(trees[name]) for name in like}
        altered = [array for name in like for array in found[name] if found[name][array] != stored[name][array]]
        altered += [name for name in further if compute_checksum(rest[name]) != stored[name]]
        if altered:
            raise UserError(f"damaged: the values of {list_keys(altered)} are not those that were saved")
        return {name: trees[name] for name in like}, {name: rest[name] for name in further}

    def _remove_old(self) -> None:
        """Remove all checkpoints but the newest `keep`.

        Process 0 does it alone, since orbax would need all processes at the same place. The others must not list the
        folder meanwhile: an entry may vanish while they read it.
        """
        if jax.process_index() == 0:
            for step in sorted(self._manager.all_steps())[: -self._keep]:
                shutil.rmtree(self._folder / str(step), ignore_errors=True)
            self._manager.reload()

    def _lacking(self, step: int) -> str:
        """Return the first file that a written checkpoint lacks; empty if none is missing."""
        wanted = [f"{name}/{pattern}" for name in ("weights", "optimizer") for pattern in ("manifest.ocdbt", "d/*")]
        for pattern in (*wanted, "contents/*"):
            if not any(path.stat().st_size for path in (self._folder / str(step)).glob(pattern)):
                return pattern
        return ""

    def _set_aside(self, steps: list[int]) -> None:
        """Move checkpoints that cannot be used away, since training will write new ones of these steps."""
        if not steps:
            return
        if jax.process_index() == 0:
            for step in steps:
                kept = self._folder.parent / "damaged" / str(step)
                shutil.rmtree(kept, ignore_errors=True)
                kept.parent.mkdir(exist_ok=True)
                (self._folder / str(step)).rename(kept)
        sharding.barrier("damaged checkpoints are set aside")
        self._manager.reload()

    def _failed(self, error: Exception) -> UserError:
        with contextlib.suppress(OSError):
            self._manager.reload()
        last = self._manager.latest_step()
        kept = (
            "there is none yet"
            if last is None
            else f"the one of step {last} is whole, and the same command continues from there"
        )
        return UserError(f"{self._folder}: a checkpoint could not be written ({describe_error(error)}); {kept}")


@contextlib.contextmanager
def plain_path(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yield a path to `folder` without special characters: the folder itself, or a temporary link to it.

    orbax expands `*`, `?` and `[` as patterns, and tensorstore rejects or misreads other characters. Checkpoints saved
    to such a path would be empty, without an error.
    """
    if re.fullmatch(r"[\w/.,=+@ -]+", str(folder), re.ASCII):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="mtlora_jax-") as temporary:
        link = pathlib.Path(temporary, "checkpoints")
        link.symlink_to(folder, target_is_directory=True)
        yield link


@contextlib.contextmanager
def clear_when_full(workdir: pathlib.Path) -> Iterator[None]:
    """Convert errors inside the block to a UserError if they arise because the disk is full."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not is_disk_full(error):
            raise
        raise UserError(
            f"{workdir}: no space left on the disk; free some, and the same command continues from the last checkpoint"
        ) from error


@functools.cache  # once per process
def leave_faults_to_the_caller() -> None:
    """Silence messages of orbax, and of asyncio on its behalf, about errors that they also raise.

    Orbax logs an error once per thread and prints tracebacks of abandoned futures: up to thousands of lines around the
    one line of this program. Its advice on how often to save is silenced too, since a run prints at its end how long
    saving blocked it.
    """
    for logger in (absl.logging.get_absl_logger(), logging.getLogger("asyncio")):
        logger.addFilter(lambda record: record.levelno < logging.WARNING or not _is_of_orbax(record.pathname))
    others = sys.unraisablehook

    def hook(told: Any) -> None:
        if told.exc_traceback is None or not _is_of_orbax(told.exc_traceback.tb_frame.f_code.co_filename):
            others(told)

    sys.unraisablehook = hook
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)


def _is_of_orbax(path: str) -> bool:
    return not {"orbax", "asyncio"}.isdisjoint(pathlib.Path(path).parts)


def split_items(state: TrainState) -> dict[str, dict[str, Any]]:
    """Split a state into {item: {field: arrays}}: the weights, and everything else."""
    fields = state._asdict()
    weights = {name: fields.pop(name) for name in ("trainable", "batch_stats")}
    return {"weights": weights, "optimizer": fields}


def make_manifest(tree: Any) -> Contents:
    """Describe every array of a tree, which must be on this host."""
    leaves, _ = jax.tree.flatten_with_path(tree)
    arrays = {jax.tree_util.keystr(path): np.ascontiguousarray(jax.device_get(leaf)) for path, leaf in leaves}
    shapes = {jax.tree_util.keystr(path): list(np.shape(leaf)) for path, leaf in leaves}
    return {
        name: [shapes[name], str(array.dtype), zlib.crc32(array.view(np.uint8).data)] for name, array in arrays.items()
    }


def compute_checksum(value: Any) -> int:
    """Compute the CRC-32 of a JSON-able value."""
    return zlib.crc32(json.dumps(value, sort_keys=True).encode())


def check_compatible(stored: Contents, tree: Any) -> None:
    """Check that a checkpoint with these contents has the names, shapes and dtypes of `tree`.

    Raises UserError otherwise.
    """
    leaves, _ = jax.tree.flatten_with_path(tree)
    wanted = {jax.tree_util.keystr(path): [list(np.shape(leaf)), str(leaf.dtype)] for path, leaf in leaves}
    problems = {
        "missing": [name for name in wanted if name not in stored],
        "left over": [name for name in stored if name not in wanted],
        "of another shape or type": [name for name in wanted if name in stored and stored[name][:2] != wanted[name]],
    }
    told = [f"{what}: {list_keys(names)}" for what, names in problems.items() if names]
    if told:
        raise UserError(f"of another model or another version of this program; {'; '.join(told)}")


def restore_like(tree: Any) -> ocp.args.StandardRestore:
    """Ask for arrays with the shapes, dtypes and shardings of those in `tree`."""
    return ocp.args.StandardRestore(jax.tree.map(ocp.utils.to_shape_dtype_struct, tree))
