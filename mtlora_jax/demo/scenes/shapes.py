"""Analytic shapes, each in its own frame, and their intersection with rays.

Points and directions are (3, N) float64, rows x, y, z. `hit` returns, per ray, the smallest distance above `NEAR` at
which the ray enters the shape, and the number of the face. The distance is in units of the direction's length, and
infinite if the ray misses the shape or starts inside it. `normal` returns the outward normals, of any length, at points
of given faces.
"""

import dataclasses
from typing import Protocol

import numpy as np

NEAR = 1e-4

# A ray along a surface divides by zero. The resulting infinity or NaN fails every comparison, so the ray misses.
quiet = np.errstate(divide="ignore", invalid="ignore")

Hit = tuple[np.ndarray, np.ndarray]  # (N,) float64 distance, (N,) int8 face


class Shape(Protocol):
    """The interface of shapes."""

    @property
    def corners(self) -> np.ndarray | None:
        """Points (3, K) whose convex hull contains the shape; None if it is infinite."""
        ...

    def hit(self, origin: np.ndarray, direction: np.ndarray) -> Hit: ...

    def normal(self, points: np.ndarray, faces: np.ndarray) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class Ball:
    """Points within `radius` of (0, `height`, 0)."""

    radius: float = 1.0
    height: float = 0.0

    @property
    def corners(self) -> np.ndarray:
        return _block(self.radius, self.height - self.radius, self.height + self.radius)

    @quiet
    def hit(self, origin: np.ndarray, direction: np.ndarray) -> Hit:
        x, y, z = origin[0], origin[1] - self.height, origin[2]
        near, _ = _roots(
            _dot(direction, direction), _dot((x, y, z), direction), _dot((x, y, z), (x, y, z)) - self.radius**2
        )
        return np.where(near > NEAR, near, np.inf), np.zeros(near.shape, np.int8)

    def normal(self, points: np.ndarray, faces: np.ndarray) -> np.ndarray:
        del faces
        return points - np.array([[0], [self.height], [0]])


@dataclasses.dataclass(frozen=True)
class Frustum:
    """The solid between two discs around the y axis: radius `bottom` at y = `low`, `top` at y = `high`.

    Faces: 0 side, 1 lower disc, 2 upper disc. With `open_ended`, there are no discs.
    """

    bottom: float
    top: float
    low: float = 0.0
    high: float = 1.0
    open_ended: bool = False

    @property
    def corners(self) -> np.ndarray:
        return _block(max(self.bottom, self.top), self.low, self.high)

    @property
    def slope(self) -> float:
        return (self.top - self.bottom) / (self.high - self.low)

    @quiet
    def hit(self, origin: np.ndarray, direction: np.ndarray) -> Hit:
        (x, y, z), (dx, dy, dz), slope = origin, direction, self.slope
        radius = self.bottom + slope * (y - self.low)  # of the cone at the origin's height
        candidates = []
        for root in _roots(
            dx * dx + dz * dz - (slope * dy) ** 2, x * dx + z * dz - slope * dy * radius, x * x + z * z - radius**2
        ):
            height = y + root * dy
            candidates.append(np.where((root > NEAR) & (height >= self.low) & (height <= self.high), root, np.inf))
        side = np.minimum(*candidates)
        if self.open_ended:
            return side, np.zeros(side.shape, np.int8)
        return _first(
            side,
            _disc(origin, direction, self.low, 0, self.bottom, facing=-1),
            _disc(origin, direction, self.high, 0, self.top, facing=1),
        )

    def normal(self, points: np.ndarray, faces: np.ndarray) -> np.ndarray:
        x, _, z = points
        radius = np.hypot(x, z)
        side = np.stack([x, -self.slope * radius, z])
        caps = np.stack([0 * x, np.where(faces == 1, -1.0, 1.0), 0 * x])
        return np.where(faces == 0, side, caps)


@dataclasses.dataclass(frozen=True)
class RoundCone:
    """A tapered limb: the convex hull of two balls.

    Their radii are `bottom` at the origin and `top` at (0, `length`, 0), where |`bottom` - `top`| < `length`. Faces:
    0 side, 1 first ball, 2 second ball.
    """

    bottom: float
    top: float
    length: float

    @property
    def corners(self) -> np.ndarray:
        return _block(max(self.bottom, self.top), -self.bottom, self.length + self.top)

    @property
    def parts(self) -> tuple[Frustum, Ball, Ball]:
        sine = (self.bottom - self.top) / self.length  # of the angle between side and axis
        cosine = np.sqrt(1 - sine**2)
        low, high = self.bottom * sine, self.length + self.top * sine
        side = Frustum(self.bottom * cosine, self.top * cosine, low, high, open_ended=True)
        return side, Ball(self.bottom), Ball(self.top, self.length)

    def hit(self, origin: np.ndarray, direction: np.ndarray) -> Hit:
        return _first(*(part.hit(origin, direction)[0] for part in self.parts))

    def normal(self, points: np.ndarray, faces: np.ndarray) -> np.ndarray:
        return np.choose(faces, [part.normal(points, np.zeros_like(faces)) for part in self.parts])


@dataclasses.dataclass(frozen=True)
class Ring:
    """A flat tyre around the y axis: `inner` < radius < `outer`, |y| < `half`.

    Faces: 0 outer side, 1 inner side, 2 bottom, 3 top.
    """

    inner: float
    outer: float
    half: float

    @property
    def corners(self) -> np.ndarray:
        return _block(self.outer, -self.half, self.half)

    @quiet
    def hit(self, origin: np.ndarray, direction: np.ndarray) -> Hit:
        (x, y, z), (dx, dy, dz) = origin, direction
        a, b, c = dx * dx + dz * dz, x * dx + z * dz, x * x + z * z
        sides = [_roots(a, b, c - self.outer**2)[0], _roots(a, b, c - self.inner**2)[1]]
        sides = [np.where((root > NEAR) & (np.abs(y + root * dy) <= self.half), root, np.inf) for root in sides]
        discs = [_disc(origin, direction, side * self.half, self.inner, self.outer, facing=side) for side in (-1, 1)]
        return _first(*sides, *discs)

    def normal(self, points: np.ndarray, faces: np.ndarray) -> np.ndarray:
        x, _, z = points
        radial = np.choose(faces, [1.0, -1.0, 0.0, 0.0])
        return np.stack([radial * x, np.choose(faces, [0.0, 0.0, -1.0, 1.0]), radial * z])


@dataclasses.dataclass(frozen=True, eq=False)
class Polytope:
    """The points p with `normals` @ p <= `offsets`: a box, a prism, a half-space.

    normals (F, 3) and offsets (F,) have one row per face.
    """

    normals: np.ndarray
    offsets: np.ndarray
    corners: np.ndarray | None = None

    @quiet
    def hit(self, origin: np.ndarray, direction: np.ndarray) -> Hit:
        entry, leaving, face = np.full(direction.shape[1], -np.inf), np.inf, np.zeros(direction.shape[1], np.int8)
        speeds, gaps = self.normals @ direction, self.offsets[:, None] - self.normals @ origin
        # One face at a time, since arrays of all faces would not fit into the cache.
        for number, (speed, gap) in enumerate(zip(speeds, gaps, strict=True)):
            crossing = gap / speed
            later = (speed < 0) & (crossing > entry)
            np.copyto(entry, crossing, where=later)
            np.copyto(face, np.int8(number), where=later)
            outside = np.where((speed == 0) & (gap < 0), -np.inf, np.inf)  # parallel to the face
            leaving = np.minimum(leaving, np.where(speed > 0, crossing, outside))
        return np.where((entry > NEAR) & (entry < leaving), entry, np.inf), face

    def normal(self, points: np.ndarray, faces: np.ndarray) -> np.ndarray:
        del points
        return self.normals[faces].T


def _dot(a, b) -> np.ndarray:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _roots(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both roots of a t^2 + 2 b t + c; infinite if there is none."""
    discriminant = b * b - a * c
    root = np.sqrt(np.maximum(discriminant, 0))
    near, far = (-b - root) / a, (-b + root) / a
    missed = ~(discriminant > 0)
    return np.where(missed, np.inf, near), np.where(missed, np.inf, far)


def _disc(
    origin: np.ndarray, direction: np.ndarray, height: float, inner: float, outer: float, facing: int
) -> np.ndarray:
    """Distance to the disc or annulus at y = `height`, for rays that come from its `facing` side."""
    distance = (height - origin[1]) / direction[1]
    square = (origin[0] + distance * direction[0]) ** 2 + (origin[2] + distance * direction[2]) ** 2
    inside = (distance > NEAR) & (facing * direction[1] < 0) & (square <= outer**2) & (square >= inner**2)
    return np.where(inside, distance, np.inf)


def _first(*distances: np.ndarray) -> Hit:
    nearest, face = distances[0], np.zeros(distances[0].shape, np.int8)
    for number, distance in enumerate(distances[1:], start=1):
        closer = distance < nearest
        nearest = np.where(closer, distance, nearest)
        face[closer] = number
    return nearest, face


def _block(radius: float, low: float, high: float) -> np.ndarray:
    """Corners (3, 8) of the box around a solid of revolution about the y axis."""
    return np.array([(x, y, z) for x in (-radius, radius) for y in (low, high) for z in (-radius, radius)]).T
