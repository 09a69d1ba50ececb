"""What a run tolerates, up to a limit: steps that are not finite, and examples that cannot be read."""

import collections
import json
import math
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mtlora_jax.errors import UserError
from mtlora_jax.files import write_text
from mtlora_jax.sharding import of_all_processes


class Skips:
    """Ends a run after `limit` steps in a row whose loss or gradient was not finite, and writes down which in WORKDIR/nonfinite.json.

    The step itself leaves everything but its number as it was, see `mtlora_jax.step`.

    Attributes:
      in_row: so many of the last steps were skipped.
    """

    def __init__(self, limit: int, workdir: pathlib.Path, in_row: int = 0):
        self.in_row = in_row
        self._limit = limit
        self._path = workdir / "nonfinite.json"
        self._recent: collections.deque[dict[str, Any]] = collections.deque(maxlen=limit)

    def count(self, step: int, metrics: Mapping[str, float], image_ids: Sequence[str]) -> None:
        """Takes note of one step, in their order.

        Args:
          step: updates with this one.
          metrics: of `train_step`, on the host.
          image_ids: of this process's part of the batch.

        Raises:
          UserError: there were too many.
        """
        if not metrics["skipped"]:
            self.in_row = 0
            self._recent.clear()
            return
        self.in_row += 1
        bad = [name for name, value in metrics.items() if not math.isfinite(value)]
        self._recent.append(
            {
                "step": step,
                "tasks": [name.removeprefix("loss/") for name in bad if name.startswith("loss/")],
                "gradients": [name.removeprefix("grad_norm/") for name in bad if name.startswith("grad_norm/")],
                "image_ids": list(image_ids),
            }
        )
        if self.in_row >= self._limit:
            self._give_up(step)

    def _give_up(self, step: int) -> None:
        everyone = of_all_processes([entry["image_ids"] for entry in self._recent])
        steps = [
            entry | {"image_ids": [image_id for ids in all_ids for image_id in ids]}
            for entry, all_ids in zip(self._recent, zip(*everyone, strict=True), strict=True)
        ]
        tasks = list(dict.fromkeys(task for entry in steps for task in entry["tasks"]))
        image_ids = list(dict.fromkeys(image_id for entry in steps for image_id in entry["image_ids"]))
        if jax.process_index() == 0:
            write_text(self._path, json.dumps({"step": step, "tasks": tasks, "image_ids": image_ids, "steps": steps}, indent=2) + "\n")
        what = f"loss of {', '.join(tasks)}" if tasks else "gradient"
        raise UserError(
            f"the {what} was not finite in {self.in_row} steps in a row, the last of them step {step}; {self._path} tells their images. "
            "A lower --config.optimizer.learning_rate, or precision.compute=float32, may help"
        )


class BadExamples:
    """Counts the examples that could not be read, each once, in WORKDIR/bad_examples.jsonl; more than `limit` end the run.

    Attributes:
      known: {what is wrong, with the file or the record: step at which it was met}.
    """

    def __init__(self, limit: int, path: pathlib.Path | None = None, known: Mapping[str, int] | None = None):
        self.known = dict(known or {})
        self._limit = limit
        self._path = path
        self._new: dict[str, int] = {}

    def look(self, step: int, batch: Mapping[str, np.ndarray]) -> None:
        """Takes note of what a batch of this process lacks."""
        for message in batch["bad"]:
            if message and message not in self.known:
                self._new.setdefault(str(message), step)

    def watch(self, step: int, batches: Iterable[Mapping[str, np.ndarray]]) -> Iterator[Mapping[str, np.ndarray]]:
        """The batches, looked at as they pass."""
        for batch in batches:
            self.look(step, batch)
            yield batch

    def settle(self) -> list[str]:
        """Brings together what the processes met since the last call, writes it down and returns it; all processes must take part.

        Raises UserError above the limit.
        """
        met = {message: step for part in of_all_processes(self._new) for message, step in part.items() if message not in self.known}
        self._new = {}
        self.known |= met
        if met and self._path is not None and jax.process_index() == 0:
            write_text(self._path, "".join(json.dumps({"step": step, "error": message}) + "\n" for message, step in self.known.items()))
        if len(self.known) > self._limit:
            where = f"{self._path} lists them; the last" if self._path else "the last"
            raise UserError(
                f"{len(self.known)} examples cannot be read, more than guards.max_bad_examples = {self._limit}; "
                f"{where}: {list(self.known)[-1]}"
            )
        return list(met)
