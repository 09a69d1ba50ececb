"""Light and shadow: the colours of lit surfaces."""

import dataclasses

import cv2
import numpy as np

from mtlora_jax.demo.scenes.camera import Camera
from mtlora_jax.demo.scenes.raycast import Stage, Surfaces, cast, surfaces
from mtlora_jax.demo.scenes.textures import Material
from mtlora_jax.demo.scenes.time_of_day import DAY, TimeOfDay

COARSE = 4  # pixels between the points where the ambient occlusion of the backdrop is computed


@dataclasses.dataclass(frozen=True, eq=False)
class Light:
    """One distant lamp or sun, and ambient light. Colours are linear RGB (3,)."""

    direction: np.ndarray  # (3,) unit, towards the lamp
    colour: np.ndarray
    above: np.ndarray  # ambient light of ceiling or sky
    below: np.ndarray  # light that the floor reflects
    softness: float  # of shadows, as a fraction of the height of the picture
    sky: Material  # for rays that hit nothing
    time_of_day: TimeOfDay = DAY


def shade(light: Light, surface: Surfaces, rays: np.ndarray, direct: np.ndarray, ambient: np.ndarray) -> np.ndarray:
    """Computes linear RGB (3, N) from Lambert's law, a highlight, and light from above and below.

    `direct` and `ambient` (N,) are the fractions in [0, 1] of either light that reach the points.
    """
    normals = surface.normals
    towards = -rays / np.sqrt((rays**2).sum(axis=0))
    half = towards + light.direction[:, None]
    half /= np.sqrt((half**2).sum(axis=0)) + 1e-9
    facing = np.maximum((normals * light.direction[:, None]).sum(axis=0), 0) * direct
    shine = surface.gloss * np.maximum((normals * half).sum(axis=0), 0) ** 40 * direct
    up = 0.5 + 0.5 * normals[1]
    around = light.below[:, None] + (light.above - light.below)[:, None] * up
    colour = surface.albedo * (around * ambient + light.colour[:, None] * facing) + light.colour[:, None] * shine
    open_sky = ~normals.any(axis=0)
    colour[:, open_sky] = _sky(light, rays[:, open_sky])
    return colour


def _sky(light: Light, rays: np.ndarray) -> np.ndarray:
    unit = rays / np.sqrt((rays**2).sum(axis=0))
    height = np.maximum(unit[1], 0.0)
    plane = np.stack([unit[0], 2.5 * height, unit[2]])
    paint = light.sky.albedo(plane, np.zeros(height.size))
    haze = 0.75 * np.exp(-8 * height)
    return paint + haze * (light.time_of_day.haze[:, None] - paint)


def soften(direct: np.ndarray, instance: np.ndarray, count: int, sigma: float) -> np.ndarray:
    """Blurs shadows (H, W) within each instance; returns (count, H, W), extended a little beyond its borders."""
    fields = np.empty((count, *direct.shape), np.float32)
    for number in range(count):
        own = (instance == number).astype(np.float32)
        spread = sigma if number == 0 else sigma / 2
        weight = cv2.GaussianBlur(own, (0, 0), spread)
        fields[number] = cv2.GaussianBlur(own * direct, (0, 0), spread) / np.maximum(weight, 1e-4)
    return np.clip(fields, 0, 1)


def backdrop_occlusion(stage: Stage, camera: Camera) -> np.ndarray:
    """Computes the fraction of ambient light (H, W) that reaches the backdrop near things and in corners."""
    height, width = camera.size
    rows, columns = -(-height // COARSE), -(-width // COARSE)
    y, x = (np.arange(rows) + 0.5) * height / rows, (np.arange(columns) + 0.5) * width / columns
    v, u = np.meshgrid(y, x, indexing="ij")
    room = Stage.of(stage.things[:1])
    hits, rays = cast(room, camera, u.ravel(), v.ravel())
    found = surfaces(room, camera, hits, rays)
    share = np.ones(u.size)
    for solid in stage.solids[len(room.solids) :]:
        if (corners := solid.corners) is None:
            continue
        radius = 0.5 * np.cbrt(np.prod(np.ptp(corners, axis=1)))
        offset = corners.mean(axis=1)[:, None] - found.points
        square = (offset**2).sum(axis=0) + 1e-6
        facing = np.maximum((offset * found.normals).sum(axis=0) / np.sqrt(square), 0)
        share *= 1 - 0.65 * np.minimum(radius**2 / square, 1) * facing
    for normal, offset in (plane for solid in room.things[0].solids if (plane := solid.plane) is not None):
        own = normal @ found.normals > 0.99
        share *= np.where(own, 1, 1 - 0.3 * np.exp(-np.abs(normal @ found.points - offset) / 0.35))
    return cv2.resize(share.reshape(rows, columns).astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)


def develop(colour: np.ndarray, time_of_day: TimeOfDay, rng: np.random.Generator) -> np.ndarray:
    """Turns linear RGB (H, W, 3) into uint8: soft clipping, a slight vignette, gamma and sensor noise."""
    height, width = colour.shape[:2]
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    exposed = 1 - np.exp(-time_of_day.exposure * np.maximum(colour, 0) * (1 - 0.12 * (x * x + y * y))[..., None])
    grey, coloured = time_of_day.grain
    grain = rng.normal(0, grey, (height, width, 1)) + rng.normal(0, coloured, (height, width, 3))
    return np.clip(np.rint(255 * exposed ** (1 / 2.2) + grain), 0, 255).astype(np.uint8)
