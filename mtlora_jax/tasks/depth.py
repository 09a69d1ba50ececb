"""Depth: the distance to the surface at each pixel."""

import dataclasses
import pathlib

import jax
import numpy as np

from mtlora_jax import losses, metrics
from mtlora_jax.errors import UserError
from mtlora_jax.tasks.images import heat_picture, read_image
from mtlora_jax.tasks.task import IGNORE, Task

FAR = 10.0  # metres shown in the brightest colour: the reach of indoor sensors


@dataclasses.dataclass(frozen=True)
class Depth(Task):
    """Label (H, W) float32, metres, or `IGNORE`."""

    name: str = "depth"
    suffixes: tuple[str, ...] = (".npy", ".png")
    primary: str = "rmse"
    higher_is_better: bool = False

    def read(self, path: pathlib.Path) -> np.ndarray:
        """Decodes a `.npy` of float metres or a grey 16-bit PNG of millimetres. Zero, negative and not finite values are ignored."""
        metres = _read_metres(path) if path.suffix.lower() == ".npy" else _read_millimetres(path) / 1000
        metres = metres.astype(np.float32)
        known = np.isfinite(metres) & (metres > 0) & (metres != IGNORE)
        if np.any(metres[known] > IGNORE):
            raise UserError(f"{path}: depth has the value {metres[known].max():g}; expected metres below {IGNORE}, the value for ignore")
        return np.where(known, metres, np.float32(IGNORE))

    def warp(self, label: np.ndarray, matrix: np.ndarray, degrees: float, scale: float) -> np.ndarray:
        """Also divides by `scale`: what looks larger is nearer."""
        moved = super().warp(label, matrix, degrees, scale)
        return np.where(moved == IGNORE, moved, moved / np.float32(scale))

    def loss(self, logits: jax.Array, label: jax.Array) -> jax.Array:
        return losses.depth_l1(logits, label)

    def statistics(self, logits: jax.Array, label: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
        return metrics.depth_statistics(logits, label, mask)

    def scores(self, totals: dict[str, np.ndarray]) -> dict[str, float]:
        return metrics.depth_scores(totals)

    def picture(self, values: np.ndarray) -> np.ndarray:
        """Colours of 0 to 10 metres, the same for label and prediction."""
        metres = values if values.ndim == 2 else values[..., 0]
        return heat_picture(metres / FAR, ignored=metres == IGNORE)


def _read_millimetres(path: pathlib.Path) -> np.ndarray:
    return read_image(path, ("I;16", "I;16B", "I"), "a grey PNG of 16 bits, millimetres")


def _read_metres(path: pathlib.Path) -> np.ndarray:
    expected = "a NumPy array (H, W) of floats, metres"
    try:
        metres = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: cannot be read ({error}); expected {expected}") from error
    if not isinstance(metres, np.ndarray):
        raise UserError(f"{path}: is an archive of arrays; expected {expected}")
    if metres.ndim != 2 or metres.dtype.kind != "f":
        raise UserError(f"{path}: holds {metres.dtype} of shape {metres.shape}; expected {expected}")
    return metres
