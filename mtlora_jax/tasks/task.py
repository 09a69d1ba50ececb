"""What a task is: how its label is decoded and warped, its loss, its scores and its picture."""

import abc
import dataclasses
from collections.abc import Iterable, Mapping
from typing import ClassVar, Self

import cv2
import jax
import numpy as np

from mtlora_jax.tasks.affine import Motion
from mtlora_jax.tasks.legend import Legend
from mtlora_jax.tasks.losses import IGNORE


@dataclasses.dataclass(frozen=True)
class Task(abc.ABC):
    """Base of all tasks; one subclass per file, registered in `TASKS`.

    A label is a numpy array `(H, W)` or `(H, W, D)`. Host methods (`decode` to `finish`) run in the data workers, device
    methods (`loss`, `statistics`) inside `jax.jit`, `scores` on the host with sums over the whole set.
    """

    name: str = ""
    channels: int = 1  # outputs of the decoder
    weight: float = 1.0  # of this task's loss in the total (reference recipe)
    classes: tuple[str, ...] = ()  # names of the classes, for tasks that have classes
    suffixes: tuple[str, ...] = (".png",)  # label files of the folder data set
    interpolation: int = cv2.INTER_NEAREST
    primary: str = ""  # the score of papers' tables, used in Delta_m
    higher_is_better: bool = True
    score_scale: float = 100.0  # the best possible primary score; where lower is better, a typical one, which counts as half of it
    notes: ClassVar[Mapping[str, str]] = {}  # {score: what a reader of the table must know to compare it with papers}
    has_slow_scores: ClassVar[bool] = False  # takes part in `config.evaluation.boundaries`

    @abc.abstractmethod
    def decode(self, data: bytes, origin: str) -> np.ndarray:
        """Decodes the contents of one label file to (H, W) or (H, W, D). Raises UserError naming `origin` and the wrong value."""

    def of_data_set(self, files: Iterable[tuple[bytes, str]]) -> Self:
        """The task as a data set means it, judged by (contents, origin) of its label files, which come in an order that mixes them."""
        del files
        return self

    def reading(self) -> str:
        """How values of label files are read, for people, where that depends on the data set; empty where not."""
        return ""

    def values(self) -> Mapping[int, str]:
        """{value of a decoded label: its name}, all there are but `IGNORE`; empty for labels that are measures."""
        return {}

    def warp(self, label: np.ndarray, motion: Motion, size: tuple[int, int]) -> np.ndarray:
        """Moves the label into an array of `size` = (H, W); what comes from outside is ignored."""
        return motion(label, size, self.interpolation, outside=IGNORE)

    def resize(self, label: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Resizes to `size` = (H, W), as for an evaluation."""
        return cv2.resize(label, (size[1], size[0]), interpolation=self.interpolation)

    def finish(self, label: np.ndarray) -> np.ndarray:
        """Last host step: the label as the loss wants it, in the dtype that travels to the device."""
        return label

    def noise(self, rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
        """A made-up label of `size` = (H, W) as `finish` gives labels, for measurements that need no data; class indices by default."""
        return rng.integers(0, max(self.channels, 2), size, np.uint8)

    @abc.abstractmethod
    def loss(self, logits: jax.Array, label: jax.Array) -> jax.Array:
        """Mean loss of a batch, float32 scalar. logits (B, H, W, C); label (B, H, W) or (B, H, W, D)."""

    @abc.abstractmethod
    def statistics(self, logits: jax.Array, label: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
        """Sums whose totals over the set give the scores. mask (B,) bool is False for padding images."""

    @abc.abstractmethod
    def scores(self, totals: dict[str, np.ndarray]) -> dict[str, float]:
        """Scores of the set from the summed statistics (float64)."""

    def slow_statistics(self, logits: np.ndarray, label: np.ndarray, tolerance: float) -> dict[str, np.ndarray]:
        """Sums for scores that take seconds per image, on the host, of one image at its own size.

        logits (H, W, C) float32; label as `finish` gives it; tolerance: of positions, as a share of the image's diagonal.
        """
        raise NotImplementedError(f"{self.name} has no slow scores")

    def slow_scores(self, totals: dict[str, np.ndarray]) -> dict[str, float]:
        """Scores of the set from the sums of `slow_statistics`."""
        raise NotImplementedError(f"{self.name} has no slow scores")

    def results(self, logits: np.ndarray) -> dict[str, np.ndarray]:
        """What logits (..., H, W, C) float32 say, see `mtlora_jax.postprocess`; unless a task says more, the logits themselves."""
        return {self.name: logits}

    @abc.abstractmethod
    def picture(self, values: np.ndarray) -> np.ndarray:
        """RGB uint8 (H, W, 3) for people. values: a label, or logits (H, W, C) of one image."""

    def legend(self, *shown: np.ndarray) -> Legend:
        """How to read pictures of the values `shown`, (H, W) or (H, W, D) as `picture` takes them; without any: of all there may be."""
        return Legend()
