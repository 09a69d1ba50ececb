"""Furniture and small objects that face the viewer (+z) and stand on y = 0."""

import numpy as np

from mtlora_jax.demo.scenes import palette
from mtlora_jax.demo.scenes.palette import Rng
from mtlora_jax.demo.scenes.people import SEAT
from mtlora_jax.demo.scenes.solids import Thing, ball, box, rod, tube, turn
from mtlora_jax.demo.scenes.textures import Material, hsv


def chair(rng: Rng) -> Thing:
    """A chair with four legs or one column; its back has slats or is one piece; some have arms."""
    frame = palette.wood(rng) if rng.random() < 0.7 else palette.STEEL
    seat = palette.cloth(rng) if rng.random() < 0.5 else palette.wood(rng)
    width, depth, back = rng.uniform(0.42, 0.5), rng.uniform(0.42, 0.48), rng.uniform(0.42, 0.6)
    x, z, lean = width / 2 - 0.03, depth / 2 - 0.03, rng.uniform(0.03, 0.1)
    solids = [box(seat, (0, SEAT, 0), (width, 0.06, depth), bevel=0.015)]
    if rng.random() < 0.75:
        solids += [
            rod(frame, (sx * x, SEAT, sz * z), (sx * (x + 0.02), 0.02, sz * (z + 0.02)), 0.025, 0.02)
            for sx in (1, -1)
            for sz in (1, -1)
        ]
    else:
        solids += [tube(palette.STEEL, (0, 0.06, 0), (0, SEAT, 0), 0.035)]
        angles = np.arange(5) * 2 * np.pi / 5 + rng.uniform(0, 1)
        solids += [
            rod(palette.DARK, (0, 0.09, 0), (0.26 * np.cos(a), 0.04, 0.26 * np.sin(a)), 0.025, 0.03) for a in angles
        ]
    top = SEAT + back
    if rng.random() < 0.5:
        solids += [rod(frame, (sx * x, SEAT, -z), (sx * x, top, -z - lean), 0.024) for sx in (1, -1)]
        rungs = np.linspace(0.35, 1, rng.integers(2, 4)) if rng.random() < 0.5 else [1.0]
        solids += [
            box(frame, (0, SEAT + share * back - 0.03, -z - share * lean), (width, 0.08, 0.025), bevel=0.008)
            for share in rungs
        ]
        if len(rungs) == 1:
            slats = np.linspace(-0.6, 0.6, 4) * x
            solids += [rod(frame, (sx, SEAT, -z), (sx, top - 0.04, -z - lean), 0.013) for sx in slats]
    else:
        solids.append(
            box(seat, (0, SEAT + back / 2 + 0.03, -z - lean / 2), (width, back, 0.05), turn(pitch=-lean / back), 0.02)
        )
    if rng.random() < 0.3:
        for sx in (1, -1):
            solids += [rod(frame, (sx * x, SEAT, z - 0.06), (sx * x, SEAT + 0.2, z - 0.06), 0.02)]
            solids += [box(frame, (sx * x, SEAT + 0.21, -0.03), (0.05, 0.03, depth - 0.05), bevel=0.01)]
    return Thing("chair", tuple(solids))


def diningtable(rng: Rng) -> Thing:
    """A table 0.72 m high: round on a pedestal or rectangular on four legs."""
    top, leg = palette.wood(rng), palette.wood(rng)
    if rng.random() < 0.35:
        top = palette.cloth(rng, 0.25)
    if rng.random() < 0.4:
        radius = rng.uniform(0.5, 0.65)
        solids = [
            tube(top, (0, 0.68, 0), (0, 0.72, 0), radius),
            tube(leg, (0, 0.05, 0), (0, 0.68, 0), 0.06, 0.05),
            tube(leg, (0, 0, 0), (0, 0.06, 0), 0.3, 0.22),
        ]
    else:
        x, z = rng.uniform(0.55, 0.8), rng.uniform(0.35, 0.45)
        solids = [
            box(top, (0, 0.695, 0), (2 * x, 0.05, 2 * z), bevel=0.012),
            box(leg, (0, 0.635, 0), (2 * x - 0.12, 0.08, 2 * z - 0.12)),
        ]
        solids += [
            tube(leg, (sx * (x - 0.08), 0, sz * (z - 0.08)), (sx * (x - 0.08), 0.66, sz * (z - 0.08)), 0.025, 0.04)
            for sx in (1, -1)
            for sz in (1, -1)
        ]
    return Thing("diningtable", tuple(solids))


def sofa(rng: Rng) -> Thing:
    """A sofa with one to three seats and cushions."""
    seats = int(rng.integers(1, 4))
    cover, pillow = palette.cloth(rng, 0.3), palette.cloth(rng, 0.15)
    width, arm, high = 0.6 * seats, rng.uniform(0.14, 0.22), rng.uniform(0.72, 0.9)
    depth, armrest = 0.8, rng.uniform(0.52, 0.62)
    solids = [
        box(cover, (0, 0.19, 0), (width + 2 * arm, 0.22, depth), bevel=0.03),
        box(cover, (0, (0.1 + high) / 2, -0.36), (width + 2 * arm, high - 0.1, 0.2), turn(pitch=-0.08), bevel=0.06),
        *(
            box(cover, (sx * (width + arm) / 2, (0.08 + armrest) / 2, 0.02), (arm, armrest - 0.08, depth), bevel=0.05)
            for sx in (1, -1)
        ),
        *(box(cover, (0.6 * (k - (seats - 1) / 2), 0.37, 0.05), (0.58, 0.16, 0.7), bevel=0.04) for k in range(seats)),
        *(
            box(cover, (0.6 * (k - (seats - 1) / 2), 0.58, -0.24), (0.56, 0.34, 0.16), turn(pitch=-0.2), bevel=0.05)
            for k in range(seats)
        ),
    ]
    legs = [(sx * (width / 2 + arm - 0.08), sz * 0.3) for sx in (1, -1) for sz in (1, -1)]
    solids += [tube(palette.DARK, (x, 0, z), (x, 0.09, z), 0.025, 0.03) for x, z in legs]
    for _ in range(int(rng.integers(0, 3))):
        tilt = turn(rng.uniform(-0.3, 0.3), -0.35, rng.uniform(-0.3, 0.8))
        solids.append(ball(pillow, (rng.uniform(-0.4, 0.4) * width, 0.6, -0.1), (0.19, 0.18, 0.075), tilt))
    return Thing("sofa", tuple(solids))


def tvmonitor(rng: Rng) -> Thing:
    """A flat screen on a foot, or an old deep set; it is on or off."""
    case = Material(hsv(rng.random(), 0.15, rng.choice([0.1, 0.15, 0.3, 0.8])), gloss=0.3)
    glow = rng.random() < 0.5
    pattern = str(rng.choice(["clouds", "blotches", "stripes", "checks"])) if glow else "clouds"
    first, second = (0.01, 0.012, 0.016), (0.03, 0.035, 0.045)
    if glow:
        first, second = palette.colour(rng, (0.3, 0.8)), palette.colour(rng, (0.2, 0.7))
    screen = Material(first, second, pattern, turn(roll=rng.uniform(0, 1)) * 4, rng.uniform(0, 9, 3), gloss=0.8)
    if rng.random() < 0.7:
        width = rng.uniform(0.65, 1.05)
        high, foot = 0.58 * width, rng.uniform(0.08, 0.16)
        solids = [
            box(case, (0, foot + high / 2, 0), (width, high, 0.06), bevel=0.012),
            box(screen, (0, foot + high / 2, 0.025), (width - 0.06, high - 0.06, 0.03)),
            tube(case, (0, 0.01, -0.02), (0, foot + 0.05, -0.02), 0.05, 0.04),
            tube(case, (0, 0, 0), (0, 0.025, 0), 0.16 + 0.12 * width, flat=0.45),
        ]
    else:
        width, high = 0.62, 0.5
        solids = [
            box(case, (0, high / 2, 0), (width, high, 0.3), bevel=0.03),
            box(case, (0, high / 2, -0.2), (0.7 * width, 0.7 * high, 0.2), bevel=0.05),
            box(screen, (-0.04, high / 2 + 0.01, 0.145), (width - 0.2, high - 0.12, 0.03), bevel=0.01),
            *(tube(palette.STEEL, (0.25, y, 0.14), (0.25, y, 0.17), 0.022) for y in (0.36, 0.29)),
            *(rod(palette.STEEL, (0, high, -0.05), (sx * 0.16, high + 0.3, -0.08), 0.008) for sx in (1, -1)),
        ]
    return Thing("tvmonitor", tuple(solids))


def bottle(rng: Rng) -> Thing:
    """A bottle with a label and a cap; 0.5 to 0.75 m high, so that it can be seen."""
    glass = Material(palette.colour(rng, (0.3, 0.9), (0.15, 0.7)), gloss=0.9)
    label, cap = palette.patterned(rng, ("plain", "stripes", "dots", "checks"), 0.07), palette.shiny(rng)
    body, radius = rng.uniform(0.28, 0.42), rng.uniform(0.08, 0.12)
    shoulder, throat, neck = rng.uniform(0.06, 0.16), rng.uniform(0.028, 0.04), rng.uniform(0.08, 0.16)
    belly = radius * rng.uniform(0.85, 1.0)
    top = body + shoulder + neck
    low, high = (1.02 * (belly + y * (radius - belly)) for y in (0.25, 0.8))  # radii of the label
    solids = [
        tube(glass, (0, 0, 0), (0, body, 0), belly, radius),
        tube(glass, (0, body, 0), (0, body + shoulder, 0), radius, throat),
        tube(glass, (0, body + shoulder, 0), (0, top, 0), throat, 0.95 * throat),
        tube(cap, (0, top - 0.02, 0), (0, top + 0.035, 0), 1.25 * throat),
        tube(label, (0, 0.25 * body, 0), (0, 0.8 * body, 0), low, high),
    ]
    return Thing("bottle", tuple(solids))


def pottedplant(rng: Rng) -> Thing:
    """A pot with long leaves, a bush or flowers."""
    pot = palette.patterned(rng, ("plain", "plain", "stripes", "speckle"), 0.1, (0.1, 0.8), 0.2)
    soil = Material((0.05, 0.035, 0.025))
    high, radius = rng.uniform(0.24, 0.36), rng.uniform(0.14, 0.2)
    solids = [
        tube(pot, (0, 0, 0), (0, high, 0), 0.72 * radius, radius),
        tube(pot, (0, high - 0.05, 0), (0, high, 0), 1.1 * radius),
        tube(soil, (0, high - 0.01, 0), (0, high + 0.012, 0), 0.9 * radius),
    ]
    green = hsv(rng.uniform(0.2, 0.42), rng.uniform(0.45, 0.85), rng.uniform(0.3, 0.7))
    leaf = Material(green, (0.35, 0.45, 0.12), "grain", np.eye(3) * 3)
    kind = rng.choice(["leaves", "bush", "flowers"])
    if kind == "bush":
        crown = high + rng.uniform(0.3, 0.45)
        solids.append(rod(Material((0.15, 0.08, 0.04)), (0, high, 0), (0, crown, 0), 0.025))
        bush = Material(leaf.colour, (0.02, 0.06, 0.02), "speckle", np.eye(3) * 22, gloss=0.0)
        for _ in range(9):
            solids.append(ball(bush, (0, crown, 0) + rng.normal(0, 0.1, 3), rng.uniform(0.1, 0.16)))
        return Thing("pottedplant", tuple(solids))
    count = int(rng.integers(8, 13)) if kind == "leaves" else 6
    for number in range(count):
        angle = 2 * np.pi * number / count + rng.normal(0, 0.25)
        spread, rise = rng.uniform(0.12, 0.32), rng.uniform(0.25, 0.55)
        outward = np.array([np.cos(angle), 0, np.sin(angle)])
        root, knee = np.array([0, high, 0]) + 0.03 * outward, (0, high + 0.65 * rise, 0) + 0.45 * spread * outward
        tip = (0, high + rise * rng.uniform(0.7, 1.05), 0) + spread * outward
        if kind == "leaves":
            solids += [rod(leaf, root, knee, 0.018, 0.045, 0.35), rod(leaf, knee, tip, 0.045, 0.008, 0.35)]
        else:
            petals = Material(palette.colour(rng, (0.5, 0.9), (0.6, 1.0)))
            solids += [
                rod(leaf, root, tip, 0.012),
                ball(petals, tip, (0.07, 0.05, 0.07)),
                ball(Material((0.8, 0.55, 0.05)), tip + 0.04 * outward, 0.03),
            ]
            solids.append(rod(leaf, root, knee + 0.1 * outward, 0.02, 0.03, 0.4))
    return Thing("pottedplant", tuple(solids))
