"""What a run remembers across a stop, besides its arrays."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Self

import jax

from mtlora_jax.errors import UserError
from mtlora_jax.schema import LARGEST, Check, file_name, list_of, mapping, record, whole

# NaN and infinity are allowed.
number = Check("a number", lambda value: isinstance(value, int | float) and not isinstance(value, bool))
step = whole(0, LARGEST)
DATA = record({"next_batch": step})
PENDING = record({"step": step, "metrics": mapping(number, file_name), "image_ids": list_of(file_name)})
LOOP = record(
    {
        "waiting": list_of(PENDING, most=LARGEST),
        "skipped_in_row": step,
        "bad_examples": mapping(step, file_name, most=LARGEST),
    }
)


@dataclasses.dataclass(frozen=True)
class PendingStep:
    """A step that no line of the log covers yet.

    Attributes:
      step: updates with this one.
      metrics: as `train_step` returns them; on the device until `fetch`.
      image_ids: of this process's part of the batch.
    """

    step: int
    metrics: Mapping[str, Any]
    image_ids: list[str]


def fetch(pending: Sequence[PendingStep]) -> list[PendingStep]:
    """Move the metrics of some steps to the host, as floats that survive JSON."""
    metrics = jax.device_get([one.metrics for one in pending])
    floats = [{name: float(value) for name, value in own.items()} for own in metrics]
    return [dataclasses.replace(one, metrics=own) for one, own in zip(pending, floats, strict=True)]


@dataclasses.dataclass(frozen=True)
class LoopState:
    """The part of a checkpoint that lets a resumed run continue as if it had never stopped.

    Attributes:
      data: position in the batches, as `Batches.get_state` returns it.
      pending: steps since the last line of the log, metrics on the host.
      consecutive_skips: how many of the newest steps were skipped because a number was not finite.
      unreadable: {error of an example that could not be read: step at which it was met}.
    """

    data: dict[str, Any] = dataclasses.field(default_factory=lambda: {"next_batch": 0})
    pending: list[PendingStep] = dataclasses.field(default_factory=list)
    consecutive_skips: int = 0
    unreadable: dict[str, int] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return everything but `data`, under the names that checkpoints use."""
        return {
            "waiting": [dataclasses.asdict(one) for one in self.pending],
            "skipped_in_row": self.consecutive_skips,
            "bad_examples": self.unreadable,
        }

    @classmethod
    def from_json(cls, data: Any, loop: Any) -> Self:
        """Read the items "data" and "loop" of a checkpoint. Raises UserError if they are not what a run stores."""
        try:
            DATA(data, "data")
            LOOP(loop, "loop")
        except UserError as error:
            raise UserError(f"the checkpoint is of another version of this program: {error}") from error
        pending = [PendingStep(one["step"], one["metrics"], one["image_ids"]) for one in loop["waiting"]]
        return cls(data, pending, loop["skipped_in_row"], loop["bad_examples"])
