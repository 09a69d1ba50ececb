"""Base class of tasks: label decoding and warping, loss, metrics, visualization."""

import abc
import dataclasses
from collections.abc import Iterable, Mapping
from typing import ClassVar, Self

import cv2
import jax
import numpy as np

from mtlora_jax.tasks.affine import AffineTransform
from mtlora_jax.tasks.legend import Legend
from mtlora_jax.tasks.losses import IGNORE


@dataclasses.dataclass(frozen=True)
class Task(abc.ABC):
    """Base class of all tasks; one subclass per file, listed in `TASKS`.

    A label is a numpy array (H, W) or (H, W, D). `decode` to `to_device_format` run on the host, in the data workers.
    `loss` and `metric_sums` run on the device, inside `jax.jit`. `compute_metrics` runs on the host, once per
    evaluation.
    """

    name: str = ""
    channels: int = 1  # outputs of the decoder
    weight: float = 1.0  # of this task's loss in the total (reference recipe)
    classes: tuple[str, ...] = ()  # class names, for tasks that have classes
    suffixes: tuple[str, ...] = (".png",)  # label files of the folder data set
    interpolation: int = cv2.INTER_NEAREST
    primary_metric: str = ""  # the metric in the papers' tables, used in Delta_m
    higher_is_better: bool = True
    score_scale: float = 100.0  # best possible primary metric; if lower is better, a typical one, which scores half
    metric_notes: ClassVar[Mapping[str, str]] = {}  # {metric: how it compares with the papers}
    has_native_resolution_metrics: ClassVar[bool] = False  # computed if `config.evaluation.boundaries` is set

    @abc.abstractmethod
    def decode(self, data: bytes, source: str) -> np.ndarray:
        """Decode the bytes of one label file to (H, W) or (H, W, D).

        Raises UserError naming `source` (the file, in messages) and the wrong value.
        """

    def for_dataset(self, files: Iterable[tuple[bytes, str]]) -> Self:
        """Return the task adjusted to how a data set encodes its labels.

        files: (bytes, source) of its label files, in an order that mixes them.
        """
        del files
        return self

    def describe_label_values(self) -> str:
        """Describe how label files are read, if that depends on the data set; otherwise empty."""
        return ""

    def value_names(self) -> Mapping[int, str]:
        """Return {value of a decoded label: its name}, without `IGNORE`; empty for continuous labels."""
        return {}

    def warp(self, label: np.ndarray, transform: AffineTransform, size: tuple[int, int]) -> np.ndarray:
        """Warp the label into an array of `size` = (H, W); pixels from outside are `IGNORE`."""
        return transform(label, size, self.interpolation, outside=IGNORE)

    def resize(self, label: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Resize the label to `size` = (H, W), for evaluation."""
        return cv2.resize(label, (size[1], size[0]), interpolation=self.interpolation)

    def to_device_format(self, label: np.ndarray) -> np.ndarray:
        """Convert a label to what the loss takes, in the dtype sent to the device. The last step on the host."""
        return label

    def random_label(self, rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
        """Draw a random label of `size` = (H, W) in device format, for benchmarks; class indices by default."""
        return rng.integers(0, max(self.channels, 2), size, np.uint8)

    @abc.abstractmethod
    def loss(self, logits: jax.Array, label: jax.Array) -> jax.Array:
        """Compute the mean loss of a batch, a float32 scalar.

        logits (B, H, W, C) of any float dtype; label (B, H, W) or (B, H, W, D).
        """

    @abc.abstractmethod
    def metric_sums(self, logits: jax.Array, label: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
        """Compute the sums from which `compute_metrics` gets the metrics, after they are added over the set.

        logits and label as for `loss`; mask (B,) bool is False for padding images.
        """

    @abc.abstractmethod
    def compute_metrics(self, totals: dict[str, np.ndarray]) -> dict[str, float]:
        """Compute the metrics of the set from the totals (float64) of `metric_sums`."""

    def native_resolution_sums(self, logits: np.ndarray, label: np.ndarray, tolerance: float) -> dict[str, np.ndarray]:
        """Compute sums of one image for metrics that take seconds per image, on the host, at native resolution.

        logits (H, W, C) float32; label in device format; tolerance: of positions, a fraction of the image diagonal.
        """
        raise NotImplementedError(f"{self.name} has no metrics at native resolution")

    def compute_native_resolution_metrics(self, totals: dict[str, np.ndarray]) -> dict[str, float]:
        """Compute the metrics of the set from the totals of `native_resolution_sums`."""
        raise NotImplementedError(f"{self.name} has no metrics at native resolution")

    def postprocess(self, logits: np.ndarray) -> dict[str, np.ndarray]:
        """Convert logits (..., H, W, C) float32 to named predictions, see `mtlora_jax.postprocess`.

        Returns the logits themselves unless a task overrides it.
        """
        return {self.name: logits}

    @abc.abstractmethod
    def visualize(self, values: np.ndarray) -> np.ndarray:
        """Render a label, or the logits (H, W, C) of one image, as RGB uint8 (H, W, 3)."""

    def legend(self, *shown: np.ndarray) -> Legend:
        """Return the legend of visualized values `shown`, (H, W) or (H, W, D); without any, of all possible values."""
        return Legend()
