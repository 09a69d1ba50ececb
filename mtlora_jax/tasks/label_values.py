"""Encodings of binary label files: one for all files of a data set, since a single file can be ambiguous."""

import collections
from collections.abc import Iterable
from typing import NamedTuple

import cv2
import numpy as np

from mtlora_jax.errors import UserError
from mtlora_jax.tasks.losses import IGNORE

# Kinds of values a file has besides 0. A file of one bit per pixel holds yes and no, whatever its numbers.
ONE, WHITE, BETWEEN, ONE_BIT = 1, 2, 4, 8
ANY_GREY = {BETWEEN, BETWEEN | ONE, BETWEEN | WHITE, BETWEEN | ONE | WHITE}
KIND_OF_BYTE = np.full(256, BETWEEN, np.uint8)
KIND_OF_BYTE[[0, 1, 255]] = 0, ONE, WHITE
ENOUGH_FILES, ENOUGH_PIXELS = 64, 50_000_000  # enough to infer the encoding
MAX_DEVIATING_SHARE = 0.05  # of the inspected files may not fit; they are bad examples
MIN_GREY_LEVELS = 9  # with fewer different values they may be class indices


class LabelEncoding(NamedTuple):
    """How the values of a label file are read.

    Attributes:
      description: what the values mean, with the fields {no} and {yes}.
      label: (256,) uint8, the label of each value.
      accepts: what such a file may hold, see `kinds_of_values`.
    """

    description: str
    label: np.ndarray
    accepts: set[int]


def _label(yes: int, unknown: int | None = None) -> np.ndarray:
    """Return the label of each byte: 1 from `yes` on, `IGNORE` for `unknown`."""
    label = (np.arange(256) >= yes).astype(np.uint8)
    label[[] if unknown is None else [unknown]] = IGNORE
    return label


ENCODINGS = {
    "0/255": LabelEncoding("0 {no}, 255 {yes}", _label(255), {0, WHITE, ONE_BIT}),
    "0/1": LabelEncoding("0 {no}, 1 {yes}", _label(1), {0, ONE, ONE_BIT}),
    "0/1/255": LabelEncoding("0 {no}, 1 {yes}, 255 not known", _label(1, 255), {0, ONE, WHITE, ONE | WHITE, ONE_BIT}),
    "grey": LabelEncoding("levels of grey, {yes} above 127", _label(128), {0, WHITE, ONE_BIT, *ANY_GREY}),
}
ENCODING_OF_ONE_FILE = {
    **{ONE: "0/1", WHITE: "0/255", ONE | WHITE: "0/1/255", ONE_BIT: "0/255"},
    **dict.fromkeys(ANY_GREY, "grey"),
}
# Files that are evidence for an encoding. 0 and 255 alone are no evidence for "no" and "not known".
SUPPORTS = {
    "0/255": {WHITE, ONE_BIT},
    "0/1": {ONE, ONE_BIT},
    "0/1/255": {ONE, ONE | WHITE, ONE_BIT},
    "grey": {WHITE, ONE_BIT, *ANY_GREY},
}


def kinds_of_values(pixels: np.ndarray, one_bit: bool) -> int:
    """Return the kinds of values of pixels (H, W) uint8 besides 0.

    A sum of `ONE`, `WHITE` and `BETWEEN`, or `ONE_BIT`.
    """
    return ONE_BIT if one_bit else int(np.bitwise_or.reduce(cv2.LUT(pixels, KIND_OF_BYTE), axis=None))


def format_values(pixels: np.ndarray) -> str:
    """List the values that occur, for messages."""
    values = [str(value) for value in np.unique(pixels)]
    return ", ".join(values[:6] if len(values) <= 6 else [*values[:5], "...", values[-1]])


def infer_encoding(name: str, files: Iterable[tuple[str, np.ndarray, bool]]) -> str:
    """Infer the key of `ENCODINGS` that fits a data set from some of its files.

    Reads more than `ENOUGH_FILES` files only while all of them are 0 everywhere.

    Args:
      name: of the task.
      files: (source, pixels, whether it has one bit per pixel) of label files, in an order that mixes them.

    Raises:
      UserError: if no encoding fits, or several do.
    """
    first: dict[int, tuple[str, str]] = {}  # {kinds of values: (source, values) of the first such file}
    count: collections.Counter[int] = collections.Counter()
    levels: set[int] = set()
    seen = 0
    for number, (source, pixels, one_bit) in enumerate(files):
        if count and (number >= ENOUGH_FILES or seen >= ENOUGH_PIXELS):
            break
        seen += pixels.size
        held = kinds_of_values(pixels, one_bit)
        if not held:
            continue
        count[held] += 1
        first.setdefault(held, (source, format_values(pixels)))
        if held & BETWEEN:
            levels |= set(np.unique(pixels).tolist())
    if not count:
        return "0/255"
    candidates = {ENCODING_OF_ONE_FILE[held] for held in count}
    if len(levels) < MIN_GREY_LEVELS or max(levels) <= 127:
        candidates.discard("grey")
    remedy = "labels.json of the data set can say what they mean"
    if not candidates:
        source, values = next(iter(first.values()))
        raise UserError(
            f"{source}: {name} has the values {values}; "
            f"expected 0 and 255, or 0 and 1, or 0, 1 and 255 for not known; {remedy}"
        )
    votes = {key: sum(count[held] for held in SUPPORTS[key]) for key in ENCODINGS if key in candidates}
    best = max(votes, key=lambda key: votes[key])
    others = [held for held in count if held not in ENCODINGS[best].accepts]
    if sum(count[held] for held in others) > MAX_DEVIATING_SHARE * count.total():
        source, values = first[others[0]]
        fitting, usual = next(first[held] for held in count if held in ENCODINGS[best].accepts)
        raise UserError(
            f"{source}: {name} has the values {values}, but {fitting} has {usual}; "
            f"expected one meaning for all; {remedy}"
        )
    return best
