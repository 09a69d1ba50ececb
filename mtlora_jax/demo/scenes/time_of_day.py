"""When a scene is photographed: by day, as those of pre-training, or in the evening, as those of the demo, which the Swin never saw."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Hour:
    """How light and camera differ from those of a clear day. Colours are linear RGB (3,)."""

    rise: float  # the angle of sun or lamp over the horizon is multiplied by this
    lamp: np.ndarray  # the colour of sun or lamp is multiplied by this
    around: np.ndarray  # and that of the light from everywhere by this
    hues: tuple[float, float]  # of the sky, in turns
    clouds: tuple[float, float, float]
    haze: np.ndarray  # over the horizon
    exposure: float
    grain: tuple[float, float]  # of the sensor, in grey and in each colour: standard deviations in steps of 1/255


DAY = Hour(
    rise=1.0,
    lamp=np.ones(3),
    around=np.ones(3),
    hues=(0.54, 0.62),
    clouds=(0.85, 0.87, 0.9),
    haze=np.array([0.78, 0.85, 0.92]),
    exposure=1.6,
    grain=(1.6, 0.8),
)
EVENING = Hour(
    rise=0.45,
    lamp=np.array([1.05, 0.5, 0.2]),
    around=np.array([0.26, 0.28, 0.5]),
    hues=(0.68, 0.8),
    clouds=(0.8, 0.3, 0.16),
    haze=np.array([1.0, 0.42, 0.14]),
    exposure=1.2,
    grain=(6.0, 3.0),
)
