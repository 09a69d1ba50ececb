"""Animals that look to the right (+x) and stand on the ground."""

import dataclasses

import numpy as np

from mtlora_jax.demo.scenes import palette
from mtlora_jax.demo.scenes.palette import Rng
from mtlora_jax.demo.scenes.solids import Solid, Thing, ball, rod, tube, turn
from mtlora_jax.demo.scenes.textures import Material

PINK = Material((0.6, 0.28, 0.26))
HORN = Material((0.6, 0.52, 0.38), gloss=0.3)
EYE = Material((0.015, 0.012, 0.01), gloss=0.6)


@dataclasses.dataclass(frozen=True)
class Build:
    """Proportions of a four-legged animal, in metres."""

    length: float  # of the trunk, between the centres of chest and hips
    chest: float  # radii
    hips: float
    leg: float  # length and radius
    thick: float
    neck: tuple[float, float]  # from the chest to the head, forwards and up
    nape: float  # radius of the neck
    head: float  # radius
    muzzle: tuple[float, float]  # length and radius


BUILDS = {
    "dog": Build(0.42, 0.15, 0.125, 0.33, 0.045, (0.2, 0.24), 0.085, 0.115, (0.15, 0.058)),
    "cat": Build(0.33, 0.115, 0.12, 0.2, 0.036, (0.13, 0.17), 0.075, 0.115, (0.05, 0.05)),
    "cow": Build(0.72, 0.27, 0.27, 0.38, 0.06, (0.32, 0.12), 0.15, 0.15, (0.2, 0.105)),
    "horse": Build(0.68, 0.22, 0.21, 0.62, 0.055, (0.3, 0.5), 0.12, 0.115, (0.27, 0.075)),
    "sheep": Build(0.42, 0.2, 0.2, 0.26, 0.036, (0.26, 0.14), 0.1, 0.1, (0.12, 0.06)),
}


def quadruped(rng: Rng, category: str) -> Thing:
    """A dog, cat, cow, horse or sheep with varied build, hide and stride; about a third grazes or sniffs."""
    build = BUILDS[category]
    coat = palette.hide(rng, 0.35 * build.length + 0.1)
    low = build.leg + 0.75 * build.chest
    chest, hips = np.array([build.length / 2, low, 0]), np.array([-build.length / 2, low + 0.02, 0])
    solids = [rod(coat, hips, chest, build.hips, build.chest, 0.85)]
    solids += _legs(rng, build, coat, chest, hips)
    forwards, up = build.neck
    if rng.random() < 0.3:
        forwards, up = 1.15 * forwards + 0.3 * max(up, 0), -0.55 * up - 0.05
    head = chest + [forwards * rng.uniform(0.9, 1.1), up * rng.uniform(0.85, 1.1), rng.uniform(-0.12, 0.12)]
    withers = chest + [0.3 * build.chest, 0.25 * build.chest, 0]
    solids.append(rod(coat, withers, head, build.nape * 1.15, build.nape * 0.85))
    gaze = turn(rng.uniform(-0.9, 0.9), 0, rng.uniform(-0.5, 0.1))
    solids += FEATURES[category](rng, build, coat, head, gaze, chest, hips)
    return Thing(category, tuple(solids)).grounded()


def _legs(rng: Rng, build: Build, coat: Material, chest: np.ndarray, hips: np.ndarray) -> list[Solid]:
    solids, stride = [], rng.uniform(0, 0.45)
    foot = palette.DARK if rng.random() < 0.5 else coat
    for joint, radius, signs in ((chest, build.chest, (1, -1)), (hips, build.hips, (-1, 1))):
        for side, sign in zip((1, -1), signs, strict=True):
            top = joint + [0, -0.35 * radius, side * 0.55 * radius]
            swing = sign * stride * rng.uniform(0.6, 1.2)
            knee = top + 0.5 * build.leg * np.array([np.sin(swing), -np.cos(swing), 0]) + [0, -0.1 * build.leg, 0]
            heel = np.array([knee[0] + 0.5 * build.leg * np.sin(swing - 0.15 * abs(swing)), build.thick, top[2]])
            toe = heel + [0.7 * build.thick, -0.1 * build.thick, 0]
            solids += [
                rod(coat, top, knee, 1.7 * build.thick, 1.05 * build.thick),
                rod(coat, knee, heel, 1.05 * build.thick, 0.8 * build.thick),
                rod(foot, heel, toe, 0.95 * build.thick, 0.8 * build.thick),
            ]
    return solids


def _face(
    build: Build, coat: Material, nose: Material, head: np.ndarray, gaze: np.ndarray, drop: float = -0.25
) -> list[Solid]:
    """Skull, muzzle, nose and eyes; `drop` is the slope of the muzzle."""
    length, radius = build.muzzle
    size = build.head
    tip = head + gaze @ [0.55 * size + length, drop * (0.4 * size + length), 0]
    eyes = [ball(EYE, head + gaze @ [0.72 * size, 0.3 * size, side * 0.55 * size], 0.16 * size) for side in (1, -1)]
    return [
        ball(coat, head, (size, 0.95 * size, 0.9 * size), gaze),
        rod(coat, head + gaze @ [0.3 * size, 0.3 * drop * size, 0], tip, 1.25 * radius, radius),
        ball(nose, tip + gaze @ [0.8 * radius, 0.35 * radius, 0], (0.4 * radius, 0.4 * radius, 0.5 * radius), gaze),
        *eyes,
    ]


def _ears(
    coat: Material, head: np.ndarray, gaze: np.ndarray, size: float, root, tip, bottom: float, top: float, flat=0.5
) -> list[Solid]:
    """A pair from `root` to `tip`, given for the left one (+z), with radii `bottom` and `top`; in units of `size`."""
    mirror = np.array([1, 1, -1])
    ends = [(size * np.array(root) * sign, size * np.array(tip) * sign) for sign in (1, mirror)]
    radii = bottom * size, top * size
    return [rod(coat, head + gaze @ start, head + gaze @ end, *radii, flat) for start, end in ends]


def _dog(rng, build, coat, head, gaze, chest, hips):
    del chest
    size, tail = build.head, hips + [-0.9 * build.hips, 0.25 * build.hips, 0]
    if rng.random() < 0.6:  # floppy
        ears = _ears(coat, head, gaze, size, (-0.1, 0.7, 0.75), (-0.1, -0.55, 1.05), 0.3, 0.38)
    else:
        ears = _ears(coat, head, gaze, size, (-0.2, 0.6, 0.5), (-0.3, 1.5, 0.6), 0.32, 0.08)
    bend = tail + [-0.1, rng.uniform(0.02, 0.12), 0]
    tails = [
        rod(coat, tail, bend, 0.035, 0.03),
        rod(coat, bend, bend + [-0.04, 0.16, rng.uniform(-0.05, 0.05)], 0.03, 0.018),
    ]
    return [*_face(build, coat, palette.DARK, head, gaze), *ears, *tails]


def _cat(rng, build, coat, head, gaze, chest, hips):
    del chest
    size, base = build.head, hips + [-0.85 * build.hips, 0.3 * build.hips, 0]
    ears = []
    for side in (1, -1):
        root, tip = (head + gaze @ [0, y * size, side * z * size] for y, z in ((0.55, 0.55), (1.5, 0.72)))
        ears.append(tube(coat, root, tip, 0.42 * size, 0.03 * size))
    side = rng.uniform(-0.08, 0.08)
    path = [base, base + [-0.14, 0.06, side], base + [-0.2, 0.22, side], base + [-0.13, 0.38, 2 * side]]
    tail = [rod(coat, start, end, 0.03, 0.027) for start, end in zip(path, path[1:], strict=False)]
    return [*_face(build, coat, PINK, head, gaze, -0.5), *ears, *tail]


def _cow(rng, build, coat, head, gaze, chest, hips):
    size, tail = build.head, hips + [-0.95 * build.hips, 0.4 * build.hips, 0]
    ears = _ears(coat, head, gaze, size, (-0.2, 0.35, 0.8), (-0.3, 0.2, 1.7), 0.25, 0.16)
    horns = _ears(HORN, head, gaze, size, (-0.1, 0.75, 0.5), (0.1, 1.6, 1.1), 0.2, 0.05, flat=1.0)
    udder = ball(PINK, 0.25 * chest + 0.75 * hips - [0, 0.95 * build.hips, 0], (0.14, 0.09, 0.11))
    tuft = tail + [-0.1, -0.48, rng.uniform(-0.06, 0.06)]
    return [
        *_face(build, coat, PINK, head, gaze, -0.5),
        *ears,
        *horns,
        udder,
        rod(coat, tail, tuft, 0.025, 0.02),
        ball(palette.DARK, tuft, (0.04, 0.08, 0.04)),
    ]


def _horse(rng, build, coat, head, gaze, chest, hips):
    size, tail = build.head, hips + [-0.9 * build.hips, 0.4 * build.hips, 0]
    hair = palette.hide(rng)
    ears = _ears(coat, head, gaze, size, (-0.2, 0.7, 0.4), (-0.1, 1.5, 0.5), 0.25, 0.06)
    crest = head + [-0.06, 0.09, 0]
    mane = rod(hair, crest, chest + [-0.02, 1.1 * build.chest, 0], 0.06, 0.05, 0.5)
    locks = [
        rod(hair, tail, tail + [-0.14, -0.12, 0], 0.045, 0.06),
        rod(hair, tail + [-0.14, -0.12, 0], tail + [-0.18, -0.5, 0], 0.06, 0.03),
    ]
    return [
        *_face(build, coat, palette.DARK, head, gaze, -0.9),
        *ears,
        mane,
        ball(hair, crest + [0.04, 0.03, 0], (0.07, 0.05, 0.05)),
        *locks,
    ]


def _sheep(rng, build, coat, head, gaze, chest, hips):
    colour = (0.75, 0.72, 0.65) if rng.random() < 0.7 else coat.colour
    wool = Material(colour, (0.5, 0.47, 0.42), "speckle", np.eye(3) * 16, gloss=0.0)
    fleece = []
    for share in np.linspace(-0.15, 1.15, 5):
        for angle in np.linspace(0, 2 * np.pi, 7)[:-1] + rng.uniform(0, 1):
            around = np.array([0, np.sin(angle), np.cos(angle)])
            centre = (1 - share) * hips + share * chest + 0.62 * build.hips * around
            fleece.append(ball(wool, centre, build.hips * rng.uniform(0.5, 0.68)))
    size = build.head
    ears = _ears(coat, head, gaze, size, (-0.1, 0.3, 0.7), (-0.3, 0.1, 1.6), 0.25, 0.15)
    tuft = ball(wool, head + gaze @ [-0.25 * size, 0.55 * size, 0], 0.75 * size)
    neck = rod(wool, chest, 0.5 * (chest + head), 0.9 * build.chest, 1.1 * build.nape)
    return [*_face(build, coat, palette.DARK, head, gaze, -0.7), *ears, *fleece, tuft, neck]


FEATURES = {"dog": _dog, "cat": _cat, "cow": _cow, "horse": _horse, "sheep": _sheep}


def bird(rng: Rng) -> Thing:
    """A bird on two legs, the size of a hen; some spread their wings."""
    coat = palette.patterned(rng, ("plain", "speckle", "stripes", "blotches"), 0.1)
    wing = Material(palette.colour(rng), gloss=0.05)
    beak = Material(palette.colour(rng, (0.6, 0.9), (0.5, 0.95)), gloss=0.3)
    pitch = rng.uniform(0.15, 0.6)
    tilt = turn(roll=pitch)
    body = np.array([0, 0.36, 0])
    head = body + tilt @ [0.2, 0.03, 0] + [0.02, rng.uniform(0.08, 0.2), 0]
    gaze = turn(rng.uniform(-0.8, 0.8))
    solids = [
        ball(coat, body, (0.22, 0.145, 0.14), tilt),
        rod(coat, body + tilt @ [0.12, 0.03, 0], head, 0.1, 0.07),
        ball(coat, head, 0.09),
        tube(beak, head + gaze @ [0.07, -0.005, 0], head + gaze @ [0.2, -0.03, 0], 0.04, 0.004),
        *(ball(EYE, head + gaze @ [0.055, 0.03, side * 0.065], 0.02) for side in (1, -1)),
        ball(wing, body + tilt @ [-0.3, 0.0, 0], (0.17, 0.03, 0.09), tilt),
    ]
    spread = rng.random() < 0.35
    for side in (1, -1):
        if spread:
            lift = turn(pitch=-side * rng.uniform(0.2, 0.8))
            solids.append(ball(wing, body + lift @ [-0.03, 0.06, side * 0.32], (0.14, 0.025, 0.28), lift))
        else:
            solids.append(ball(wing, body + tilt @ [-0.07, 0.03, side * 0.12], (0.2, 0.1, 0.035), tilt))
        knee = body + [0.0, -0.12, side * 0.06]
        foot = np.array([0.02, 0.02, side * 0.07])
        solids += [rod(beak, knee, foot, 0.016), rod(beak, foot, foot + [0.09, -0.005, 0.02 * side], 0.014, 0.01)]
    return Thing("bird", tuple(solids)).grounded()
