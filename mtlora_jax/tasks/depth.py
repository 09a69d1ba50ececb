"""Depth: the distance to the surface at each pixel."""

import dataclasses
from typing import ClassVar

import jax
import numpy as np

from mtlora_jax.errors import UserError
from mtlora_jax.io.arrays import read_npy
from mtlora_jax.tasks import losses, metrics
from mtlora_jax.tasks.affine import AffineTransform
from mtlora_jax.tasks.label_images import decode_image, heatmap
from mtlora_jax.tasks.legend import BAR_STEPS, Legend, ignored_swatch, pixel_colours
from mtlora_jax.tasks.task import IGNORE, Task

NPY = b"\x93NUMPY"  # the first bytes of a .npy file
MAX_SHOWN_METRES = 10.0  # metres shown in the brightest colour: the reach of indoor sensors


@dataclasses.dataclass(frozen=True)
class Depth(Task):
    """Label (H, W) float32, metres, or `IGNORE`."""

    name: str = "depth"
    suffixes: tuple[str, ...] = (".npy", ".png")
    primary_metric: str = "rmse"
    higher_is_better: bool = False
    score_scale: float = 1.0  # metres
    metric_notes: ClassVar = {"rmse": "metres; true root of the mean square over all pixels of the set, as in papers"}

    def decode(self, data: bytes, source: str) -> np.ndarray:
        """Decode a `.npy` of float metres or a grey 16-bit PNG of millimetres.

        Zero, negative and non-finite values become `IGNORE`.
        """
        metres = _metres(data, source) if data.startswith(NPY) else _millimetres(data, source) / 1000
        beyond = np.isfinite(metres) & (metres > IGNORE)  # before float32 makes some of them infinite
        if beyond.any():
            far = f"{metres[beyond].max():g}"
            raise UserError(
                f"{source}: depth has the value {far}; expected metres below {IGNORE}, the value for ignore"
            )
        metres = metres.astype(np.float32, copy=False)
        return np.where((metres > 0) & (metres < IGNORE), metres, np.float32(IGNORE))

    def warp(self, label: np.ndarray, transform: AffineTransform, size: tuple[int, int]) -> np.ndarray:
        """Warp, and divide by the scale: what looks larger is nearer."""
        moved = super().warp(label, transform, size)
        return np.where(moved == IGNORE, moved, moved / np.float32(transform.scale))

    def random_label(self, rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
        return rng.uniform(0.5, 10, size).astype(np.float32)

    def loss(self, logits: jax.Array, label: jax.Array) -> jax.Array:
        return losses.depth_l1(logits, label)

    def metric_sums(self, logits: jax.Array, label: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
        return metrics.depth_sums(logits, label, mask)

    def compute_metrics(self, totals: dict[str, np.ndarray]) -> dict[str, float]:
        return metrics.compute_depth_metrics(totals)

    def postprocess(self, logits: np.ndarray) -> dict[str, np.ndarray]:
        """Return "depth" (..., H, W) in metres."""
        return {"depth": logits[..., 0]}

    def visualize(self, values: np.ndarray) -> np.ndarray:
        """Render 0 to `MAX_SHOWN_METRES` as a heat map, the same for label and prediction."""
        metres = values if values.ndim == 2 else values[..., 0]
        return heatmap(metres / MAX_SHOWN_METRES, ignored=metres == IGNORE)

    def legend(self, *shown: np.ndarray) -> Legend:
        bar = pixel_colours(self.visualize(np.linspace(0, MAX_SHOWN_METRES, BAR_STEPS)[None]))
        return Legend(ignored_swatch(shown), bar=bar, ends=("0 m", f"{MAX_SHOWN_METRES:g} m and more"))


def _millimetres(data: bytes, source: str) -> np.ndarray:
    expected = "a NumPy array of float metres, or a grey 16-bit PNG of millimetres"
    return decode_image(data, source, ("I;16", "I;16B", "I"), expected)


def _metres(data: bytes, source: str) -> np.ndarray:
    expected = "a NumPy array (H, W) of float metres"
    metres = read_npy(data, source, expected)
    if metres.ndim != 2 or metres.dtype.kind != "f":
        raise UserError(f"{source}: holds {metres.dtype} of shape {metres.shape}; expected {expected}")
    return metres
