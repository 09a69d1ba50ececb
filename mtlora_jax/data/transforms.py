"""Joint transforms of an image and its labels, on the host.

An example is {"image": uint8 (H, W, 3), TASK: label, ...}; image and labels always move together. Images are interpolated with cubic
splines, labels as their task says. Functions return a new example and leave the given one alone.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np

from mtlora_jax.errors import UserError
from mtlora_jax.tasks.task import Task

Example = dict[str, Any]  # strings and arrays


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Random geometry of training examples."""

    flip: float = 0.5  # probability of mirroring left to right
    degrees: float = 20.0  # rotation is uniform in +-degrees
    scale: tuple[float, float] = (0.75, 1.25)  # zoom is uniform in this range; above 1 things get larger

    def __post_init__(self):
        if not 0 <= self.flip <= 1:
            raise UserError(f"augmentation flip = {self.flip}: a probability is in [0, 1]")
        if not 0 <= self.degrees <= 180:
            raise UserError(f"augmentation degrees = {self.degrees}: must be in [0, 180]")
        if not (len(self.scale) == 2 and 0 < self.scale[0] <= self.scale[1]):
            raise UserError(f"augmentation scale = {self.scale}: must be (smallest, largest) with 0 < smallest <= largest")


PASCAL = Augmentation()  # the recipe of the paper's rows


def augment(example: Example, tasks: Mapping[str, Task], augmentation: Augmentation, rng: np.random.Generator) -> Example:
    """Mirrors, then rotates and zooms around the centre, by random amounts. Sizes stay; what comes from outside is black and ignored."""
    # All numbers are drawn whatever their values, so that one of them never shifts the others.
    mirrored = rng.random() < augmentation.flip
    degrees = rng.uniform(-augmentation.degrees, augmentation.degrees)
    scale = rng.uniform(*augmentation.scale)
    return warp(flip(example, tasks) if mirrored else example, tasks, degrees, scale)


def flip(example: Example, tasks: Mapping[str, Task]) -> Example:
    """Mirrors left to right."""
    labels = {name: task.flip(example[name]) for name, task in tasks.items()}
    return example | {"image": example["image"][:, ::-1]} | labels


def warp(example: Example, tasks: Mapping[str, Task], degrees: float, scale: float) -> Example:
    """Rotates by `degrees` counter-clockwise and zooms by `scale` around the centre of the image."""
    height, width = example["image"].shape[:2]
    # The centre lies between the middle pixels, so that mirroring and rotating back commute.
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, scale)
    image = cv2.warpAffine(example["image"], matrix, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_CONSTANT)
    labels = {name: task.warp(example[name], matrix, degrees, scale) for name, task in tasks.items()}
    return example | {"image": image} | labels


def resize(example: Example, tasks: Mapping[str, Task], image_size: tuple[int, int]) -> Example:
    """Resizes to `image_size` = (H, W) whatever the aspect ratio, and finishes the labels as the losses want them."""
    height, width = image_size
    image = cv2.resize(example["image"], (width, height), interpolation=cv2.INTER_CUBIC)
    labels = {name: task.finish(task.resize(example[name], (height, width))) for name, task in tasks.items()}
    return example | {"image": image} | labels
