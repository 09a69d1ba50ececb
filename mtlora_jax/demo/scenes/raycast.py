"""Finds the first solid along each ray, and its surface there."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from mtlora_jax.demo.scenes.camera import Camera
from mtlora_jax.demo.scenes.solids import Placed, Thing

NOTHING = -1


@dataclasses.dataclass(frozen=True, eq=False)
class Hits:
    """Per ray (N,): the depth in metres along the optical axis, the number of the solid, and its face.

    The sky has infinite depth and the number -1.
    """

    depth: np.ndarray
    owner: np.ndarray
    face: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Surfaces:
    """Per ray: points and unit normals (3, N) in the world, albedo (3, N), gloss (N,). The sky has zero normals."""

    points: np.ndarray
    normals: np.ndarray
    albedo: np.ndarray
    gloss: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Stage:
    """The things of a scene as one numbered list of solids. Thing 0 is the backdrop."""

    things: tuple[Thing, ...]
    solids: tuple[Placed, ...]
    instance: np.ndarray  # (solids + 1,) number of the thing of each solid; the last entry, index -1, is the sky's

    @classmethod
    def of(cls, things: Sequence[Thing]) -> "Stage":
        solids = tuple(solid for thing in things for solid in thing.placed_solids)
        numbers = [number for number, thing in enumerate(things) for _ in thing.solids]
        return cls(tuple(things), solids, np.array([*numbers, 0], np.uint8))


def cast(stage: Stage, camera: Camera, u: np.ndarray, v: np.ndarray) -> tuple[Hits, np.ndarray]:
    """Casts rays through image points u, v (N,); returns the first hits and the directions (3, N)."""
    rays = camera.rays(u, v)
    depth, owner, face = np.full(u.size, np.inf), np.full(u.size, NOTHING, np.int16), np.zeros(u.size, np.int8)
    origin = camera.position[:, None]
    for number, solid in enumerate(stage.solids):
        left, right, top, bottom = camera.window(solid.corners)
        seen = np.flatnonzero((u >= left) & (u <= right) & (v >= top) & (v <= bottom))
        if not seen.size:
            continue
        distance, entered = solid.hit(origin, rays[:, seen])
        closer = distance < depth[seen]
        where = seen[closer]
        depth[where], owner[where], face[where] = distance[closer], number, entered[closer]
    return Hits(depth, owner, face), rays


def surfaces(stage: Stage, camera: Camera, hits: Hits, rays: np.ndarray) -> Surfaces:
    """Computes position, normal and material of the surfaces that were hit."""
    depth = np.where(np.isfinite(hits.depth), hits.depth, 0)
    points = camera.position[:, None] + depth * rays
    normals, albedo, gloss = np.zeros_like(points), np.zeros_like(points), np.zeros(depth.size)
    for number, where in _owners(hits.owner):
        solid = stage.solids[number]
        here, to_viewer = points[:, where], -rays[:, where]
        normals[:, where] = facing = solid.normal(here, hits.face[where])
        slant = (facing * to_viewer).sum(axis=0) / np.sqrt((to_viewer**2).sum(axis=0))
        albedo[:, where] = solid.albedo(here, depth[where] / camera.focal / np.maximum(slant, 0.15))
        gloss[where] = solid.solid.material.gloss
    return Surfaces(points, normals, albedo, gloss)


def lit(stage: Stage, points: np.ndarray, normals: np.ndarray, light: np.ndarray) -> np.ndarray:
    """Whether points (3, N) on surfaces see the distant light in direction `light` (3,): (N,) bool.

    Infinite solids cast no shadow: they are the walls of the room with the lamp.
    """
    free = (normals * light[:, None]).sum(axis=0) > 0
    start = points + 1e-3 * normals
    across = np.linalg.svd(light[None])[2][
        1:
    ]  # two axes of the plane in which the shadow of each solid has a bounding box
    plane = across @ start
    for solid in stage.solids:
        corners = solid.corners
        if corners is None:
            continue
        shade = across @ corners
        (left, bottom), (right, top) = shade.min(axis=1), shade.max(axis=1)
        inside = (plane[0] >= left) & (plane[0] <= right) & (plane[1] >= bottom) & (plane[1] <= top)
        where = np.flatnonzero(inside & free)
        if where.size:
            distance, _ = solid.hit(start[:, where], np.repeat(light[:, None], where.size, axis=1))
            free[where[np.isfinite(distance)]] = False
    return free


def _owners(owner: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yields the number of each solid that was hit, and the indices (K,) of its rays."""
    order = np.argsort(owner, kind="stable")
    numbers, starts = np.unique(owner[order], return_index=True)
    for number, start, end in zip(numbers.tolist(), starts, [*starts[1:], owner.size], strict=False):
        if number != NOTHING:
            yield number, order[start:end]
