"""Surface patterns: the mix of the two colours of a material."""

import dataclasses
from collections.abc import Callable

import cv2
import numpy as np
from scipy import ndimage

# One lattice of random numbers is the source of all noise, which is read at different places.
LATTICE = ndimage.gaussian_filter(np.random.default_rng(2024).random((48, 48, 48)), 0.6, mode="wrap")
LATTICE = ((LATTICE - LATTICE.min()) / (LATTICE.max() - LATTICE.min())).astype(np.float32)


def noise(points: np.ndarray, octaves: int = 3) -> np.ndarray:
    """Smooth noise (N,) in [0, 1] at points (3, N), with about one bump per unit."""
    total, weight = np.zeros(points.shape[1], np.float32), 0.0
    for octave in range(octaves):
        share = 0.5**octave
        where = points * 2**octave + 7.3 * octave
        total += share * ndimage.map_coordinates(LATTICE, where, order=1, mode="grid-wrap", prefilter=False)
        weight += share
    return np.clip(1.7 * (total / weight - 0.5) + 0.5, 0, 1)


def _step(distance: np.ndarray, width: np.ndarray) -> np.ndarray:
    """1 where `distance` is positive, 0 where negative, with a ramp as wide as the footprint of a pixel."""
    return np.clip(distance / np.maximum(width, 1e-6) + 0.5, 0, 1)


def _wave(position: np.ndarray, width: np.ndarray, share: float = 0.5) -> np.ndarray:
    """Bands of period 1, of which the fraction `share` is 1; grey where a band is narrower than a pixel."""
    band = _step(share / 2 - np.abs((position % 1) - 0.5), width)
    return band + (share - band) * np.clip(2 * width - 0.5, 0, 1)


def _plain(p, width):
    del width
    return np.zeros(p.shape[1])


def _stripes(p, width):
    return _wave(p[0], width)


def _checks(p, width):
    a, b, c = (2 * _wave(axis, width) - 1 for axis in p)
    return 0.5 + 0.5 * a * b * c


def _dots(p, width):
    cell = (p % 1) - 0.5
    return _step(0.3 - np.sqrt((cell**2).sum(axis=0)), width) * np.clip(1.5 - width, 0, 1)


def _plaid(p, width):
    return 0.4 * _wave(p[0], width) + 0.4 * _wave(p[1], width) + 0.2 * _wave(3 * p[2], 3 * width, 0.2)


def _grain(p, width):
    del width
    return noise(np.stack([12 * p[0], 1.2 * p[1], 12 * p[2]]), 2)


def _planks(p, width):
    row = np.floor(p[0])
    along = p[1] / 5 + 0.37 * row
    seam = np.maximum(1 - _wave(p[0] + 0.5, width, 0.96), 1 - _wave(along, width / 5, 0.99))
    tone = noise(np.stack([row * 1.7 + 0.5, np.floor(along) * 2.3 + 0.5, 0 * row]), 1)
    return np.clip(0.5 * tone + 0.35 * noise(np.stack([5 * p[0], 0.7 * p[1] + 3.1 * row, p[2]]), 2) + 0.5 * seam, 0, 1)


def _bricks(p, width):
    row = np.floor(p[1])
    along = p[0] / 2.4 + 0.5 * (row % 2)
    mortar = np.maximum(1 - _wave(p[1], width, 0.88), 1 - _wave(along, width / 2.4, 0.95))
    tone = noise(np.stack([np.floor(along) * 3.1, row * 2.7, 0 * row]), 1)
    return np.clip(mortar + 0.35 * (1 - mortar) * tone, 0, 1)


def _tiles(p, width):
    seam = np.maximum(1 - _wave(p[0], width, 0.95), 1 - _wave(p[1], width, 0.95))
    tone = noise(np.stack([np.floor(p[0]) * 3.3, np.floor(p[1]) * 2.1, 0 * p[0]]), 1)
    return np.clip(0.7 * seam + 0.2 * tone, 0, 1)


def _speckle(p, width):
    return noise(p, 3) * np.clip(1.6 - width, 0, 1) + 0.5 * np.clip(width - 0.6, 0, 1)


def _blotches(p, width):
    return _step(noise(p, 2) - 0.55, np.maximum(2 * width, 0.06))


def _clouds(p, width):
    del width
    return noise(p, 4)


PATTERNS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "plain": _plain,
    "stripes": _stripes,
    "checks": _checks,
    "dots": _dots,
    "plaid": _plaid,
    "grain": _grain,
    "planks": _planks,
    "bricks": _bricks,
    "tiles": _tiles,
    "speckle": _speckle,
    "blotches": _blotches,
    "clouds": _clouds,
}


@dataclasses.dataclass(frozen=True, eq=False)
class Material:
    """Two colours (linear RGB in [0, 1]) and the pattern that mixes them.

    `axes` (3, 3) and `shift` (3,) map a point of the object, in metres, to the coordinates of the pattern, whose period
    is about 1. `gloss` is the strength of the highlight.
    """

    colour: tuple[float, float, float]
    second: tuple[float, float, float] = (1.0, 1.0, 1.0)
    pattern: str = "plain"
    axes: np.ndarray = dataclasses.field(default_factory=lambda: np.eye(3))
    shift: np.ndarray = dataclasses.field(default_factory=lambda: np.full(3, 0.25))
    gloss: float = 0.1

    def albedo(self, points: np.ndarray, footprint: np.ndarray) -> np.ndarray:
        """Colour (3, N) at points (3, N) of the object; `footprint` (N,) is the size of a pixel there, in metres."""
        first = np.array(self.colour)[:, None]
        if self.pattern == "plain":
            return np.repeat(first, points.shape[1], axis=1)
        scale = np.linalg.norm(self.axes, 2)
        mix = PATTERNS[self.pattern](self.axes @ points + self.shift[:, None], footprint * scale)
        return first + (np.array(self.second)[:, None] - first) * mix


def hsv(hue: float, saturation: float, value: float) -> tuple[float, float, float]:
    """Converts a gamma-encoded HSV colour to linear RGB: hue in turns, saturation and value in [0, 1]."""
    pixel = np.array([[[360 * (hue % 1), saturation, value]]], np.float32)
    red, green, blue = (cv2.cvtColor(pixel, cv2.COLOR_HSV2RGB)[0, 0].astype(float) ** 2.2).tolist()
    return red, green, blue
