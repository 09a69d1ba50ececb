"""Backdrops: rooms, and open ground under a sky. Their solids carry their context class."""

import dataclasses

import numpy as np

from mtlora_jax.demo.scenes import palette
from mtlora_jax.demo.scenes.palette import Rng
from mtlora_jax.demo.scenes.solids import Solid, Thing, ball, box, half_space, hull, rod, tube, turn
from mtlora_jax.demo.scenes.textures import Material, hsv

WHITE = Material((0.75, 0.74, 0.7), gloss=0.1)


@dataclasses.dataclass(frozen=True)
class Bounds:
    """The space that a backdrop leaves free: left < x < right and back < z, in metres."""

    left: float
    right: float
    back: float


def room(rng: Rng, bounds: Bounds) -> Thing:
    """A room with floor, three walls and a ceiling; perhaps with rug, windows, doors and pictures."""
    paper = _wall_paint(rng)
    high = rng.uniform(2.5, 3.2)
    turned = dataclasses.replace(paper, axes=paper.axes @ turn(yaw=np.pi / 2))
    solids = [
        half_space(_floor_paint(rng), (0, 1, 0), 0, "floor"),
        half_space(WHITE, (0, -1, 0), -high, "ceiling"),
        half_space(paper, (0, 0, 1), bounds.back, "wall"),
        half_space(turned, (1, 0, 0), bounds.left, "wall"),
        half_space(turned, (-1, 0, 0), -bounds.right, "wall"),
    ]
    if rng.random() < 0.7:
        board = palette.wood(rng) if rng.random() < 0.5 else WHITE
        wide, deep, tall = bounds.right - bounds.left, 20.0, rng.uniform(0.08, 0.16)
        middle = ((bounds.left + bounds.right) / 2, tall / 2, bounds.back)
        solids.append(box(board, middle, (wide, tall, 0.04), stuff="wall"))
        solids += [
            box(board, (x, tall / 2, bounds.back + deep / 2), (0.04, tall, deep), stuff="wall")
            for x in (bounds.left, bounds.right)
        ]
    if rng.random() < 0.5:
        solids.append(_rug(rng))
    solids += _on_walls(rng, bounds, high)
    return Thing("", tuple(solids))


def _floor_paint(rng: Rng) -> Material:
    kind = rng.choice(["planks", "planks", "tiles", "checks", "speckle"])
    spin = turn(roll=rng.choice([0, np.pi / 2, rng.uniform(0, 3)]))
    lying = np.array([[1, 0, 0], [0, 0, 1], [0, 1, 0]])
    hue, value = rng.uniform(0.04, 0.11), rng.uniform(0.35, 0.85)
    wood = (hsv(hue, rng.uniform(0.3, 0.65), value), hsv(hue, 0.6, 0.55 * value))
    stone = (palette.colour(rng, (0.02, 0.3), (0.5, 0.9)), palette.colour(rng, (0.02, 0.35), (0.25, 0.6)))
    dull = ((0.1, 0.5), (0.4, 0.8))
    period, colours, gloss = {
        "planks": (rng.uniform(0.12, 0.22), wood, 0.25),
        "tiles": (rng.uniform(0.3, 0.6), stone, 0.25),
        "checks": (rng.uniform(0.5, 0.9), stone, 0.25),
        "speckle": (0.05, (palette.colour(rng, *dull), palette.colour(rng, *dull)), 0.0),
    }[str(kind)]
    return Material(*colours, str(kind), spin @ lying / period, np.array([0.3, 0.3, 0.25]), gloss)


def _wall_paint(rng: Rng) -> Material:
    kind = str(rng.choice(["plain", "plain", "stripes", "plaid", "bricks", "dots", "planks"]))
    hue, saturation, value = rng.random(), rng.uniform(0.03, 0.4), rng.uniform(0.6, 0.95)
    first = hsv(hue, saturation, value)
    second = hsv(hue + rng.normal(0, 0.04), saturation + 0.05, value * rng.uniform(0.82, 0.93))
    if kind == "bricks":
        first = hsv(rng.uniform(0.0, 0.1), rng.uniform(0.1, 0.6), rng.uniform(0.5, 0.8))
        second = hsv(0.08, 0.1, rng.uniform(0.6, 0.85))
    period = {"bricks": 0.09, "dots": 0.22, "stripes": 0.24, "plaid": 0.35, "planks": 0.15}.get(kind, 1.0)
    return Material(first, second, kind, np.eye(3) / period, np.array([0.2, 0.1, 0.25]), 0.02)


def _rug(rng: Rng) -> Solid:
    lying = np.array([[1, 0, 0], [0, 0, 1], [0, 1, 0]])
    weave = palette.patterned(rng, ("stripes", "checks", "dots", "plaid", "plain"), 0.25, (0.3, 0.8), 0.0)
    weave = dataclasses.replace(weave, axes=weave.axes @ lying)
    where = (rng.uniform(-0.4, 0.4), 0.006, rng.uniform(-0.6, 0.2))
    if rng.random() < 0.35:
        disc = tube(weave, (where[0], 0, where[2]), (where[0], 0.012, where[2]), rng.uniform(0.8, 1.4))
        return dataclasses.replace(disc, stuff="rug")
    size = (rng.uniform(1.6, 2.8), 0.012, rng.uniform(1.2, 1.9))
    return box(weave, where, size, turn(rng.normal(0, 0.25)), stuff="rug")


def _on_walls(rng: Rng, bounds: Bounds, high: float) -> list[Solid]:
    """Pictures, windows and doors side by side along the back wall, then along the side walls."""
    solids: list[Solid] = []
    quarter = np.pi / 2
    walls = [
        (np.array([bounds.left, 0, bounds.back]), 0.0, bounds.right - bounds.left),
        (np.array([bounds.left, 0, bounds.back + 3.6]), quarter, 3.6),
        (np.array([bounds.right, 0, bounds.back]), -quarter, 3.6),
    ]
    for corner, yaw, length in walls:
        place, along = 0.35, turn(yaw)
        while place < length - 1.3:
            kind = str(rng.choice(["picture", "window", "door", "gap"], p=[0.35, 0.25, 0.12, 0.28]))
            wide = rng.uniform(0.7, 1.15)
            if kind != "gap":
                solids += [
                    _moved(solid, corner + along @ [place + wide / 2, 0, 0], along)
                    for solid in FITTINGS[kind](rng, wide, high)
                ]
            place += wide + rng.uniform(0.15, 0.6)
    return solids


def _moved(solid: Solid, offset: np.ndarray, rotation: np.ndarray) -> Solid:
    frame = dataclasses.replace(
        solid.frame, linear=rotation @ solid.frame.linear, offset=rotation @ solid.frame.offset + offset
    )
    material = dataclasses.replace(solid.material, axes=solid.material.axes @ rotation.T)
    return dataclasses.replace(solid, frame=frame, material=material)


def _picture(rng: Rng, wide: float, high: float) -> list[Solid]:
    del high
    size, middle = np.array([wide * 0.8, rng.uniform(0.4, 0.75)]), rng.uniform(1.5, 1.75)
    kinds = ("clouds", "blotches", "stripes", "dots", "checks")
    art = palette.patterned(rng, kinds, 0.25, (0.3, 0.9), 0.1)
    frame = palette.wood(rng)
    return [
        box(frame, (0, middle, 0.015), (size[0] + 0.1, size[1] + 0.1, 0.03), bevel=0.01, stuff="picture"),
        box(art, (0, middle, 0.02), (size[0], size[1], 0.03), stuff="picture"),
    ]


def _window(rng: Rng, wide: float, high: float) -> list[Solid]:
    del high
    low, top = rng.uniform(0.8, 1.0), rng.uniform(1.9, 2.2)
    middle, tall = (low + top) / 2, top - low
    blue, white = hsv(0.57, rng.uniform(0.2, 0.5), 1.0), (0.95, 0.97, 1.0)
    view = Material(blue, white, "clouds", np.eye(3) * 1.3, rng.uniform(0, 9, 3), 0.3)
    frame = WHITE if rng.random() < 0.6 else palette.wood(rng)
    pane = (wide / 2 - 0.08, tall / 2 - 0.08, 0.04)
    centres = [(sx * wide / 4, middle + sy * tall / 4, 0.026) for sx in (1, -1) for sy in (1, -1)]
    solids = [
        box(frame, (0, middle, 0.02), (wide, tall, 0.04), bevel=0.01, stuff="window"),
        *(box(view, centre, pane, stuff="window") for centre in centres),
        box(frame, (0, low - 0.02, 0.06), (wide + 0.1, 0.04, 0.14), stuff="window"),
    ]
    if rng.random() < 0.4:
        drape = palette.cloth(rng, 0.14)
        for side in (1, -1):
            for x in side * (wide / 2 + np.array([-0.03, 0.06])):
                fold = tube(drape, (x, low - 0.4, 0.08), (x, top + 0.12, 0.08), 0.06, 0.05)
                solids.append(dataclasses.replace(fold, stuff="curtain"))
    return solids


def _door(rng: Rng, wide: float, high: float) -> list[Solid]:
    tall = min(2.05, high - 0.2)
    leaf, frame = palette.wood(rng), palette.wood(rng) if rng.random() < 0.4 else WHITE
    panel = dataclasses.replace(leaf, colour=tuple(0.8 * share for share in leaf.colour))
    wide = max(wide, 0.85)
    return [
        box(frame, (0, tall / 2 + 0.04, 0.02), (wide + 0.16, tall + 0.08, 0.04), stuff="door"),
        box(leaf, (0, tall / 2, 0.03), (wide, tall, 0.04), bevel=0.008, stuff="door"),
        *(
            box(panel, (0, y * tall, 0.045), (0.7 * wide, share * tall, 0.03), bevel=0.015, stuff="door")
            for y, share in ((0.27, 0.36), (0.73, 0.38))
        ),
        dataclasses.replace(ball(palette.STEEL, (0.42 * wide, 1.0, 0.09), 0.04), stuff="door"),
    ]


FITTINGS = {"picture": _picture, "window": _window, "door": _door}


def outdoors(rng: Rng, bounds: Bounds) -> Thing:
    """Ground to the horizon, hills and trees, and perhaps a wall, a fence or houses behind the things."""
    stuff, ground = _ground(rng)
    solids = [half_space(ground, (0, 1, 0), 0, stuff)]
    for _ in range(int(rng.integers(0, 4))):
        hill = Material(hsv(rng.uniform(0.2, 0.6), rng.uniform(0.15, 0.4), rng.uniform(0.35, 0.7)), gloss=0.0)
        place = (rng.uniform(-40, 40), -4, rng.uniform(-70, -50))
        radii = (rng.uniform(15, 35), rng.uniform(7, 14), 12)
        solids.append(dataclasses.replace(ball(hill, place, radii), stuff="mountain"))
    behind = str(rng.choice(["wall", "wall", "fence", "houses", "open"]))
    if behind == "wall":
        paint = _wall_paint(rng)
        tall = rng.uniform(1.0, 2.6)
        solids.append(box(paint, (0, tall / 2, bounds.back - 0.15), (60, tall, 0.3), stuff="wall"))
        solids.append(box(WHITE, (0, tall + 0.03, bounds.back - 0.15), (60, 0.06, 0.38), stuff="wall"))
    if behind == "fence":
        plank, tall = palette.wood(rng), rng.uniform(0.7, 1.2)
        for x in np.arange(-5, 5, 0.24):
            solids.append(box(plank, (x, tall / 2, bounds.back), (0.13, tall, 0.03), stuff="fence"))
        for y in (0.25 * tall, 0.75 * tall):
            solids.append(box(plank, (0, y, bounds.back - 0.03), (10, 0.09, 0.04), stuff="fence"))
    if behind == "houses":
        solids += _houses(rng, bounds)
    for _ in range(int(rng.integers(0, 4))):
        side = rng.choice([-1, 1])
        solids += _tree(rng, np.array([side * rng.uniform(1.5, 6), 0, bounds.back - rng.uniform(1.0, 5)]))
    return Thing("", tuple(solids))


def _ground(rng: Rng) -> tuple[str, Material]:
    stuff = str(rng.choice(["grass", "floor", "sand", "road", "floor"]))
    lying = np.array([[1, 0, 0], [0, 0, 1], [0, 1, 0]])
    lying = turn(roll=rng.uniform(-0.5, 0.5)) @ lying
    if stuff == "floor":
        stone = (palette.colour(rng, (0.02, 0.3), (0.45, 0.8)), palette.colour(rng, (0.02, 0.3), (0.25, 0.5)))
        pattern = str(rng.choice(["tiles", "bricks", "checks"]))
        return stuff, Material(*stone, pattern, lying / rng.uniform(0.25, 0.6), gloss=0.03)
    dark = hsv(rng.uniform(0.2, 0.3), 0.6, rng.uniform(0.4, 0.65))
    light = hsv(rng.uniform(0.15, 0.28), 0.55, rng.uniform(0.6, 0.8))
    first, second = {
        "grass": (dark, light),
        "sand": (hsv(0.11, 0.35, rng.uniform(0.7, 0.9)), hsv(0.1, 0.4, 0.65)),
        "road": (hsv(0.6, 0.04, rng.uniform(0.3, 0.5)), hsv(0.1, 0.05, 0.55)),
    }[stuff]
    return stuff, Material(first, second, "speckle", lying * rng.uniform(3, 9), gloss=0.0)


def _houses(rng: Rng, bounds: Bounds) -> list[Solid]:
    solids, x = [], -7.0
    while x < 7:
        wide, tall, deep = rng.uniform(2.2, 4), rng.uniform(2.4, 4.5), 3.0
        front = bounds.back - rng.uniform(0.3, 1.5)
        wall, roof = _wall_paint(rng), Material(hsv(rng.uniform(0.0, 0.08), 0.5, rng.uniform(0.3, 0.6)), gloss=0.0)
        solids.append(box(wall, (x + wide / 2, tall / 2, front - deep / 2), (wide, tall, deep), stuff="building"))
        ridge = [(x + dx, tall, front - dz) for dx in (-0.15, wide + 0.15) for dz in (-0.15, deep)]
        ridge += [(x + wide / 2 + dx, tall + 1.1, front - deep / 2) for dx in (-0.6, 0.6)]
        solids.append(hull(roof, ridge, stuff="building"))
        for y in np.arange(1.2, tall - 0.4, 1.3):
            for share in (0.28, 0.72):
                across = x + share * wide
                solids.append(box(WHITE, (across, y, front), (0.62, 0.82, 0.06), stuff="building"))
                solids.append(box(palette.GLASS, (across, y, front + 0.01), (0.5, 0.7, 0.06), stuff="building"))
        x += wide + rng.uniform(0.0, 0.8)
    return solids


def _tree(rng: Rng, foot: np.ndarray) -> list[Solid]:
    bark = Material((0.14, 0.09, 0.06), (0.25, 0.18, 0.12), "grain", np.eye(3) * 3)
    green = hsv(rng.uniform(0.12, 0.36), 0.6, rng.uniform(0.3, 0.6))
    leaf = Material(green, (0.02, 0.06, 0.02), "speckle", np.eye(3) * 7, gloss=0.0)
    tall = rng.uniform(1.6, 3.0)
    solids = [rod(bark, foot, foot + [0, tall, 0], 0.16, 0.09)]
    if rng.random() < 0.35:
        solids += [
            tube(leaf, foot + [0, share * tall, 0], foot + [0, share * tall + 1.1, 0], 1.0 - 0.25 * share, 0.02)
            for share in (0.35, 0.7, 1.05)
        ]
    else:
        solids += [ball(leaf, foot + [0, tall, 0] + rng.normal(0, 0.35, 3), rng.uniform(0.55, 0.85)) for _ in range(5)]
    return [dataclasses.replace(solid, stuff="tree") for solid in solids]
