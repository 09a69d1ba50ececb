"""What the values of yes-or-no label files mean: one thing for all the files of a data set, since one file alone may not tell."""

import collections
from collections.abc import Iterable
from typing import NamedTuple

import cv2
import numpy as np

from mtlora_jax.errors import UserError
from mtlora_jax.tasks.losses import IGNORE

ONE, WHITE, BETWEEN, ONE_BIT = 1, 2, 4, 8  # what a file holds besides 0; a file of one bit per pixel holds yes and no, whatever the numbers
ANY_GREY = {BETWEEN, BETWEEN | ONE, BETWEEN | WHITE, BETWEEN | ONE | WHITE}
HOLDS = np.full(256, BETWEEN, np.uint8)
HOLDS[[0, 1, 255]] = 0, ONE, WHITE
FILES, PIXELS = 64, 50_000_000  # so many are enough to tell what they mean
SHARE = 0.05  # of the files looked at may hold something else; they are bad examples
LEVELS = 9  # different values from which on they are levels of grey, not numbers of something


class Meaning(NamedTuple):
    """How a label file is read.

    Attributes:
      told: what its values mean, with places for {no} and {yes}.
      label: (256,) uint8, the label of each value.
      fits: what such a file may hold, see `holds`.
    """

    told: str
    label: np.ndarray
    fits: set[int]


def _label(yes: int, unknown: int | None = None) -> np.ndarray:
    """Labels of values, 1 from `yes` on, `IGNORE` for `unknown`."""
    label = (np.arange(256) >= yes).astype(np.uint8)
    label[[] if unknown is None else [unknown]] = IGNORE
    return label


MEANINGS = {
    "0/255": Meaning("0 {no}, 255 {yes}", _label(255), {0, WHITE, ONE_BIT}),
    "0/1": Meaning("0 {no}, 1 {yes}", _label(1), {0, ONE, ONE_BIT}),
    "0/1/255": Meaning("0 {no}, 1 {yes}, 255 not known", _label(1, 255), {0, ONE, WHITE, ONE | WHITE, ONE_BIT}),
    "grey": Meaning("levels of grey, {yes} above 127", _label(128), {0, WHITE, ONE_BIT, *ANY_GREY}),
}
ALONE = {ONE: "0/1", WHITE: "0/255", ONE | WHITE: "0/1/255", ONE_BIT: "0/255"} | dict.fromkeys(ANY_GREY, "grey")  # of a file by itself
# Whose files speak for a meaning. Of 0 and 255 alone nobody can say that they are no and not known.
SPEAK = {"0/255": {WHITE, ONE_BIT}, "0/1": {ONE, ONE_BIT}, "0/1/255": {ONE, ONE | WHITE, ONE_BIT}, "grey": {WHITE, ONE_BIT, *ANY_GREY}}


def holds(pixels: np.ndarray, one_bit: bool) -> int:
    """Which kinds of values there are besides 0: a sum of `ONE`, `WHITE` and `BETWEEN`, or `ONE_BIT`. pixels (H, W) uint8."""
    return ONE_BIT if one_bit else int(np.bitwise_or.reduce(cv2.LUT(pixels, HOLDS), axis=None))


def values_of(pixels: np.ndarray) -> str:
    """The values that occur, for people."""
    values = [str(value) for value in np.unique(pixels)]
    return ", ".join(values[:6] if len(values) <= 6 else [*values[:5], "...", values[-1]])


def find(name: str, files: Iterable[tuple[str, np.ndarray, bool]]) -> str:
    """The key of `MEANINGS` that fits a data set, judged by some of its files, and by more only while all they hold is 0.

    Args:
      name: of the task.
      files: (origin, pixels, whether it has one bit per pixel) of label files, in an order that mixes them.

    Raises:
      UserError: where no meaning, or more than one, fits them.
    """
    first: dict[int, tuple[str, str]] = {}  # {what a file holds: (origin, values) of the first such file}
    count: collections.Counter[int] = collections.Counter()
    levels: set[int] = set()
    seen = 0
    for number, (origin, pixels, one_bit) in enumerate(files):
        if count and (number >= FILES or seen >= PIXELS):
            break
        seen += pixels.size
        held = holds(pixels, one_bit)
        if not held:
            continue
        count[held] += 1
        first.setdefault(held, (origin, values_of(pixels)))
        if held & BETWEEN:
            levels |= set(np.unique(pixels).tolist())
    if not count:
        return "0/255"
    candidates = {ALONE[held] for held in count}
    if len(levels) < LEVELS or max(levels) <= 127:
        candidates.discard("grey")
    remedy = "labels.json of the data set can say what they mean"
    if not candidates:
        origin, values = next(iter(first.values()))
        raise UserError(
            f"{origin}: {name} has the values {values}; expected 0 and 255, or 0 and 1, or 0, 1 and 255 for not known; {remedy}"
        )
    votes = {key: sum(count[held] for held in SPEAK[key]) for key in MEANINGS if key in candidates}
    best = max(votes, key=lambda key: votes[key])
    others = [held for held in count if held not in MEANINGS[best].fits]
    if sum(count[held] for held in others) > SHARE * count.total():
        origin, values = first[others[0]]
        fitting, usual = next(first[held] for held in count if held in MEANINGS[best].fits)
        raise UserError(f"{origin}: {name} has the values {values}, but {fitting} has {usual}; expected one meaning for all; {remedy}")
    return best
