"""How to read the picture of a task."""

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np

from mtlora_jax.tasks.label_images import IGNORED_COLOUR
from mtlora_jax.tasks.losses import IGNORE

Colour = tuple[int, int, int]  # RGB
STEPS = 33  # colours of a bar


@dataclasses.dataclass(frozen=True)
class Legend:
    """What the colours of a picture mean: names of colours, a bar from one end of a scale to the other, or both. Empty: nothing is known.

    Attributes:
      swatches: {name: colour}, in the order in which they are to be shown.
      bar: colours, evenly spaced along the scale.
      ends: what the first and the last colour of the bar stand for.
    """

    swatches: Mapping[str, Colour] = dataclasses.field(default_factory=dict)
    bar: tuple[Colour, ...] = ()
    ends: tuple[str, str] = ("", "")


def colours(picture: np.ndarray) -> tuple[Colour, ...]:
    """The pixels of an RGB picture (H, W, 3), row by row."""
    return tuple((int(red), int(green), int(blue)) for red, green, blue in picture.reshape(-1, 3))


def ignored(shown: Iterable[np.ndarray]) -> dict[str, Colour]:
    """The swatch for what is ignored, if any of the values `shown` are."""
    return {"ignored": IGNORED_COLOUR} if any(np.any(values == IGNORE) for values in shown) else {}
