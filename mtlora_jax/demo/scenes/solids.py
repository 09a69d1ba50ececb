"""Solids (shapes with a place and a material), and things made of them.

Lengths are in metres; x is right, y up, z towards the viewer.
"""

import dataclasses
import functools
from collections.abc import Iterable, Sequence

import numpy as np
from scipy.spatial import ConvexHull

from mtlora_jax.demo.scenes.shapes import Ball, Frustum, Hit, Polytope, Ring, RoundCone, Shape
from mtlora_jax.demo.scenes.textures import Material

Point = Sequence[float] | np.ndarray

AXES = np.concatenate([np.eye(3), -np.eye(3)])


@dataclasses.dataclass(frozen=True, eq=False)
class Frame:
    """The affine map p -> `linear` @ p + `offset` from an inner frame to an outer one."""

    linear: np.ndarray  # (3, 3)
    offset: np.ndarray  # (3,)

    def __matmul__(self, inner: "Frame") -> "Frame":
        return Frame(self.linear @ inner.linear, self.linear @ inner.offset + self.offset)

    def inverse(self) -> "Frame":
        inverse = np.linalg.inv(self.linear)
        return Frame(inverse, -inverse @ self.offset)

    def points(self, points: np.ndarray) -> np.ndarray:
        """Maps points (3, N) to (3, N)."""
        return self.linear @ points + self.offset[:, None]


IDENTITY = Frame(np.eye(3), np.zeros(3))


@dataclasses.dataclass(frozen=True, eq=False)
class Solid:
    """One shape of a thing; `part` is its PASCAL-Part name on people, `stuff` its context class in a backdrop."""

    shape: Shape
    frame: Frame  # shape -> thing
    material: Material
    part: str = ""
    stuff: str = ""

    @property
    def plane(self) -> tuple[np.ndarray, float] | None:
        """(normal (3,), offset) of a half-space made by `half_space`, else None."""
        shape = self.shape
        if isinstance(shape, Polytope) and shape.corners is None:
            return shape.normals[0], float(shape.offsets[0])
        return None


@dataclasses.dataclass(frozen=True, eq=False)
class Placed:
    """A solid in the world."""

    solid: Solid
    outer: Frame  # thing -> world

    @functools.cached_property
    def inverse(self) -> Frame:
        """World -> shape."""
        return (self.outer @ self.solid.frame).inverse()

    @functools.cached_property
    def corners(self) -> np.ndarray | None:
        """Points (3, K) around the solid in the world; None if it is infinite."""
        corners = self.solid.shape.corners
        return None if corners is None else (self.outer @ self.solid.frame).points(corners)

    def hit(self, origin: np.ndarray, direction: np.ndarray) -> Hit:
        """As `Shape.hit`, for rays in the world."""
        return self.solid.shape.hit(self.inverse.points(origin), self.inverse.linear @ direction)

    def normal(self, points: np.ndarray, faces: np.ndarray) -> np.ndarray:
        """Outward unit normals (3, N) in the world, at points of the given faces."""
        normals = self.inverse.linear.T @ self.solid.shape.normal(self.inverse.points(points), faces)
        return normals / np.sqrt((normals**2).sum(axis=0))

    def albedo(self, points: np.ndarray, footprint: np.ndarray) -> np.ndarray:
        """Colour (3, N), linear RGB; `footprint` (N,) is the size of a pixel there, in metres in the world."""
        scale = np.cbrt(abs(np.linalg.det(self.outer.linear)))
        return self.solid.material.albedo(self.outer.inverse().points(points), footprint / scale)


@dataclasses.dataclass(frozen=True, eq=False)
class Thing:
    """The solids of one object of VOC class `category`, or of a backdrop ("")."""

    category: str
    solids: tuple[Solid, ...]
    frame: Frame = IDENTITY  # thing -> world

    def placed(self, position: Point, yaw: float = 0.0, size: float = 1.0) -> "Thing":
        """Returns it scaled, turned about the vertical by `yaw` radians, and moved."""
        return dataclasses.replace(self, frame=Frame(size * turn(yaw=yaw), np.asarray(position, float)) @ self.frame)

    @property
    def placed_solids(self) -> list[Placed]:
        return [Placed(solid, self.frame) for solid in self.solids]

    @functools.cached_property
    def extent(self) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest corner (3,) of the box around it, in the world."""
        found = (solid.corners for solid in self.placed_solids)
        corners = np.concatenate([corners for corners in found if corners is not None], axis=1)
        return corners.min(axis=1), corners.max(axis=1)

    @functools.cached_property
    def radius(self) -> float:
        """Radius of a circle on the floor, around the origin of the thing, that covers most of it."""
        reach = np.max([np.abs(corner - self.frame.offset) for corner in self.extent], axis=0)
        return float(np.hypot(*reach[[0, 2]])) * 0.9

    def grounded(self) -> "Thing":
        """Returns it moved so that the boxes around its solids stand on y = 0."""
        lift = np.array([0, -self.extent[0][1], 0])
        return dataclasses.replace(self, frame=Frame(np.eye(3), lift) @ self.frame)


def turn(yaw: float = 0.0, pitch: float = 0.0, roll: float = 0.0) -> np.ndarray:
    """A rotation (3, 3): first `roll` about z, then `pitch` about x, then `yaw` about y; radians, right-handed."""
    (cy, sy), (cp, sp), (cr, sr) = ((np.cos(angle), np.sin(angle)) for angle in (yaw, pitch, roll))
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_x = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    about_z = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
    return about_y @ about_x @ about_z


def along(direction: Point) -> np.ndarray:
    """A rotation (3, 3) that takes the y axis to `direction` and keeps x as horizontal as possible."""
    y = np.asarray(direction, float) / np.linalg.norm(direction)
    z = np.cross([1.0, 0, 0] if abs(y[0]) < 0.9 else [0, 0, -1.0], y)
    z /= np.linalg.norm(z)
    return np.stack([np.cross(y, z), y, z], axis=1)


def ball(
    material: Material, centre: Point, radii: Point | float, rotation: np.ndarray | None = None, part: str = ""
) -> Solid:
    """An ellipsoid."""
    scale = np.diag(np.broadcast_to(np.asarray(radii, float), 3))
    linear = scale if rotation is None else rotation @ scale
    return Solid(Ball(), Frame(linear, np.asarray(centre, float)), material, part)


def rod(
    material: Material,
    start: Point,
    end: Point,
    bottom: float,
    top: float | None = None,
    flat: float = 1.0,
    part: str = "",
) -> Solid:
    """A limb with round ends, from radius `bottom` at `start` to `top` at `end`; `flat` scales its z."""
    start, end = np.asarray(start, float), np.asarray(end, float)
    length = float(np.linalg.norm(end - start))
    shape = RoundCone(bottom, bottom if top is None else top, length)
    return Solid(shape, Frame(along(end - start) @ np.diag([1, 1, flat]), start), material, part)


def tube(
    material: Material,
    start: Point,
    end: Point,
    bottom: float,
    top: float | None = None,
    flat: float = 1.0,
    part: str = "",
) -> Solid:
    """A cylinder or cone with flat ends; `flat` scales the z of its frame."""
    start, end = np.asarray(start, float), np.asarray(end, float)
    shape = Frustum(bottom, bottom if top is None else top, 0.0, float(np.linalg.norm(end - start)))
    return Solid(shape, Frame(along(end - start) @ np.diag([1, 1, flat]), start), material, part)


def ring(material: Material, centre: Point, axis: Point, inner: float, outer: float, width: float) -> Solid:
    """A tyre of the given width about `axis`."""
    return Solid(Ring(inner, outer, width / 2), Frame(along(axis), np.asarray(centre, float)), material)


def box(
    material: Material,
    centre: Point,
    size: Point,
    rotation: np.ndarray | None = None,
    bevel: float = 0.0,
    part: str = "",
    stuff: str = "",
) -> Solid:
    """A box of full side lengths `size`; `bevel` metres are cut off its edges."""
    half = np.asarray(size, float) / 2
    corners = np.array([(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]).T * half[:, None]
    normals, offsets = AXES, np.concatenate([half, half])
    if bevel:
        signs = [(x, y, z) for x in (-1, 0, 1) for y in (-1, 0, 1) for z in (-1, 0, 1)]
        edges = np.array([sign for sign in signs if np.abs(sign).sum() == 2])
        normals, offsets = np.concatenate([normals, edges]), np.concatenate([offsets, np.abs(edges) @ half - bevel])
    frame = Frame(np.eye(3) if rotation is None else rotation, np.asarray(centre, float))
    return Solid(Polytope(normals.astype(float), offsets, corners), frame, material, part, stuff)


def hull(material: Material, points: Iterable[Point], stuff: str = "") -> Solid:
    """The convex hull of at least four points that do not lie in a plane."""
    corners = np.array([tuple(point) for point in points], float)
    faces = np.unique(ConvexHull(corners).equations.round(9), axis=0)
    return Solid(Polytope(faces[:, :3], -faces[:, 3], corners.T), IDENTITY, material, stuff=stuff)


def prism(
    material: Material, outline: Iterable[tuple[float, float]], low: float, high: float, narrow: float = 0.0
) -> Solid:
    """A convex outline in (x, y), extruded from z = `low` to `high`.

    Both ends of its upper half are moved inwards by `narrow` metres.
    """
    outline = list(outline)
    middle = (min(y for _, y in outline) + max(y for _, y in outline)) / 2
    ends = ((low, narrow), (high, -narrow))
    return hull(material, [(x, y, z + inwards * (y > middle)) for x, y in outline for z, inwards in ends])


def half_space(material: Material, normal: Point, offset: float, stuff: str) -> Solid:
    """All points p with `normal` . p <= `offset`: a floor, a wall."""
    normal = np.asarray(normal, float)
    length = np.linalg.norm(normal)
    return Solid(Polytope(normal[None] / length, np.array([offset / length])), IDENTITY, material, stuff=stuff)
