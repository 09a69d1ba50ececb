"""Renders a scene: the image and the exact labels of every task."""

import dataclasses

import cv2
import numpy as np

from mtlora_jax.demo.scenes.camera import Camera
from mtlora_jax.demo.scenes.class_names import CONTEXT, VOC
from mtlora_jax.demo.scenes.compose import compose
from mtlora_jax.demo.scenes.lighting import Light, backdrop_occlusion, develop, shade, soften
from mtlora_jax.demo.scenes.raycast import Hits, Stage, Surfaces, cast, lit, surfaces
from mtlora_jax.demo.scenes.solids import Thing
from mtlora_jax.demo.scenes.time_of_day import DAY, TimeOfDay

VOID = 255
# A rotated grid, which smooths horizontal and vertical edges.
SUBPIXELS = ((-0.125, -0.375), (0.375, -0.125), (0.125, 0.375), (-0.375, 0.125))
NEIGHBOURS = ((np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:-1], np.s_[1:]))  # all pairs of left and right, upper and lower


@dataclasses.dataclass(frozen=True, eq=False)
class Scene:
    """A rendered scene; labels are those of the surface at the centre of each pixel.

    Attributes:
      image: (H, W, 3) uint8 RGB.
      instance: (H, W) uint8: 0 for the backdrop, k for the k-th of `objects`.
      semseg: (H, W) uint8: VOC class, 0 for the backdrop, 255 on the line between two instances.
      context: (H, W) uint16: class of PASCAL-Context.
      objects: (VOC class, mask (H, W) bool, {PASCAL-Part name: (H, W) bool} of people) per object.
      normals: (H, W, 3) float32, unit length: x right, y down, z towards the viewer; the sky faces the viewer.
      sal: (H, W) bool: the object with the largest visible area, weighted towards the centre of the picture.
      depth: (H, W) float32, metres along the optical axis; 0 for the sky.
    """

    image: np.ndarray
    instance: np.ndarray
    semseg: np.ndarray
    context: np.ndarray
    objects: list[tuple[int, np.ndarray, dict[str, np.ndarray]]]
    normals: np.ndarray
    sal: np.ndarray
    depth: np.ndarray


def render(seed: int, size: tuple[int, int] = (240, 320), time_of_day: TimeOfDay = DAY) -> Scene:
    """Renders the scene of a seed (a natural number) at `size` = (H, W) pixels; equal arguments give equal scenes."""
    rng = np.random.default_rng(seed)
    things, camera, light = compose(rng, size, time_of_day)
    return photograph(things, camera, light, rng)


def photograph(things: list[Thing], camera: Camera, light: Light, rng: np.random.Generator) -> Scene:
    """Renders `things`, the first of which is the backdrop. Hidden things are not among the objects."""
    height, width = camera.size
    v, u = np.mgrid[:height, :width] + 0.5
    stage = Stage.of(things)
    hits, rays = cast(stage, camera, u.ravel(), v.ravel())
    instance = stage.instance[hits.owner]
    seen = [0, *(number for number in range(1, len(things)) if np.any(instance == number))]
    if len(seen) < len(things):
        return photograph([things[number] for number in seen], camera, light, rng)

    surface = surfaces(stage, camera, hits, rays)
    colour = _colours(stage, camera, light, hits, rays, surface)
    instance = instance.reshape(height, width)
    owner = hits.owner.reshape(height, width)
    unseen = ~np.isfinite(hits.depth)
    # From world to camera, and from y up to y down.
    normals = np.diag([1.0, -1.0, 1.0]) @ camera.rotation.T @ surface.normals
    normals[:, unseen] = np.array([[0.0], [0.0], [1.0]])
    categories = np.array([VOC.get(thing.category, 0) for thing in things], np.uint8)
    return Scene(
        image=develop(colour, light.time_of_day, rng),
        instance=instance,
        semseg=np.where(_borders(instance), VOID, categories[instance]).astype(np.uint8),
        context=_context(stage)[owner],
        objects=[_object(stage, number, owner, instance) for number in seen[1:]],
        normals=normals.T.reshape(height, width, 3).astype(np.float32),
        sal=_salient(instance),
        depth=np.where(unseen, 0, hits.depth).reshape(height, width).astype(np.float32),
    )


def _colours(stage: Stage, camera: Camera, light: Light, hits: Hits, rays: np.ndarray, surface: Surfaces) -> np.ndarray:
    """Computes linear RGB (H, W, 3); pixels on outlines of faces are the mean of four points."""
    height, width = camera.size
    instance = stage.instance[hits.owner].reshape(height, width)
    direct = lit(stage, surface.points, surface.normals, light.direction).reshape(height, width)
    shadows = soften(direct, instance, len(stage.things), light.softness * height)
    occlusion = backdrop_occlusion(stage, camera)

    def ambient(owners, points, pixels):
        on_things = 1 - 0.45 * np.exp(-np.maximum(points[1], 0) / 0.22)
        return np.where(stage.instance[owners] == 0, occlusion.ravel()[pixels], on_things)

    def develop_rays(found, met, directions, pixels):
        share = shadows.reshape(len(stage.things), -1)[stage.instance[met.owner], pixels]
        return shade(light, found, directions, share, ambient(met.owner, found.points, pixels))

    colour = develop_rays(surface, hits, rays, np.arange(height * width))
    outline = np.flatnonzero(_outlines(hits, (height, width)))
    right, down = np.array(SUBPIXELS).T[..., None]
    u, v = (outline % width + 0.5 + right).ravel(), (outline // width + 0.5 + down).ravel()
    finer, directions = cast(stage, camera, u, v)
    found = surfaces(stage, camera, finer, directions)
    samples = develop_rays(found, finer, directions, np.tile(outline, len(SUBPIXELS)))
    colour[:, outline] = samples.reshape(3, len(SUBPIXELS), -1).mean(axis=1)
    return colour.T.reshape(height, width, 3)


def _outlines(hits: Hits, size: tuple[int, int]) -> np.ndarray:
    key = (hits.owner.astype(np.int32) * 128 + hits.face).reshape(size)
    changed = np.zeros(size, bool)
    for first, second in NEIGHBOURS:
        changed[first] |= key[first] != key[second]
        changed[second] |= key[first] != key[second]
    return changed


def _borders(instance: np.ndarray) -> np.ndarray:
    """Pixels whose right or lower neighbour belongs to another instance: a line one pixel wide."""
    border = np.zeros(instance.shape, bool)
    for first, second in NEIGHBOURS:
        border[first] |= instance[first] != instance[second]
    return border


def _context(stage: Stage) -> np.ndarray:
    """Context class of every solid; the last entry is the sky's."""
    names = [solid.stuff or thing.category for thing in stage.things for solid in thing.solids]
    return np.array([CONTEXT[name] for name in [*names, "sky"]], np.uint16)


def _object(
    stage: Stage, number: int, owner: np.ndarray, instance: np.ndarray
) -> tuple[int, np.ndarray, dict[str, np.ndarray]]:
    owners = [(index, solid) for index, thing in enumerate(stage.things) for solid in thing.solids]
    names = [solid.part if index == number else "" for index, solid in owners]
    parts = {}
    for part in sorted(set(names) - {""}):
        mask = np.isin(owner, [index for index, name in enumerate(names) if name == part])
        if mask.any():
            parts[part] = mask
    return VOC[stage.things[number].category], instance == number, parts


def _salient(instance: np.ndarray) -> np.ndarray:
    """The instance with the largest weight under a Gaussian at the centre, whose sigma is a third of the picture.

    Nothing is salient if there is only the backdrop.
    """
    height, width = instance.shape
    bell = np.outer(cv2.getGaussianKernel(height, 0.33 * height), cv2.getGaussianKernel(width, 0.33 * width))
    weights = np.bincount(instance.ravel(), bell.ravel(), minlength=2)
    weights[0] = 0
    return instance == weights.argmax() if weights.any() else np.zeros(instance.shape, bool)
