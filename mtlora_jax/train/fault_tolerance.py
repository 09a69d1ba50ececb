"""Faults that a run tolerates up to a limit: non-finite steps, and examples that cannot be read."""

import collections
import json
import math
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mtlora_jax.console import console
from mtlora_jax.distributed.sharding import allgather_json
from mtlora_jax.errors import UserError
from mtlora_jax.io.files import write_text


class NonFiniteGuard:
    """Ends a run after too many consecutive steps whose loss or gradient was not finite.

    It then lists them in WORKDIR/nonfinite.json. Such a step changes nothing but its number, see
    `mtlora_jax.train.step`.

    Args:
      limit: number of consecutive steps that ends the run.
      workdir: of the run.
      consecutive: number of such steps before a resume.

    Attributes:
      consecutive: how many of the newest steps were skipped.
    """

    def __init__(self, limit: int, workdir: pathlib.Path, consecutive: int = 0):
        self.consecutive = consecutive
        self._limit = limit
        self._path = workdir / "nonfinite.json"
        self._recent: collections.deque[dict[str, Any]] = collections.deque(maxlen=limit)

    def record(self, step: int, metrics: Mapping[str, float], image_ids: Sequence[str]) -> None:
        """Record one step; call it for all steps in order.

        Args:
          step: updates with this one.
          metrics: of `train_step`, on the host.
          image_ids: of this process's part of the batch.

        Raises:
          UserError: the limit is reached.
        """
        if not metrics["skipped"]:
            self.consecutive = 0
            self._recent.clear()
            return
        self.consecutive += 1
        bad = [name for name, value in metrics.items() if not math.isfinite(value)]
        self._recent.append(
            {
                "step": step,
                "tasks": [name.removeprefix("loss/") for name in bad if name.startswith("loss/")],
                "gradients": [name.removeprefix("grad_norm/") for name in bad if name.startswith("grad_norm/")],
                "image_ids": list(image_ids),
            }
        )
        if self.consecutive >= self._limit:
            self._give_up(step)

    def _give_up(self, step: int) -> None:
        everyone = allgather_json([entry["image_ids"] for entry in self._recent])
        steps = [
            entry | {"image_ids": [image_id for ids in all_ids for image_id in ids]}
            for entry, all_ids in zip(self._recent, zip(*everyone, strict=True), strict=True)
        ]
        tasks = list(dict.fromkeys(task for entry in steps for task in entry["tasks"]))
        image_ids = list(dict.fromkeys(image_id for entry in steps for image_id in entry["image_ids"]))
        if jax.process_index() == 0:
            report = {"step": step, "tasks": tasks, "image_ids": image_ids, "steps": steps}
            write_text(self._path, json.dumps(report, indent=2) + "\n")
        what = f"loss of {', '.join(tasks)}" if tasks else "gradient"
        raise UserError(
            f"the {what} was not finite in {self.consecutive} steps in a row, the last of them step {step}; "
            f"{self._path} lists their images. "
            "A lower --config.optimizer.learning_rate, or compute_dtype=float32, may help"
        )


class UnreadableExamples:
    """Lists examples that could not be read, each once, in WORKDIR/bad_examples.jsonl; too many end the run.

    Too many are more than `limit` in all, or more than `share` of the examples of a split, which matters for small data
    sets. `share` always tolerates one unreadable example of a split.

    Args:
      limit: examples in all.
      path: of the list; None: nothing is written.
      known: {error, with the file or the record: step at which it was met}, from before a resume.
      share: of a split, 0 to 1.
      sizes: number of examples for "training" and for "evaluation"; `share` applies only to those given.

    Attributes:
      known: the argument, and everything met since.
    """

    def __init__(
        self,
        limit: int,
        path: pathlib.Path | None = None,
        known: Mapping[str, int] | None = None,
        share: float = 1.0,
        sizes: Mapping[str, int] | None = None,
    ):
        self.known = dict(known or {})
        self._limit = limit
        self._path = path
        self._share = share
        self._sizes = sizes or {}
        self._met: dict[str, str] = {}  # {error: its split}; after a resume, only errors met again
        self._new: dict[str, tuple[int, str]] = {}

    def record(self, step: int, batch: Mapping[str, np.ndarray], purpose: str = "training") -> None:
        """Record the errors in a batch of this process."""
        for message in batch["error"]:
            if message and message not in self._met:
                self._new.setdefault(str(message), (step, purpose))

    def wrap(self, step: int, batches: Iterable[Mapping[str, np.ndarray]]) -> Iterator[Mapping[str, np.ndarray]]:
        """Yield the batches of an evaluation and record their errors."""
        for batch in batches:
            self.record(step, batch, "evaluation")
            yield batch

    def report(self) -> None:
        """Print the errors that `sync` returns."""
        for message in self.sync():
            console.print(f"left out: {message}")

    def sync(self) -> list[str]:
        """Merge what all processes recorded since the last call, and write the list.

        Returns the errors that were not known. All processes must take part. Raises UserError if there are too many.
        """
        told = {message: tuple(place) for part in allgather_json(self._new) for message, place in part.items()}
        self._new = {}
        self._met |= {message: purpose for message, (_, purpose) in told.items()}
        met = {message: step for message, (step, _) in told.items() if message not in self.known}
        self.known |= met
        if met and self._path is not None and jax.process_index() == 0:
            lines = [json.dumps({"step": step, "error": message}) + "\n" for message, step in self.known.items()]
            write_text(self._path, "".join(lines))
        where = f"{self._path} lists them; the last" if self._path else "the last"
        for purpose, size in self._sizes.items():
            bad = [message for message, of in self._met.items() if of == purpose]
            if len(bad) > math.ceil(self._share * size):
                share = f"more than fault_tolerance.max_unreadable_share = {self._share:g} of them"
                raise UserError(
                    f"{len(bad)} of the {size} examples for {purpose} cannot be read, {share}; {where}: {bad[-1]}"
                )
        if len(self.known) > self._limit:
            examples = f"examples of {sum(self._sizes.values())}" if self._sizes else "examples"
            raise UserError(
                f"{len(self.known)} {examples} cannot be read, "
                f"more than fault_tolerance.max_unreadable_examples = {self._limit}; {where}: {list(self.known)[-1]}"
            )
        return list(met)
