"""Semantic segmentation: one class per pixel."""

import dataclasses
from collections.abc import Mapping

import jax
import numpy as np
import scipy.special

from mtlora_jax.errors import UserError
from mtlora_jax.tasks import losses, metrics
from mtlora_jax.tasks.label_images import class_palette, decode_image
from mtlora_jax.tasks.legend import Legend, pixel_colours
from mtlora_jax.tasks.task import IGNORE, Task

MODES = ("P", "L", "1", "I;16", "I;16B", "I")  # Pillow's modes of palette and grey images
VOC_CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


@dataclasses.dataclass(frozen=True)
class SemSeg(Task):
    """Label (H, W) uint8, an index into `classes` or `IGNORE`. Defaults: the 21 classes of PASCAL VOC."""

    name: str = "semseg"
    channels: int = len(VOC_CLASSES)
    classes: tuple[str, ...] = VOC_CLASSES
    primary_metric: str = "mIoU"

    def __post_init__(self):
        if not len(self.classes) == self.channels <= IGNORE:
            given = f"{len(self.classes)} class names for {self.channels} channels"
            raise UserError(f"{self.name}: {given}; expected one each, at most {IGNORE}")
        if self.channels < 2:
            raise UserError(
                f"{self.name}: {self.classes[0]!r} is the only class; "
                f"expected at least two, such as background and {self.classes[0]}"
            )

    def decode(self, data: bytes, source: str) -> np.ndarray:
        """Decode a palette or grey PNG of 1 to 16 bits. Its stored values are class indices, or 255 for ignore."""
        label = decode_image(data, source, MODES, "a palette or grey PNG of class indices")
        narrow = label.astype(np.uint8, copy=False)
        most = (narrow + np.uint8(1)).max(initial=0)  # one more than the largest index; `IGNORE` wraps around to 0
        if label.max(initial=0) > IGNORE or most > self.channels:
            wrong = label[(label >= self.channels) & (label != IGNORE)]
            allowed = f"0 to {self.channels - 1}, or {IGNORE} for ignore"
            raise UserError(f"{source}: {self.name} has the value {wrong[0]}; expected {allowed}")
        return narrow

    def value_names(self) -> Mapping[int, str]:
        return dict(enumerate(self.classes))

    def loss(self, logits: jax.Array, label: jax.Array) -> jax.Array:
        return losses.cross_entropy(logits, label)

    def metric_sums(self, logits: jax.Array, label: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
        return metrics.class_sums(logits, label, mask)

    def compute_metrics(self, totals: dict[str, np.ndarray]) -> dict[str, float]:
        return metrics.compute_class_metrics(totals, self.classes)

    def postprocess(self, logits: np.ndarray) -> dict[str, np.ndarray]:
        """Return "labels" (..., H, W) uint8 and "probabilities" (..., H, W, C)."""
        return {"labels": np.argmax(logits, -1).astype(np.uint8), "probabilities": scipy.special.softmax(logits, -1)}

    def visualize(self, values: np.ndarray) -> np.ndarray:
        """Render the colours of PASCAL VOC, with its pale void colour where ignored."""
        return class_palette()[values if values.ndim == 2 else np.argmax(values, axis=-1)]

    def legend(self, *shown: np.ndarray) -> Legend:
        """Return the classes that occur in the label maps `shown`, by decreasing area."""
        names = {**dict(enumerate(self.classes)), IGNORE: "ignored"}
        areas = np.sum([np.bincount(labels.ravel(), minlength=IGNORE + 1) for labels in shown], axis=0)
        order = (
            [int(index) for index in np.argsort(-areas, kind="stable") if areas[index]]
            if shown
            else range(len(self.classes))
        )
        painted = pixel_colours(class_palette())
        return Legend({names[index]: painted[index] for index in order})
