"""Vehicles that head to the right (+x) and stand on y = 0.

They are smaller than real ones, so that they fit into a picture with people.
"""

import numpy as np

from mtlora_jax.demo.scenes import palette
from mtlora_jax.demo.scenes.palette import DARK, GLASS, STEEL, Rng
from mtlora_jax.demo.scenes.solids import Solid, Thing, ball, box, hull, prism, ring, rod, tube
from mtlora_jax.demo.scenes.textures import Material

LAMP = Material((0.9, 0.85, 0.65), gloss=0.8)
RED = Material((0.55, 0.03, 0.03), gloss=0.6)


def _wheels(positions, radius: float, half_width: float, thickness: float = 0.16) -> list[Solid]:
    """Pairs of wheels at x = `positions` with their outer sides at z = +-`half_width`."""
    solids = []
    for x in positions:
        for side in (1, -1):
            outer = side * half_width
            inner, rim = outer - side * thickness, outer + side * 0.012
            solids += [
                tube(DARK, (x, radius, inner), (x, radius, outer), radius),
                tube(STEEL, (x, radius, inner), (x, radius, rim), 0.55 * radius),
            ]
    return solids


def car(rng: Rng) -> Thing:
    """A saloon, a hatchback or a pick-up."""
    paint = palette.shiny(rng)
    kind = rng.choice(["saloon", "hatchback", "pickup"])
    front, back = {"saloon": (1.3, -1.3), "hatchback": (1.15, -1.05), "pickup": (1.35, -1.4)}[str(kind)]
    half, belt, roof = rng.uniform(0.55, 0.62), rng.uniform(0.62, 0.7), rng.uniform(1.05, 1.18)
    nose = rng.uniform(0.08, 0.16)
    body = [
        *((back, 0.24), (front, 0.24), (front + 0.06, 0.4), (front - 0.02, belt - nose)),
        *((0.55, belt), (back + 0.02, belt), (back - 0.04, 0.45)),
    ]
    rear_foot, rear_top = {"saloon": (-0.95, -0.55), "hatchback": (-1.03, -0.85), "pickup": (-0.25, -0.2)}[str(kind)]
    foot, top = rng.uniform(0.62, 0.75), rng.uniform(0.15, 0.3)
    cabin = [(rear_foot, belt - 0.02), (foot, belt - 0.02), (top, roof), (rear_top, roof)]
    low, high = roof - 0.035, roof + 0.03
    lid = [(rear_top - 0.02, low), (top + 0.02, low), (top - 0.05, high), (rear_top + 0.05, high)]
    middle, foot = (rear_top + top) / 2, belt - 0.02
    pillar = [(middle - 0.04, foot), (middle + 0.04, foot), (middle + 0.035, roof), (middle - 0.035, roof)]
    solids = [
        prism(paint, body, -half, half, 0.05),
        prism(GLASS, cabin, -half + 0.04, half - 0.04, 0.1),
        hull(paint, [(x, y, side * (half - 0.12 - 0.05 * (y > roof))) for x, y in lid for side in (1, -1)]),
        prism(paint, pillar, -half + 0.035, half - 0.035, 0.1),
        *_wheels((0.62 * front, 0.6 * back), 0.235, half + 0.01),
        *(
            ball(LAMP, (front - 0.02, belt - nose - 0.07, z), (0.06, 0.055, 0.09))
            for z in (half - 0.17, -(half - 0.17))
        ),
        *(box(RED, (back - 0.01, belt - 0.12, side * (half - 0.14)), (0.08, 0.08, 0.14)) for side in (1, -1)),
        box(STEEL, (front + 0.03, 0.3, 0), (0.08, 0.08, 1.7 * half), bevel=0.02),
        box(DARK, (front + 0.025, 0.42, 0), (0.04, 0.07, 0.8 * half)),
    ]
    if kind == "pickup":
        middle = (back - 0.3) / 2
        solids.append(box(DARK, (middle, belt - 0.005, 0), (abs(back) - 0.5, 0.03, 1.6 * half)))
        for side in (1, -1):
            solids.append(box(paint, (middle, belt + 0.04, side * (half - 0.09)), (abs(back) - 0.3, 0.12, 0.06)))
    return Thing("car", tuple(solids))


def bus(rng: Rng) -> Thing:
    """A bus with one or two decks and big wheels."""
    paint, trim = palette.shiny(rng), palette.shiny(rng)
    decks = 2 if rng.random() < 0.35 else 1
    half, length, high = 0.62, rng.uniform(2.9, 3.5), 1.5 if decks == 1 else 2.2
    solids = [
        box(paint, (0, 0.25 + (high - 0.25) / 2, 0), (length, high - 0.25, 2 * half), bevel=0.07),
        box(
            trim, (0, rng.uniform(0.42, 0.62), 0), (length + 0.015, rng.uniform(0.08, 0.2), 2 * half + 0.02), bevel=0.02
        ),
        *_wheels((0.32 * length, -0.3 * length), 0.26, half + 0.015, 0.2),
        box(GLASS, (length / 2 - 0.01, 1.05, 0), (0.06, 0.5, 2 * half - 0.2), bevel=0.02),
        *(ball(LAMP, (length / 2, 0.42, side * 0.43), (0.03, 0.06, 0.08)) for side in (1, -1)),
        box(DARK, (length / 2 + 0.005, 0.3, 0), (0.04, 0.08, 2 * half - 0.1)),
    ]
    panes = int(rng.integers(4, 7))
    pitch = (length - 0.75) / panes
    for deck in range(decks):
        y = 1.05 + 0.68 * deck
        for k in range(panes):
            x = -length / 2 + 0.18 + pitch * (k + 0.5)
            solids.append(box(GLASS, (x, y, 0), (0.84 * pitch, 0.42, 2 * half + 0.02), bevel=0.015))
        if deck:
            solids.append(box(GLASS, (length / 2 - 0.01, y, 0), (0.06, 0.42, 2 * half - 0.2), bevel=0.02))
    solids.append(box(DARK, (length / 2 - 0.3, 0.82, 0), (0.34, 0.96, 2 * half + 0.012)))
    solids.append(box(GLASS, (length / 2 - 0.3, 0.9, 0), (0.28, 0.7, 2 * half + 0.024)))
    return Thing("bus", tuple(solids))


def train(rng: Rng) -> Thing:
    """An engine with a slanted nose and a coach, on rails."""
    paint, trim = palette.shiny(rng), palette.shiny(rng)
    half, high, low = 0.5, 1.45, 0.24
    nose, tail = rng.uniform(1.9, 2.2), -2.2
    slope = rng.uniform(0.5, 0.9)
    profile = [(0.05, low), (nose, low), (nose + 0.06, low + 0.25), (nose - slope, high), (0.05, high)]
    coach = [(tail, low), (-0.05, low), (-0.05, high), (tail, high)]
    a, b = 0.42, 0.82
    edge = [(nose + 0.06 - share * (slope + 0.06), low + 0.25 + share * (high - low - 0.25)) for share in (a, b)]
    shield = [(x + 0.02, y + 0.01, side * (half - 0.14 - 0.05 * (y > 1))) for x, y in edge for side in (1, -1)]
    inner = [(x - 0.04, y - 0.02, z) for x, y, z in shield]
    solids = [
        prism(paint, profile, -half, half, 0.08),
        prism(paint, coach, -half, half, 0.08),
        box(DARK, (0, 0.75, 0), (0.3, 0.9, 0.7)),
        hull(GLASS, shield + inner),
        *(
            box(trim, (x, 0.5, 0), (wide, 0.14, 2 * half + 0.015))
            for x, wide in ((nose / 2, nose - 0.2), (tail / 2 - 0.03, -tail - 0.1))
        ),
        *(ball(LAMP, (nose + 0.04, low + 0.2, side * 0.3), (0.04, 0.06, 0.07)) for side in (1, -1)),
        *(box(DARK, (0, 0.02, side * 0.36), (4.6, 0.04, 0.06)) for side in (1, -1)),
    ]
    centres = [*np.arange(0.35, nose - slope - 0.1, 0.42), *np.arange(-0.4, tail + 0.2, -0.42)]
    solids += [box(GLASS, (x, 0.97, 0), (0.3, 0.34, 2 * half - 0.055), bevel=0.01) for x in centres]
    solids += [
        tube(STEEL, (x, 0.14, side * 0.28), (x, 0.14, side * 0.42), 0.12)
        for x in (1.5, 1.2, 0.5, -0.5, -1.6, -1.9)
        for side in (1, -1)
    ]
    return Thing("train", tuple(solids))


def aeroplane(rng: Rng) -> Thing:
    """An aeroplane with jets under swept wings or a propeller in front."""
    paint, trim = palette.shiny(rng), palette.shiny(rng)
    jet = rng.random() < 0.6
    length, radius, span = rng.uniform(1.2, 1.5), rng.uniform(0.2, 0.25), rng.uniform(1.3, 1.6)
    sweep = rng.uniform(0.4, 0.7) if jet else rng.uniform(0.0, 0.1)
    y = 0.62

    def blade(
        root: float, tip: float, chord: float, end: float, height: float, rise: float, at: float, back: float
    ) -> list[Solid]:
        points = [(at + dx, height + dy, root) for dx in (0, -chord) for dy in (-0.025, 0.025)]
        points += [(at - back + dx, height + rise + dy, tip) for dx in (0, -end) for dy in (-0.012, 0.012)]
        return [hull(paint, points), hull(paint, [(px, py, -pz) for px, py, pz in points])]

    wing_y = y - 0.08 if jet else y + 0.12
    solids = [
        rod(paint, (length - 0.35, y, 0), (-length * 0.4, y, 0), radius, radius * 0.95),
        rod(paint, (-length * 0.4, y, 0), (-length, y + 0.1, 0), radius * 0.95, 0.06),
        box(trim, (0.1, y, 0), (1.3 * length, 0.05, 2 * radius + 0.004), bevel=0.01),
        *blade(0.1, span, 0.62, 0.25, wing_y, 0.12, 0.4, sweep),
        *blade(0.03, 0.5, 0.3, 0.16, y + 0.12, 0.03, -length + 0.3, 0.25 * sweep + 0.08),
        hull(
            trim,
            [
                (-length + dx, y + 0.1 + dy, dz)
                for dx, dy in ((0.4, 0), (0, 0), (0.02, 0.52), (-0.16, 0.52))
                for dz in (-0.02, 0.02)
            ],
        ),
        ball(GLASS, (length - 0.33, y + 0.09, 0), (0.17, 0.13, 0.15)),
    ]
    if jet:
        for side in (1, -1):
            centre = (0.25 - 0.45 * sweep, wing_y - 0.08, side * 0.48 * span)
            front = (centre[0] + 0.22, centre[1], centre[2])
            solids += [
                tube(trim, (centre[0] - 0.2, centre[1], centre[2]), front, 0.07, 0.095),
                tube(DARK, centre, (front[0] + 0.005, *front[1:]), 0.07),
            ]
    else:
        nose = np.array([length - 0.35 + radius, y, 0])
        solids += [rod(DARK, nose - [0.05, 0, 0], nose + [0.08, 0, 0], 0.06, 0.03)]
        angle = rng.uniform(0, np.pi)
        blades = np.array([0, np.cos(angle), np.sin(angle)]) * 0.34
        solids.append(rod(DARK, nose + [0.05, 0, 0] - blades, nose + [0.05, 0, 0] + blades, 0.03, 0.03))
    for x, z in ((length - 0.55, 0), (-0.05, 0.25), (-0.05, -0.25)):
        solids += [
            rod(STEEL, (x, 0.1, z), (x, y - 0.1, 0.6 * z), 0.022),
            tube(DARK, (x, 0.1, z - 0.04), (x, 0.1, z + 0.04), 0.1),
        ]
    return Thing("aeroplane", tuple(solids))


def boat(rng: Rng) -> Thing:
    """A sailing boat or a motor boat with a cabin, on land."""
    paint, deck = palette.shiny(rng), palette.wood(rng)
    cloth = palette.patterned(rng, ("plain", "plain", "stripes"), 0.35, (0.0, 0.8))
    length, half, high = rng.uniform(1.1, 1.35), rng.uniform(0.38, 0.46), rng.uniform(0.4, 0.5)
    outline = [(-length, 0.8), (-0.5 * length, 1.0), (0.2 * length, 0.95), (0.7 * length, 0.55), (length, 0.02)]
    rim = [(x, high + 0.1 * max(x / length, 0) ** 2, side * half * wide) for x, wide in outline for side in (1, -1)]
    keel = [(0.88 * x, 0.02, side * half * wide * 0.35) for x, wide in outline[:-1] for side in (1, -1)]
    keel.append((0.8 * length, 0.12, 0))
    band = [(1.01 * x, y - 0.07, 1.03 * z) for x, y, z in rim] + [(1.01 * x, y - 0.015, 1.03 * z) for x, y, z in rim]
    plank = [(0.9 * x, high + dy, 0.85 * z) for x, _, z in rim for dy in (0.0, 0.1 * max(x / length, 0) ** 2 + 0.02)]
    solids = [hull(paint, rim + keel), hull(palette.shiny(rng), band), hull(deck, plank)]
    if rng.random() < 0.6:
        mast, top = 0.15, high + rng.uniform(1.25, 1.6)
        solids += [
            tube(deck, (mast, high, 0), (mast, top, 0), 0.03, 0.02),
            rod(deck, (mast, high + 0.25, 0), (-0.85 * length, high + 0.25, 0), 0.022),
            hull(
                cloth,
                [(mast - 0.03, high + 0.3, z) for z in (-0.012, 0.012)]
                + [(mast - 0.03, top - 0.03, z) for z in (-0.012, 0.012)]
                + [(-0.8 * length, high + 0.3, z) for z in (0.05, 0.07)],
            ),
            hull(
                cloth,
                [(mast + 0.05, high + 0.2, z) for z in (-0.01, 0.01)]
                + [(mast + 0.04, top - 0.25, z) for z in (-0.01, 0.01)]
                + [(0.92 * length, high + 0.15, z) for z in (0.02, 0.04)],
            ),
        ]
    else:
        room = [(-0.55, high), (0.35, high), (0.12, high + 0.5), (-0.5, high + 0.5)]
        panes = [(-0.45, high + 0.2), (0.245, high + 0.2), (0.15, high + 0.4), (-0.45, high + 0.4)]
        solids += [
            prism(Material((0.75, 0.75, 0.72), gloss=0.3), room, -0.65 * half, 0.65 * half, 0.03),
            prism(GLASS, panes, -0.65 * half - 0.01, 0.65 * half + 0.01, 0.02),
            box(paint, (-0.2, high + 0.52, 0), (0.75, 0.05, 1.45 * half), bevel=0.015),
            tube(DARK, (-0.35, high + 0.5, 0), (-0.38, high + 0.85, 0), 0.06),
        ]
    return Thing("boat", tuple(solids))


def _spokes(material: Material, x: float, radius: float, count: int, thickness: float) -> list[Solid]:
    angles = np.arange(count) * np.pi / count
    arms = [radius * np.array([np.cos(angle), np.sin(angle), 0]) for angle in angles]
    return [rod(material, (x, 0, 0) + arm + [0, radius, 0], (x, radius, 0) - arm, thickness) for arm in arms]


def bicycle(rng: Rng) -> Thing:
    """A bicycle: wheels with spokes, a frame of tubes, handlebar and saddle."""
    paint = palette.shiny(rng)
    radius, reach = rng.uniform(0.32, 0.36), rng.uniform(0.5, 0.56)
    rear, front = np.array([-reach, radius, 0]), np.array([reach, radius, 0])
    crank, seat = np.array([-0.06, radius - 0.04, 0]), np.array([-0.22, radius + 0.46, 0])
    head = np.array([reach - 0.16, radius + 0.42, 0])
    grip = head + [-0.02, 0.18, 0]
    solids = [ring(DARK, centre, (0, 0, 1), 0.86 * radius, radius, 0.05) for centre in (rear, front)]
    solids += [ring(STEEL, centre, (0, 0, 1), 0.8 * radius, 0.87 * radius, 0.03) for centre in (rear, front)]
    solids += [*_spokes(STEEL, -reach, radius, 5, 0.005), *_spokes(STEEL, reach, radius, 5, 0.005)]
    joints = [(rear, crank), (rear, seat), (crank, seat), (crank, head)]
    joints += [(seat - [-0.03, 0.08, 0], head), (front, head), (head, grip)]
    solids += [rod(paint, start, end, 0.022) for start, end in joints]
    solids += [
        rod(STEEL, seat, seat + [-0.03, 0.1, 0], 0.016),
        rod(DARK, seat + [-0.12, 0.12, 0], seat + [0.12, 0.13, 0], 0.06, 0.03, 0.8),
        rod(STEEL, grip + [0, 0, -0.25], grip + [0, 0, 0.25], 0.018),
        *(rod(DARK, grip + [0, 0, side * 0.25], grip + [-0.12, 0.0, side * 0.27], 0.024) for side in (1, -1)),
        tube(STEEL, crank + [0, 0, 0.03], crank + [0, 0, 0.05], 0.09),
        *(rod(DARK, crank + [0, 0, s * 0.05], crank + [s * 0.12, s * -0.1, s * 0.1], 0.018) for s in (1, -1)),
    ]
    return Thing("bicycle", tuple(solids)).placed((0, 0, 0), size=1.15)


def motorbike(rng: Rng) -> Thing:
    """A motorbike: wide wheels, engine, tank, seat and exhaust."""
    paint, bench = palette.shiny(rng), Material(palette.colour(rng, (0.0, 0.5), (0.05, 0.3)), gloss=0.15)
    radius, reach = 0.31, rng.uniform(0.58, 0.66)
    rear, front = np.array([-reach, radius, 0]), np.array([reach, radius, 0])
    head = np.array([reach - 0.26, radius + 0.42, 0])
    grip = head + [-0.06, 0.16, 0]
    solids = [ring(DARK, centre, (0, 0, 1), 0.6 * radius, radius, 0.15) for centre in (rear, front)]
    solids += [tube(STEEL, centre - [0, 0, 0.05], centre + [0, 0, 0.05], 0.62 * radius) for centre in (rear, front)]
    solids += [rod(STEEL, front + [0, 0, side * 0.09], head + [0, 0, side * 0.07], 0.03) for side in (1, -1)]
    fins = np.array([[0, 22, 0], [1, 0, 0], [0, 0, 1]])
    engine = Material((0.12, 0.12, 0.13), (0.4, 0.4, 0.42), "stripes", fins, gloss=0.5)
    solids += [
        box(engine, (0.0, 0.34, 0), (0.42, 0.3, 0.26), bevel=0.04),
        rod(paint, (0.2, 0.68, 0), (-0.06, 0.64, 0), 0.14, 0.11, 0.95),
        rod(bench, (-0.12, 0.62, 0), (-0.55, 0.68, 0), 0.1, 0.085),
        ball(paint, rear + [-0.04, 0.29, 0], (0.3, 0.07, 0.1)),
        ball(paint, front + [0.0, 0.31, 0], (0.22, 0.05, 0.09)),
        rod(STEEL, rear, (0, 0.3, 0), 0.05),
        rod(paint, (-0.1, 0.5, 0), head, 0.06, 0.05),
        rod(STEEL, head, grip, 0.035),
        rod(STEEL, grip + [0, 0, -0.3], grip + [0, 0, 0.3], 0.02),
        *(rod(DARK, grip + [0, 0, side * 0.22], grip + [-0.04, 0, side * 0.34], 0.03) for side in (1, -1)),
        ball(LAMP, head + [0.1, 0.04, 0], (0.07, 0.09, 0.09)),
        tube(STEEL, (0.1, 0.22, 0.16), (-reach - 0.1, 0.28, 0.17), 0.035, 0.055),
    ]
    return Thing("motorbike", tuple(solids)).placed((0, 0, 0), size=1.2)
