"""Reads log.jsonl, skipping lines damaged by a kill, a power cut or an editor."""

import json
import math
import pathlib
from collections.abc import Iterator
from typing import Any

from mtlora_jax.errors import UserError
from mtlora_jax.io import files

MAX_LINE = 2**20  # characters; runs write a few thousand at most
MAX_STEP = 2**53
SURROUNDINGS = "\0\ufeff \t\r\n"  # stripped from lines: a power cut leaves zeros, some editors add a byte order mark

Line = dict[str, Any]  # "step": int, and scalars; None if not finite


def read_lines(path: pathlib.Path) -> list[Line]:
    """Read the valid lines of a log; none if there is no file. Raises UserError if it cannot be read."""
    return [line for _, line in parse_lines(path) if line is not None]


def parse_lines(path: pathlib.Path) -> Iterator[tuple[str, Line | None]]:
    """Yield (text, parsed line) of each line of a log, None for an invalid line. Raises as `read_lines`."""
    if not path.exists():
        return
    try:
        with path.open("rb") as file:
            encoding = files.detect_encoding(file.read(4096))
        with path.open(encoding=encoding, errors="replace", newline="\n") as file:
            while part := file.readline(MAX_LINE):
                text = part.strip(SURROUNDINGS)
                whole = len(part) < MAX_LINE or part.endswith("\n")
                yield text, parse_line(text) if whole else None
                while not part.endswith("\n") and (part := file.readline(MAX_LINE)):
                    pass
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({files.describe_error(error)})") from error


def parse_line(text: str) -> Line | None:
    """Parse one line; return None if it is not a line of a run."""
    try:
        entry = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(entry, dict) or not all(isinstance(value, int | float | None) for value in entry.values()):
        return None
    step = entry.get("step")
    if not isinstance(step, int) or isinstance(step, bool) or not 0 <= step < MAX_STEP:
        return None
    return {name: value if value is None or _is_finite(value) else None for name, value in entry.items()}


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond all floats
        return False
