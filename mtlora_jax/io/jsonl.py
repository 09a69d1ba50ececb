"""Reads log.jsonl, the one place that does: what a kill, a power cut or an editor made of a line is no line of a run."""

import json
import math
import pathlib
from collections.abc import Iterator
from typing import Any

from mtlora_jax.errors import UserError
from mtlora_jax.io import files

LONGEST = 2**20  # characters of a line; runs write some thousand at most
STEPS = 2**53  # no run has so many
SURROUNDINGS = "\0\ufeff \t\r\n"  # of a line: a power cut leaves zeros, some editors put a mark before the first one

Line = dict[str, Any]  # "step": int, and scalars; None for what is not finite


def lines_of(path: pathlib.Path) -> list[Line]:
    """The lines of a log that are whole. Raises UserError if the file cannot be read; none where there is no file."""
    return [line for _, line in parsed(path) if line is not None]


def parsed(path: pathlib.Path) -> Iterator[tuple[str, Line | None]]:
    """(text, what it says) of each line of a log; None for what is not a line as runs write them. Raises as `lines_of`."""
    if not path.exists():
        return
    try:
        with path.open("rb") as file:
            encoding = files.encoding_of(file.read(4096))
        with path.open(encoding=encoding, errors="replace", newline="\n") as file:
            while part := file.readline(LONGEST):
                text = part.strip(SURROUNDINGS)
                whole = len(part) < LONGEST or part.endswith("\n")
                yield text, line_of(text) if whole else None
                while not part.endswith("\n") and (part := file.readline(LONGEST)):
                    pass
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({files.reason_of(error)})") from error


def line_of(text: str) -> Line | None:
    """What one line says; None if it is none."""
    try:
        entry = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(entry, dict) or not all(isinstance(value, int | float | None) for value in entry.values()):
        return None
    step = entry.get("step")
    if not isinstance(step, int) or isinstance(step, bool) or not 0 <= step < STEPS:
        return None
    return {name: value if value is None or _is_finite(value) else None for name, value in entry.items()}


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond all floats
        return False
