"""Random colours and materials."""

import numpy as np

from mtlora_jax.demo.scenes.solids import turn
from mtlora_jax.demo.scenes.textures import Material, hsv

CLOTH = ("plain", "plain", "stripes", "checks", "dots", "plaid", "speckle")
HIDES = ("plain", "speckle", "blotches", "speckle")
DARK = Material((0.02, 0.02, 0.022), gloss=0.25)
STEEL = Material((0.45, 0.46, 0.48), gloss=0.5)
GLASS = Material((0.03, 0.05, 0.07), (0.12, 0.17, 0.22), "clouds", gloss=0.9)

Rng = np.random.Generator


def colour(
    rng: Rng, saturation: tuple[float, float] = (0.25, 0.85), value: tuple[float, float] = (0.35, 0.95)
) -> tuple[float, float, float]:
    """A random colour (linear RGB) of any hue."""
    return hsv(rng.random(), rng.uniform(*saturation), rng.uniform(*value))


def wood(rng: Rng) -> Material:
    """Wood with its grain along y, from pale birch to dark walnut, sometimes painted."""
    if rng.random() < 0.3:
        return Material(colour(rng, (0.0, 0.7)), gloss=0.15)
    hue, value = rng.uniform(0.05, 0.1), rng.uniform(0.35, 0.85)
    axes = turn(rng.uniform(0, 3), rng.choice([0, np.pi / 2]), rng.choice([0, np.pi / 2])) * 3
    return Material(hsv(hue, 0.55, value), hsv(hue, 0.65, 0.7 * value), "grain", axes, rng.uniform(0, 9, 3), 0.15)


def patterned(
    rng: Rng, patterns: tuple[str, ...], period: float, saturation=(0.2, 0.85), gloss: float = 0.05
) -> Material:
    """A random pattern of two different colours with a period of about `period` metres."""
    first = colour(rng, saturation)
    second = colour(rng, (0.0, saturation[1])) if rng.random() < 0.6 else (0.8, 0.8, 0.78)
    axes = turn(roll=rng.choice([0, 0, np.pi / 2, np.pi / 4])) / (period * rng.uniform(0.7, 1.4))
    return Material(first, second, str(rng.choice(patterns)), axes, rng.uniform(0, 9, 3), gloss)


def cloth(rng: Rng, period: float = 0.12) -> Material:
    return patterned(rng, CLOTH, period)


def hide(rng: Rng, period: float = 0.25) -> Material:
    """Fur: browns, greys, black and white, ginger."""
    hue, saturation, value = rng.uniform(0.03, 0.11), rng.choice([0.05, 0.3, 0.6]), rng.choice([0.18, 0.4, 0.65, 0.9])
    other = rng.choice([0.15, 0.5, 0.95])
    axes = np.eye(3) / (period * rng.uniform(0.6, 1.3))
    second = hsv(hue + 0.01, 0.5 * saturation, other if abs(other - value) > 0.2 else 1 - value)
    return Material(hsv(hue, saturation, value), second, str(rng.choice(HIDES)), axes, rng.uniform(0, 9, 3), 0.03)


def shiny(rng: Rng) -> Material:
    """Lacquer of any hue, white, grey or black."""
    return Material(colour(rng, (0.0, 0.9), (0.15, 0.95)), gloss=0.6)


def skin(rng: Rng) -> Material:
    tone = rng.random()
    return Material(hsv(0.045 + 0.03 * tone, 0.65 - 0.32 * tone, 0.32 + 0.6 * tone), gloss=0.06)
