"""Time of day of a scene: day for pre-training; evening, new to the pre-trained Swin, for the demo."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class TimeOfDay:
    """Differences of light and camera from a clear day. Colours are linear RGB (3,)."""

    rise: float  # factor of the angle of sun or lamp above the horizon
    lamp: np.ndarray  # factor of the colour of sun or lamp
    around: np.ndarray  # factor of the ambient colour
    hues: tuple[float, float]  # range of the sky's hue, in turns
    clouds: tuple[float, float, float]
    haze: np.ndarray  # colour at the horizon
    exposure: float
    grain: tuple[float, float]  # sensor noise, in grey and per colour: standard deviations in units of 1/255


DAY = TimeOfDay(
    rise=1.0,
    lamp=np.ones(3),
    around=np.ones(3),
    hues=(0.54, 0.62),
    clouds=(0.85, 0.87, 0.9),
    haze=np.array([0.78, 0.85, 0.92]),
    exposure=1.6,
    grain=(1.6, 0.8),
)
EVENING = TimeOfDay(
    rise=0.45,
    lamp=np.array([1.05, 0.5, 0.2]),
    around=np.array([0.26, 0.28, 0.5]),
    hues=(0.68, 0.8),
    clouds=(0.8, 0.3, 0.16),
    haze=np.array([1.0, 0.42, 0.14]),
    exposure=1.2,
    grain=(6.0, 3.0),
)
