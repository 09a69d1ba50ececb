"""Predictions of images, for scores and for people to look at."""

import contextlib
import functools
from typing import Any

import jax
import numpy as np
from flax import nnx

from mtlora_jax.data import reference_transforms, transforms
from mtlora_jax.data.decoding import Example
from mtlora_jax.data.pipeline import Dataset
from mtlora_jax.defaults import Config
from mtlora_jax.distributed import sharding
from mtlora_jax.errors import UserError
from mtlora_jax.experiment import Experiment
from mtlora_jax.models import parameters
from mtlora_jax.models.inputs import normalise
from mtlora_jax.models.parameters import Flat

PICTURED = 4  # images


def logits_of(
    trainable: Flat, batch_stats: Flat, frozen: Flat, images: jax.Array, *, graph: nnx.GraphDef
) -> dict[str, jax.Array]:
    """Compute {task: (B, H, W, C)} of uint8 images (B, H, W, 3); compiled by the caller."""
    return parameters.bind(graph, trainable, frozen, batch_stats)(normalise(images))


class Pictures:
    """Input, label and prediction of the same few images of a data set, with one compiled program.

    Every process computes all of them, and gets the same.

    Attributes:
      examples: the images with their labels, evenly spread over the data set; without those that cannot be read.
    """

    def __init__(self, config: Config, experiment: Experiment, data: Dataset):
        self._experiment = experiment
        everywhere = sharding.replicated_sharding(experiment.mesh)
        forward = functools.partial(logits_of, graph=experiment.graph)
        self._forward = jax.jit(forward, in_shardings=everywhere, out_shardings=everywhere)
        self._data = data
        self._image_size = tuple(config.image_size)
        self._resize = reference_transforms.resize if config.data.reference_transforms else transforms.resize

    def __call__(self, trainable: Flat, batch_stats: Flat) -> dict[str, np.ndarray]:
        """Render {"TASK/ID": RGB uint8 (H, 3 W, 3)}, side by side."""
        if not self.examples:
            return {}
        logits = jax.device_get(self._forward(trainable, batch_stats, self._experiment.frozen, self._images))
        return {
            f"{name}/{example['image_id']}": np.hstack(
                [example["image"], task.visualize(example[name]), task.visualize(logits[name][row])]
            )
            for name, task in self._experiment.tasks.items()
            for row, example in enumerate(self.examples)
        }

    @functools.cached_property
    def examples(self) -> list[Example]:
        examples = []
        for index in sorted(set(np.linspace(0, len(self._data) - 1, PICTURED).round().astype(int))):
            with contextlib.suppress(UserError):
                examples.append(self._resize(self._data[int(index)], self._experiment.tasks, self._image_size))
        return examples

    @functools.cached_property
    def _images(self) -> Any:
        return sharding.replicate(
            {"image": np.stack([example["image"] for example in self.examples])}, self._experiment.mesh
        )["image"]
