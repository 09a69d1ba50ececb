"""Composes a scene: the things and their places, the camera and the light."""

import dataclasses
from collections.abc import Callable

import numpy as np

from mtlora_jax.demo.scenes import animals, furniture, people, vehicles
from mtlora_jax.demo.scenes.backdrops import Bounds, outdoors, room
from mtlora_jax.demo.scenes.camera import Camera, look_at
from mtlora_jax.demo.scenes.lighting import Light
from mtlora_jax.demo.scenes.palette import Rng
from mtlora_jax.demo.scenes.solids import Thing
from mtlora_jax.demo.scenes.textures import Material, hsv
from mtlora_jax.demo.scenes.time_of_day import DAY, TimeOfDay

MAKERS: dict[str, Callable[[Rng], Thing]] = {
    "aeroplane": vehicles.aeroplane,
    "bicycle": vehicles.bicycle,
    "bird": animals.bird,
    "boat": vehicles.boat,
    "bottle": furniture.bottle,
    "bus": vehicles.bus,
    "car": vehicles.car,
    "cat": lambda rng: animals.quadruped(rng, "cat").placed((0, 0, 0), size=rng.uniform(1.2, 1.45)),
    "chair": furniture.chair,
    "cow": lambda rng: animals.quadruped(rng, "cow"),
    "diningtable": furniture.diningtable,
    "dog": lambda rng: animals.quadruped(rng, "dog").placed((0, 0, 0), size=rng.uniform(0.95, 1.3)),
    "horse": lambda rng: animals.quadruped(rng, "horse"),
    "motorbike": vehicles.motorbike,
    "person": people.person,
    "pottedplant": lambda rng: furniture.pottedplant(rng).placed((0, 0, 0), size=rng.uniform(0.9, 1.3)),
    "sheep": lambda rng: animals.quadruped(rng, "sheep").placed((0, 0, 0), size=rng.uniform(1.0, 1.2)),
    "sofa": furniture.sofa,
    "train": vehicles.train,
    "tvmonitor": furniture.tvmonitor,
}
INDOORS = (
    *("chair", "diningtable", "sofa", "tvmonitor", "pottedplant", "bottle"),
    *("dog", "cat", "bird", "bicycle", "person"),
)
OUTDOORS = (
    *("car", "bus", "train", "aeroplane", "boat", "bicycle", "motorbike", "cow", "horse", "sheep"),
    *("dog", "cat", "bird", "chair", "pottedplant", "bottle", "person"),
)
FRONTAL = ("chair", "sofa", "tvmonitor", "person")  # these face +z, the others look to the right
ON_TABLES = ("bottle", "bottle", "tvmonitor", "pottedplant", "cat", "bird")
TRIES = 40


@dataclasses.dataclass(frozen=True, eq=False)
class View:
    """The axes of the picture on the floor, around the target of the camera."""

    right: np.ndarray  # (3,) unit
    away: np.ndarray  # (3,) unit
    distance: float  # of the camera from the origin along `away`
    slope: float  # half the width of the picture at a distance of one

    def place(self, across: float, deep: float) -> np.ndarray:
        return across * self.right + deep * self.away


def compose(rng: Rng, size: tuple[int, int], time_of_day: TimeOfDay = DAY) -> tuple[list[Thing], Camera, Light]:
    """Returns (things, camera, light) for a picture of `size` = (H, W).

    The first of the things is the backdrop; the camera is directed at the second, which is always there.
    """
    star = _star(rng)
    inside = star in INDOORS and (star not in OUTDOORS or rng.random() < 0.6)
    hero = _posed(rng, star)
    camera, view = _camera(rng, hero, size, inside)
    things = _on_top(rng, hero)
    pool = INDOORS if inside else OUTDOORS
    names = list(rng.choice(pool, int(rng.integers(2, 5)), replace=False))
    if star != "person" and rng.random() < 0.5:
        names = ["person", *names[1:]]
    for name in names:
        other = _posed(rng, str(name))
        if (spot := _free_spot(rng, other, things, view)) is not None:
            things += _on_top(rng, other.placed(spot))
    lows, highs = zip(*(thing.extent for thing in things), strict=True)
    low, high = np.min(lows, axis=0), np.max(highs, axis=0)
    margin = rng.uniform(0.15, 1.2, 3)
    bounds = Bounds(
        left=min(low[0], camera.position[0]) - margin[0] - 0.2,
        right=max(high[0], camera.position[0]) + margin[1] + 0.2,
        back=low[2] - margin[2],
    )
    backdrop = room(rng, bounds) if inside else outdoors(rng, bounds)
    return [backdrop, *things], camera, _light(rng, view, inside, time_of_day)


def _star(rng: Rng) -> str:
    return "person" if rng.random() < 0.35 else str(rng.choice([name for name in MAKERS if name != "person"]))


def _posed(rng: Rng, name: str) -> Thing:
    """A new thing at the origin, turned so that it can be recognised."""
    yaw = rng.normal(0, 0.6)
    if name not in FRONTAL:
        yaw += rng.choice([0, np.pi])
    elif name in ("person", "chair") and rng.random() < 0.25:
        yaw += rng.uniform(0, 2 * np.pi)
    return MAKERS[name](rng).placed((0, 0, 0), yaw)


def _camera(rng: Rng, hero: Thing, size: tuple[int, int], inside: bool) -> tuple[Camera, View]:
    height, width = size
    low, high = hero.extent
    focal = max(height, width) / (2 * np.tan(rng.uniform(0.42, 0.56)))
    # Half of the pictures of a person are taken so close that they end at the waist or the knees.
    portrait = hero.category == "person" and rng.random() < 0.5
    share = rng.uniform(1.05, 1.6) if portrait else rng.uniform(0.7, 0.95)
    for_height = (high[1] - low[1]) * focal / (share * height)
    for_width = (high[0] - low[0]) * focal / (share * width) + 0.7 * high[2]
    distance = max(for_height, for_width, 1.4)
    yaw, pitch = rng.uniform(-0.6, 0.6), rng.uniform(0.06, 0.42)
    target = np.array([0, (0.68 if portrait else 0.45) * high[1] + rng.uniform(0, 0.2), 0])
    away, right = np.array([-np.sin(yaw), 0, -np.cos(yaw)]), np.array([np.cos(yaw), 0, -np.sin(yaw)])
    if inside:
        pitch = min(pitch, np.arcsin(min((2.4 - target[1]) / distance, 0.9)))
    target = target + rng.normal(0, 0.05) * distance * right
    camera = look_at(target, distance, yaw, pitch, rng.normal(0, 0.02), focal, size)
    return camera, View(right, away, distance * np.cos(pitch), width / 2 / focal)


def _on_top(rng: Rng, thing: Thing) -> list[Thing]:
    """The thing, and whatever stands or sits on it."""
    place, (_, high) = thing.frame.offset, thing.extent
    yaw = float(np.arctan2(thing.frame.linear[0, 2], thing.frame.linear[2, 2]))
    if thing.category == "diningtable" and rng.random() < 0.75:
        spots = rng.permutation([-0.32, 0.0, 0.32])[: rng.integers(1, 4)]
        shelf = [str(name) for name in rng.choice(ON_TABLES, len(spots), replace=False)]
        turned = np.array([np.cos(yaw), 0, -np.sin(yaw)])
        items = [_posed(rng, name).placed((0, 0, 0), size=rng.uniform(0.6, 0.75)) for name in shelf]
        tops = [place + across * turned + [0, high[1], 0] for across in spots]
        return [thing, *(item.placed(top) for item, top in zip(items, tops, strict=True))]
    if (thing.category == "chair" and rng.random() < 0.3) or (thing.category == "sofa" and rng.random() < 0.4):
        forward = 0.06 if thing.category == "chair" else 0.12
        seat = place + forward * np.array([np.sin(yaw), 0, np.cos(yaw)])
        return [thing, people.person(rng, seated=True).placed(seat, yaw)]
    return [thing]


def _free_spot(rng: Rng, thing: Thing, others: list[Thing], view: View) -> np.ndarray | None:
    """A spot on the floor clear of the others, where the thing does not hide the first one; None if not found."""
    radius = thing.radius
    for _ in range(TRIES):
        deep = rng.uniform(-0.3, 0.65) * view.distance
        reach = view.distance + deep
        across = rng.uniform(-0.85, 0.85) * view.slope * reach
        spot = view.place(across, deep)
        clear = all(np.hypot(*(spot - other.frame.offset)[[0, 2]]) > 0.85 * (radius + other.radius) for other in others)
        covers = deep < 0 and abs(across / reach) < 0.75 * (radius / reach + others[0].radius / view.distance)
        if clear and not covers and reach > 1.8 + radius:
            return spot
    return None


def _light(rng: Rng, view: View, inside: bool, time_of_day: TimeOfDay) -> Light:
    side, rise = rng.uniform(-1.2, 1.2), time_of_day.rise * rng.uniform(0.55, 1.15)
    level = -np.cos(side) * view.away + np.sin(side) * view.right
    direction = np.cos(rise) * level + np.array([0, np.sin(rise), 0])
    warmth = rng.uniform(-0.12, 0.28)
    tint = np.array([1 + warmth, 1.0, 1 - warmth])
    strength = rng.uniform(0.5, 0.85) if inside else rng.uniform(0.7, 1.3)
    around = rng.uniform(0.5, 0.75) if inside else rng.uniform(0.4, 0.6)
    cool = np.array([1 - 0.4 * warmth, 1.0, 1 + 0.4 * warmth])
    blue = hsv(rng.uniform(*time_of_day.hues), rng.uniform(0.3, 0.75), rng.uniform(0.75, 1.0))
    sky = Material(blue, time_of_day.clouds, "clouds", np.diag([2.2, 3.5, 2.2]), rng.uniform(0, 40, 3))
    above, below = around * cool * time_of_day.around, 0.55 * around * tint * time_of_day.around
    lamp = strength * tint * time_of_day.lamp
    return Light(direction, lamp, above, below, rng.uniform(0.004, 0.02), sky, time_of_day)
