"""Legends of visualized labels and predictions."""

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np

from mtlora_jax.tasks.label_images import IGNORED_COLOUR
from mtlora_jax.tasks.losses import IGNORE

Colour = tuple[int, int, int]  # RGB
BAR_STEPS = 33  # colours in a colour bar


@dataclasses.dataclass(frozen=True)
class Legend:
    """Meaning of colours: named swatches, a colour bar, or both; empty if not known.

    Attributes:
      swatches: {name: colour}, in the order to show them.
      bar: colours, evenly spaced along the scale.
      ends: labels of the first and the last colour of the bar.
    """

    swatches: Mapping[str, Colour] = dataclasses.field(default_factory=dict)
    bar: tuple[Colour, ...] = ()
    ends: tuple[str, str] = ("", "")


def pixel_colours(image: np.ndarray) -> tuple[Colour, ...]:
    """Return the pixels of an RGB image (H, W, 3), row by row."""
    return tuple((int(red), int(green), int(blue)) for red, green, blue in image.reshape(-1, 3))


def ignored_swatch(shown: Iterable[np.ndarray]) -> dict[str, Colour]:
    """Return the swatch of ignored pixels if any of the values `shown` is `IGNORE`."""
    return {"ignored": IGNORED_COLOUR} if any(np.any(values == IGNORE) for values in shown) else {}
