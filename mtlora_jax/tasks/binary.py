"""Yes-or-no tasks: one bit per pixel, or not known."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import ClassVar, Self

import numpy as np

from mtlora_jax.errors import UserError
from mtlora_jax.tasks.label_images import decode_binary, decode_grey
from mtlora_jax.tasks.label_values import MEANINGS, find
from mtlora_jax.tasks.task import Task


@dataclasses.dataclass(frozen=True)
class Binary(Task):
    """Base of tasks whose label (H, W) uint8 is 1 for yes, 0 for no, or `IGNORE`.

    `meaning` says what the values of the files mean, for all of a data set: a key of `MEANINGS`; empty where no data set is known.
    """

    meaning: str = ""
    ends: ClassVar[tuple[str, str]] = ("no", "yes")  # what 0 and 1 are called

    def __post_init__(self):
        if self.meaning and self.meaning not in MEANINGS:
            raise UserError(f"labels of {self.name}: {self.meaning!r} is not one of {', '.join(MEANINGS)}")

    def decode(self, data: bytes, origin: str) -> np.ndarray:
        """Decodes a grey PNG by its `meaning`."""
        return decode_binary(data, origin, self.meaning)

    def of_data_set(self, files: Iterable[tuple[bytes, str]]) -> Self:
        """The task with the meaning that fits the files. Raises UserError where none does, or more than one."""
        return dataclasses.replace(self, meaning=find(self.name, _readable(files)))

    def reading(self) -> str:
        no, yes = self.ends
        return MEANINGS[self.meaning].told.format(no=no, yes=yes) if self.meaning else ""

    def values(self) -> Mapping[int, str]:
        return dict(enumerate(self.ends))


def _readable(files: Iterable[tuple[bytes, str]]) -> Iterator[tuple[str, np.ndarray, bool]]:
    for data, origin in files:
        try:
            pixels, one_bit = decode_grey(data, origin)
        except (UserError, MemoryError):
            continue  # told and counted when its turn comes
        yield origin, pixels, one_bit
