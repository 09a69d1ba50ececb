"""Checks of values from files and configs, composed into tables beside the code that takes the values.

    OPTIONS = {"depths": list_of(whole(1, 100), 1, 8), "mlp_ratio": number(0.1, 16)}

A check is called with a value and its key. It raises UserError if the value has the wrong type or is out of bounds.
"""

import dataclasses
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from mtlora_jax.errors import UserError

LONGEST = 10_000  # characters of a text, entries of a list
DEEPEST = 16  # levels of nested lists and objects
LARGEST = 2**53  # of numbers: other readers of JSON cannot represent larger integers exactly

Inside = Iterable[tuple[str, Any, "Check"]]


@dataclasses.dataclass(frozen=True)
class Check:
    """A check of one value.

    Attributes:
      expected: the words after "must be" in an error message.
      fits: whether a value is of this kind, without regard to what it contains.
      inside: (name, value, check) of everything that a fitting value contains.
    """

    expected: str
    fits: Callable[[Any], bool]
    inside: Callable[[Any], Inside] = lambda value: ()

    def __call__(self, value: Any, key: str) -> None:
        """Check a value. Raises UserError that names the key, the value and what would be right."""
        if not self.fits(value):
            raise UserError(f"{key} = {shown(value)} must be {self.expected}")
        for name, part, check in self.inside(value):
            check(part, f"{key}.{name if str(name).isprintable() else shown(name)}"[-200:].lstrip("."))

    def holds(self, value: Any) -> bool:
        """Return whether the value and everything in it are right."""
        return self.fits(value) and all(check.holds(part) for _, part, check in self.inside(value))


def shown(value: Any) -> str:
    """Format a value as JSON, cut off where it is long."""
    try:
        told = json.dumps(value, default=repr)
    except (RecursionError, ValueError):
        told = type(value).__name__
    return told if len(told) <= 80 else f"{told[:80]}..."


def whole(least: int, most: int) -> Check:
    """A whole number; true and false are not numbers."""

    def fits(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most

    return Check(f"a whole number from {least} to {most}", fits)


def number(least: float = -LARGEST, most: float = LARGEST) -> Check:
    """A finite number; true and false are not numbers."""

    def fits(value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most

    return Check(f"a finite number from {least:g} to {most:g}", fits)


def within(
    least: float = -math.inf, most: float = math.inf, *, above: float = -math.inf, below: float = math.inf
) -> Check:
    """A number in an interval, with or without its ends."""
    ends = {"at least": least, "at most": most, "above": above, "below": below}
    told = " and ".join(f"{words} {end:g}" for words, end in ends.items() if math.isfinite(end))
    return Check(
        told, lambda value: isinstance(value, int | float) and least <= value <= most and above < value < below
    )


def text(longest: int = LONGEST, like: str = "(?s).*", what: str = "text") -> Check:
    """A string that UTF-8 can encode and that matches the whole pattern `like`; `what` describes it in words."""

    def fits(value: Any) -> bool:
        return (
            isinstance(value, str)
            and len(value) <= longest
            and _is_utf8(value, "strict")
            and bool(re.fullmatch(like, value))
        )

    return Check(f"{what} of at most {longest} characters", fits)


def _is_utf8(value: str, errors: str = "surrogateescape") -> bool:
    try:
        value.encode("utf-8", errors)
    except UnicodeEncodeError:
        return False
    return True


def word(*allowed: str) -> Check:
    """One of some strings."""
    return Check(f"one of {', '.join(allowed)}", lambda value: isinstance(value, str) and value in allowed)


def list_of(check: Check, least: int = 0, most: int = LONGEST) -> Check:
    """A list or tuple whose entries pass a check."""

    def fits(value: Any) -> bool:
        return isinstance(value, list | tuple) and least <= len(value) <= most

    def inside(value: Any) -> Inside:
        return ((str(index), part, check) for index, part in enumerate(value))

    return Check(
        f"a list of {least if least == most else f'{least} to {most}'} entries, each {check.expected}", fits, inside
    )


def mapping(check: Check, name: Check, most: int = LONGEST) -> Check:
    """A mapping whose names and values each pass a check."""

    def fits(value: Any) -> bool:
        return isinstance(value, Mapping) and len(value) <= most

    def inside(value: Any) -> Inside:
        yield from (("(name)", key, name) for key in value)
        yield from ((key, part, check) for key, part in value.items())

    return Check(f"an object of at most {most} entries, each {check.expected}", fits, inside)


def record(needed: Mapping[str, Check], more: Mapping[str, Check] | None = None) -> Check:
    """An object with the entries `needed`, perhaps some of `more`, and any others that are `plain`."""
    known = {**needed, **(more or {})}

    def fits(value: Any) -> bool:
        return isinstance(value, Mapping) and needed.keys() <= value.keys()

    def inside(value: Any) -> Inside:
        return ((key, part, known.get(key, plain)) for key, part in value.items())

    return Check(f"an object{' with ' * bool(needed)}{', '.join(needed)}", fits, inside)


def either(*checks: Check, expected: str = "") -> Check:
    """A value that passes at least one of several checks."""
    return Check(
        expected or ", or ".join(check.expected for check in checks),
        lambda value: any(check.holds(value) for check in checks),
    )


def _is_plain(value: Any, deepest: int = DEEPEST) -> bool:
    if isinstance(value, Mapping | list | tuple):
        names, parts = (value, value.values()) if isinstance(value, Mapping) else ((), value)
        few = deepest > 0 and len(value) <= LONGEST
        return (
            few
            and all(isinstance(n, str) and _is_utf8(n) for n in names)
            and all(_is_plain(part, deepest - 1) for part in parts)
        )
    if isinstance(value, str):
        return len(value) <= LONGEST and _is_utf8(value)
    return value is None or isinstance(value, int | float) and -LARGEST <= value <= LARGEST


# A file name may contain bytes that are not UTF-8, which Python keeps as lone surrogates.
file_name = Check(
    "the name of a file", lambda value: isinstance(value, str) and len(value) <= LONGEST and _is_utf8(value)
)
plain = Check(
    f"finite numbers, texts, lists and objects of at most {LONGEST} entries, nested at most {DEEPEST} deep",
    _is_plain,
)
nothing = Check("null", lambda value: value is None)
flag = Check("true or false", lambda value: isinstance(value, bool))
