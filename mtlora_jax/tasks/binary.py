"""Base class of binary tasks: each pixel is positive, negative or ignored."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import ClassVar, Self

import numpy as np

from mtlora_jax.errors import UserError
from mtlora_jax.tasks.label_images import decode_binary, decode_grey
from mtlora_jax.tasks.label_values import ENCODINGS, infer_encoding
from mtlora_jax.tasks.task import Task


@dataclasses.dataclass(frozen=True)
class Binary(Task):
    """Base class of tasks whose label (H, W) uint8 is 1 (positive), 0 (negative) or `IGNORE`.

    `encoding`, a key of `ENCODINGS`, says what the values of a data set's label files mean; empty if not known.
    """

    encoding: str = ""
    ends: ClassVar[tuple[str, str]] = ("no", "yes")  # names of 0 and 1

    def __post_init__(self):
        if self.encoding and self.encoding not in ENCODINGS:
            raise UserError(f"label encoding of {self.name}: {self.encoding!r} is not one of {', '.join(ENCODINGS)}")

    def decode(self, data: bytes, source: str) -> np.ndarray:
        """Decode a grey PNG according to `encoding`."""
        return decode_binary(data, source, self.encoding)

    def for_dataset(self, files: Iterable[tuple[bytes, str]]) -> Self:
        """Return the task with the encoding inferred from the files. Raises UserError if none fits, or several do."""
        return dataclasses.replace(self, encoding=infer_encoding(self.name, _readable(files)))

    def describe_label_values(self) -> str:
        no, yes = self.ends
        return ENCODINGS[self.encoding].description.format(no=no, yes=yes) if self.encoding else ""

    def value_names(self) -> Mapping[int, str]:
        return dict(enumerate(self.ends))


def _readable(files: Iterable[tuple[bytes, str]]) -> Iterator[tuple[str, np.ndarray, bool]]:
    for data, source in files:
        try:
            pixels, one_bit = decode_grey(data, source)
        except (UserError, MemoryError):
            continue  # reported and counted when it is read as an example
        yield source, pixels, one_bit
