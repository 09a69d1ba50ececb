"""People in various poses, with six parts."""

import dataclasses

import numpy as np

from mtlora_jax.demo.scenes import palette
from mtlora_jax.demo.scenes.palette import Rng
from mtlora_jax.demo.scenes.solids import Solid, Thing, ball, rod, tube, turn
from mtlora_jax.demo.scenes.textures import Material, hsv

UPPER_ARM, LOWER_ARM, THIGH, SHIN = 0.28, 0.25, 0.42, 0.40
HIP, SHOULDER = 0.10, 0.19  # half the distances between the joints
SEAT = 0.44  # height of a seat


@dataclasses.dataclass(frozen=True)
class Limb:
    """Angles of the upper and the lower half of a limb, in radians from hanging straight down.

    Each is (forwards, where pi is up; away from the body).
    """

    upper: tuple[float, float]
    lower: tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Pose:
    """Limbs of the left and the right side, and the forward lean of the torso in radians."""

    arms: tuple[Limb, Limb]
    legs: tuple[Limb, Limb]
    lean: float = 0.0


HANG = Limb((0.05, 0.15), (0.25, 0.08))
UPRIGHT = Limb((0.0, 0.06), (0.0, 0.03))
STRADDLE = Limb((0.0, 0.28), (0.0, 0.2))
WAVE = Limb((0.3, 1.45), (2.9, 0.35))
RAISED = Limb((2.6, 0.45), (3.0, 0.3))
SPREAD = Limb((0.1, 1.35), (0.2, 1.4))
AKIMBO = Limb((-0.25, 0.75), (0.35, -0.85))
POINT = Limb((1.45, 0.2), (1.5, 0.15))
CARRY = Limb((0.15, 0.2), (1.5, -0.1))
ON_KNEE = Limb((0.5, 0.15), (1.25, 0.0))
SIT = Limb((1.5, 0.15), (0.05, 0.05))
STRETCHED = Limb((1.5, 0.12), (0.7, 0.1))

POSES: dict[str, Pose] = {
    "stand": Pose((HANG, HANG), (UPRIGHT, UPRIGHT)),
    "wave": Pose((WAVE, HANG), (UPRIGHT, UPRIGHT)),
    "cheer": Pose((RAISED, RAISED), (STRADDLE, STRADDLE)),
    "star": Pose((SPREAD, SPREAD), (STRADDLE, STRADDLE)),
    "hips": Pose((AKIMBO, AKIMBO), (STRADDLE, UPRIGHT)),
    "point": Pose((POINT, AKIMBO), (UPRIGHT, STRADDLE)),
    "carry": Pose((CARRY, CARRY), (UPRIGHT, UPRIGHT)),
    "walk": Pose(
        (Limb((-0.5, 0.12), (0.1, 0.05)), Limb((0.5, 0.12), (0.9, 0.0))),
        (Limb((0.5, 0.02), (0.35, 0.02)), Limb((-0.3, 0.02), (-0.75, 0.02))),
        0.06,
    ),
    "run": Pose(
        (Limb((-0.8, 0.15), (0.7, 0.0)), Limb((0.7, 0.15), (2.1, -0.1))),
        (Limb((0.95, 0.02), (-0.15, 0.02)), Limb((-0.45, 0.02), (-1.4, 0.02))),
        0.2,
    ),
    "kick": Pose(
        (Limb((-0.4, 0.7), (0.0, 0.6)), Limb((0.5, 0.8), (0.7, 0.9))),
        (Limb((1.1, 0.1), (1.0, 0.1)), UPRIGHT),
        -0.1,
    ),
    "crouch": Pose((ON_KNEE, ON_KNEE), (Limb((1.55, 0.3), (-0.55, 0.1)), Limb((1.45, 0.3), (-0.6, 0.1))), 0.35),
}
SEATED: dict[str, Pose] = {
    "sit": Pose((ON_KNEE, ON_KNEE), (SIT, SIT), -0.05),
    "sit waving": Pose((WAVE, ON_KNEE), (SIT, SIT), -0.05),
    "sit stretched": Pose((HANG, ON_KNEE), (STRETCHED, SIT), -0.15),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Clothes:
    """The material of each part."""

    skin: Material
    hair: Material
    shirt: Material
    sleeve: Material
    trousers: Material
    leg: Material
    shoe: Material


def person(rng: Rng, seated: bool = False) -> Thing:
    """A person who faces the viewer (+z), on the ground or, if `seated`, on a seat of height `SEAT`.

    Left and right limbs are swapped half of the time.
    """
    poses = SEATED if seated else POSES
    pose = _jitter(rng, poses[str(rng.choice(list(poses)))])
    solids = _body(rng, pose, _clothes(rng))
    thing = Thing("person", tuple(solids))
    if seated:
        return thing.placed((0, SEAT + 0.11, 0))
    return thing.grounded().placed((0, 0, 0), size=rng.uniform(0.8, 1.04))


def _jitter(rng: Rng, pose: Pose) -> Pose:
    def limb(given: Limb) -> Limb:
        (a, b), (c, d) = given.upper, given.lower
        first, second, third, fourth = rng.normal(0, 0.09, 4)
        return Limb((a + first, b + second), (c + first + third, d + 0.5 * (second + fourth)))

    arms, legs = [limb(arm) for arm in pose.arms], [limb(leg) for leg in pose.legs]
    order = rng.permutation(2)
    return Pose((arms[order[0]], arms[order[1]]), (legs[order[0]], legs[order[1]]), pose.lean + rng.normal(0, 0.04))


def _clothes(rng: Rng) -> Clothes:
    skin = palette.skin(rng)
    shirt, trousers = palette.cloth(rng), palette.cloth(rng, 0.2)
    if rng.random() < 0.6:
        trousers = Material(palette.colour(rng, (0.05, 0.6), (0.15, 0.6)), gloss=0.02)
    colour = hsv(rng.uniform(0.02, 0.12), rng.uniform(0.1, 0.8), rng.choice([0.1, 0.2, 0.35, 0.6, 0.85]))
    hair = Material(colour, gloss=0.15)
    shoe = Material(palette.colour(rng, (0.0, 0.8), (0.1, 0.9)), gloss=0.2)
    sleeve, leg = (skin if rng.random() < bare else own for bare, own in ((0.6, shirt), (0.3, trousers)))
    return Clothes(skin, hair, shirt, sleeve, trousers, leg, shoe)


def _body(rng: Rng, pose: Pose, clothes: Clothes) -> list[Solid]:
    """Solids around the middle of the hips."""
    width = rng.uniform(0.9, 1.15)
    spine = turn(pitch=pose.lean)
    chest, neck = spine @ [0, 0.5, 0], spine @ [0, 0.6, 0]
    solids = [
        rod(clothes.trousers, (0, -0.03, 0), (0, 0.06, 0), 0.15 * width, 0.15 * width, 0.72, "torso"),
        rod(clothes.shirt, spine @ [0, 0.12, 0], spine @ [0, 0.4, 0], 0.145 * width, 0.185 * width, 0.66, "torso"),
        rod(clothes.skin, chest, neck, 0.06, 0.055, part="neck"),
        *_head(rng, neck, pose.lean, clothes),
    ]
    for side, name, arm, leg in ((1, "l", *(pose.arms[0], pose.legs[0])), (-1, "r", *(pose.arms[1], pose.legs[1]))):
        shoulder = spine @ [side * SHOULDER * width, 0.47, 0]
        elbow = shoulder + UPPER_ARM * _direction(arm.upper, side)
        wrist = elbow + LOWER_ARM * _direction(arm.lower, side)
        hand = wrist + 0.07 * _direction(arm.lower, side)
        hip = np.array([side * HIP * width, -0.06, 0])
        knee = hip + THIGH * _direction(leg.upper, side)
        ankle = knee + SHIN * _direction(leg.lower, side)
        forward = np.cross(_direction(leg.lower, side), [-1.0, 0, 0])
        toe = ankle + 0.15 * forward + 0.03 * _direction(leg.lower, side)
        solids += [
            rod(clothes.shirt, shoulder, elbow, 0.068, 0.054, part=f"{name}uarm"),
            rod(clothes.sleeve, elbow, wrist, 0.05, 0.04, part=f"{name}larm"),
            rod(clothes.skin, wrist, hand, 0.042, 0.046, 0.7, part=f"{name}hand"),
            rod(clothes.trousers, hip, knee, 0.092, 0.07, part=f"{name}uleg"),
            rod(clothes.leg, knee, ankle, 0.068, 0.048, part=f"{name}lleg"),
            rod(clothes.shoe, ankle, toe, 0.058, 0.046, part=f"{name}foot"),
        ]
    return solids


def _direction(angles: tuple[float, float], side: int) -> np.ndarray:
    forwards, outwards = angles
    inwards = np.cos(outwards)
    return np.array([side * np.sin(outwards), -np.cos(forwards) * inwards, np.sin(forwards) * inwards])


def _head(rng: Rng, neck: np.ndarray, lean: float, clothes: Clothes) -> list[Solid]:
    gaze = turn(rng.uniform(-0.6, 0.6), 0.3 * lean + rng.normal(0, 0.08))
    centre = neck + gaze @ [0, 0.12, 0.015]

    def at(x: float, y: float, z: float) -> np.ndarray:
        return centre + gaze @ [x, y, z]

    eye, lip = Material((0.03, 0.025, 0.02), gloss=0.4), Material((0.35, 0.1, 0.09))
    solids = [
        ball(clothes.skin, centre, (0.105, 0.135, 0.115), gaze, "head"),
        ball(clothes.skin, at(0, -0.02, 0.112), (0.018, 0.03, 0.025), gaze, "nose"),
        ball(eye, at(0.042, 0.02, 0.1), (0.018, 0.018, 0.012), gaze, "leye"),
        ball(eye, at(-0.042, 0.02, 0.1), (0.018, 0.018, 0.012), gaze, "reye"),
        ball(lip, at(0, -0.068, 0.094), (0.035, 0.01, 0.014), gaze, "mouth"),
        ball(clothes.skin, at(0.105, -0.005, 0), (0.015, 0.03, 0.022), gaze, "lear"),
        ball(clothes.skin, at(-0.105, -0.005, 0), (0.015, 0.03, 0.022), gaze, "rear"),
    ]
    style = rng.choice(["short", "short", "long", "bun", "cap", "bald"])
    if style != "bald":
        solids.append(ball(clothes.hair, at(0, 0.035, -0.022), (0.118, 0.125, 0.118), gaze, "hair"))
    if style == "long":
        solids.append(rod(clothes.hair, at(0, 0.02, -0.05), at(0, -0.2, -0.07), 0.105, 0.1, 0.6, "hair"))
    if style == "bun":
        solids.append(ball(clothes.hair, at(0, 0.16, -0.06), 0.055, gaze, "hair"))
    if style == "cap":
        brim = rng.uniform(0, 1, 3) ** 2
        felt = Material((float(brim[0]), float(brim[1]), float(brim[2])))
        solids += [
            tube(felt, at(0, 0.06, 0), at(0, 0.15, -0.01), 0.124, 0.09, part="hair"),
            ball(felt, at(0, 0.065, 0.1), (0.09, 0.012, 0.09), gaze, "hair"),
        ]
    return solids
