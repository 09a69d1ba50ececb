"""Initial values of parameters. They compare and hash, so that equal models are equal programs to `jax.jit`."""

import dataclasses
import math
from typing import Protocol

import numpy as np


class Initializer(Protocol):
    """Draws an array; runs on the host, where no shape needs compiling."""

    def __call__(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """float32 array of the shape."""
        ...


@dataclasses.dataclass(frozen=True)
class Constant:
    """The same value everywhere."""

    value: float

    def __call__(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        return np.full(shape, self.value, np.float32)


@dataclasses.dataclass(frozen=True)
class Uniform:
    """U(-bound, bound)."""

    bound: float

    def __call__(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        return (rng.random(shape, np.float32) * 2 - 1) * np.float32(self.bound)


@dataclasses.dataclass(frozen=True)
class TruncatedNormal:
    """N(0, std^2), redrawn beyond two standard deviations."""

    std: float

    def __call__(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        values = rng.standard_normal(shape, np.float32)
        while (beyond := np.abs(values) > 2).any():
            values[beyond] = rng.standard_normal(beyond.sum(), np.float32)
        return values * np.float32(self.std)


def fan_in_uniform(fan_in: int) -> Uniform:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)), PyTorch's for linear layers and convolutions; also of the LoRA factor A."""
    return Uniform(1.0 / math.sqrt(fan_in))
