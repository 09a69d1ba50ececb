"""Depth: the distance to the surface at each pixel."""

import dataclasses
from typing import ClassVar

import jax
import numpy as np

from mtlora_jax.errors import UserError
from mtlora_jax.io.arrays import read_npy
from mtlora_jax.tasks import losses, metrics
from mtlora_jax.tasks.affine import Motion
from mtlora_jax.tasks.label_images import decode_image, heat_picture
from mtlora_jax.tasks.legend import STEPS, Legend, colours, ignored
from mtlora_jax.tasks.task import IGNORE, Task

NPY = b"\x93NUMPY"  # how such a file begins
FAR = 10.0  # metres shown in the brightest colour: the reach of indoor sensors


@dataclasses.dataclass(frozen=True)
class Depth(Task):
    """Label (H, W) float32, metres, or `IGNORE`."""

    name: str = "depth"
    suffixes: tuple[str, ...] = (".npy", ".png")
    primary: str = "rmse"
    higher_is_better: bool = False
    score_scale: float = 1.0  # metres
    notes: ClassVar = {"rmse": "metres; true root of the mean square over all pixels of the set, what papers print"}

    def decode(self, data: bytes, origin: str) -> np.ndarray:
        """Decodes a `.npy` of float metres or a grey 16-bit PNG of millimetres. Zero, negative and not finite values are ignored."""
        metres = _metres(data, origin) if data.startswith(NPY) else _millimetres(data, origin) / 1000
        beyond = np.isfinite(metres) & (metres > IGNORE)  # before some numbers become infinite
        if beyond.any():
            raise UserError(f"{origin}: depth has the value {metres[beyond].max():g}; expected metres below {IGNORE}, the value for ignore")
        metres = metres.astype(np.float32, copy=False)
        return np.where((metres > 0) & (metres < IGNORE), metres, np.float32(IGNORE))

    def warp(self, label: np.ndarray, motion: Motion, size: tuple[int, int]) -> np.ndarray:
        """Also divides by the scale: what looks larger is nearer."""
        moved = super().warp(label, motion, size)
        return np.where(moved == IGNORE, moved, moved / np.float32(motion.scale))

    def noise(self, rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
        return rng.uniform(0.5, 10, size).astype(np.float32)

    def loss(self, logits: jax.Array, label: jax.Array) -> jax.Array:
        return losses.depth_l1(logits, label)

    def statistics(self, logits: jax.Array, label: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
        return metrics.depth_statistics(logits, label, mask)

    def scores(self, totals: dict[str, np.ndarray]) -> dict[str, float]:
        return metrics.depth_scores(totals)

    def results(self, logits: np.ndarray) -> dict[str, np.ndarray]:
        """ "depth" (..., H, W), metres."""
        return {"depth": logits[..., 0]}

    def picture(self, values: np.ndarray) -> np.ndarray:
        """Colours of 0 to 10 metres, the same for label and prediction."""
        metres = values if values.ndim == 2 else values[..., 0]
        return heat_picture(metres / FAR, ignored=metres == IGNORE)

    def legend(self, *shown: np.ndarray) -> Legend:
        return Legend(ignored(shown), bar=colours(self.picture(np.linspace(0, FAR, STEPS)[None])), ends=("0 m", f"{FAR:g} m and more"))


def _millimetres(data: bytes, origin: str) -> np.ndarray:
    return decode_image(data, origin, ("I;16", "I;16B", "I"), "a NumPy array of floats, metres, or a grey PNG of 16 bits, millimetres")


def _metres(data: bytes, origin: str) -> np.ndarray:
    expected = "a NumPy array (H, W) of floats, metres"
    metres = read_npy(data, origin, expected)
    if metres.ndim != 2 or metres.dtype.kind != "f":
        raise UserError(f"{origin}: holds {metres.dtype} of shape {metres.shape}; expected {expected}")
    return metres
