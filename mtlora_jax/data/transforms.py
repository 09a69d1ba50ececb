"""Joint transforms of an image and its labels, on the host.

An example is {"image": uint8 (H, W, 3), TASK: label, ...}; image and labels always move together. Images are
interpolated cubically, labels as their task says. Functions return a new example and do not change the given one.
"""

import dataclasses
from collections.abc import Mapping

import cv2
import numpy as np

from mtlora_jax.data.decoding import Example
from mtlora_jax.errors import UserError
from mtlora_jax.tasks.affine import AffineTransform
from mtlora_jax.tasks.task import Task


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Random geometry of training examples."""

    flip: float = 0.5  # probability of a left-right flip
    degrees: float = 20.0  # rotation is uniform in +-degrees
    scale: tuple[float, ...] = (0.75, 1.25)  # zoom is uniform between these two; above 1 things get larger
    discrete_scales: bool = False  # zoom is one of the numbers of `scale` instead, as many as there are, each as likely

    def __post_init__(self):
        if not 0 <= self.flip <= 1:
            raise UserError(f"augmentation flip = {self.flip}: a probability is in [0, 1]")
        if not 0 <= self.degrees <= 180:
            raise UserError(f"augmentation degrees = {self.degrees}: must be in [0, 180]")
        if self.discrete_scales and not (self.scale and min(self.scale) > 0):
            raise UserError(f"augmentation scale = {self.scale}: discrete scales must be numbers above 0, at least one")
        if not self.discrete_scales and not (len(self.scale) == 2 and 0 < self.scale[0] <= self.scale[1]):
            raise UserError(
                f"augmentation scale = {self.scale}: must be (smallest, largest) with 0 < smallest <= largest"
            )

    def draw(self, rng: np.random.Generator) -> AffineTransform:
        """Draw one random transform."""
        # All numbers are always drawn, so that changing one option does not change the others' values.
        flip = bool(rng.random() < self.flip)
        degrees = rng.uniform(-self.degrees, self.degrees)
        scale = rng.choice(self.scale) if self.discrete_scales else rng.uniform(self.scale[0], self.scale[1])
        return AffineTransform(flip, degrees, float(scale))


PASCAL = Augmentation()  # the recipe of the paper's PASCAL-Context results


def warp(
    example: Example, tasks: Mapping[str, Task], transform: AffineTransform, image_size: tuple[int, int]
) -> Example:
    """Warp a training example to `image_size` = (H, W) in one interpolation, with labels in device format.

    Pixels from outside the image are black and ignored.
    """
    # OpenCV's cubic interpolation is faster in float32 than in uint8, conversions included. The sum rounds and clips.
    image = transform(example["image"].astype(np.float32), image_size, cv2.INTER_CUBIC)
    labels = {
        name: task.to_device_format(task.warp(example[name], transform, image_size)) for name, task in tasks.items()
    }
    return example | {"image": cv2.addWeighted(image, 1, image, 0, 0, dtype=cv2.CV_8U)} | labels


def resize(example: Example, tasks: Mapping[str, Task], image_size: tuple[int, int]) -> Example:
    """Resize an example to `image_size` = (H, W) for evaluation, ignoring its aspect ratio; labels in device format."""
    image = cv2.resize(example["image"], image_size[::-1], interpolation=cv2.INTER_CUBIC)
    labels = {name: task.to_device_format(task.resize(example[name], image_size)) for name, task in tasks.items()}
    return example | {"image": image} | labels
