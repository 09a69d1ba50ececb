"""Human part segmentation: the body part at each pixel."""

import dataclasses

import numpy as np

from mtlora_jax.tasks.semseg import SemSeg
from mtlora_jax.tasks.task import IGNORE

PARTS = ("background", "head", "torso", "upper arm", "lower arm", "upper leg", "lower leg")


@dataclasses.dataclass(frozen=True)
class HumanParts(SemSeg):
    """Label (H, W) uint8, an index into `classes` or `IGNORE`.

    The default classes are the six parts of PASCAL-Part and background.
    """

    name: str = "human_parts"
    channels: int = len(PARTS)
    weight: float = 2.0
    classes: tuple[str, ...] = PARTS

    def to_device_format(self, label: np.ndarray) -> np.ndarray:
        """Ignore an image without any part: only some images were annotated, so its background is not reliable."""
        return label if (label + np.uint8(1)).max() > 1 else np.full_like(label, IGNORE)  # `IGNORE` wraps around to 0
