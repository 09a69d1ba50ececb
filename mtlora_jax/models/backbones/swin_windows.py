"""Geometry of shifted windows, computed while the program is traced.

If `jax.export` leaves the size of the images open, it is computed at run time.
"""

import functools
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

Array = TypeVar("Array", jax.Array, np.ndarray)

MASK_VALUE = -100.0  # Swin adds it to the logits of token pairs that are not neighbours before the cyclic shift


def effective_window(grid: tuple[int, int], window_size: int, shifted: bool) -> tuple[tuple[int, int], int]:
    """Return window (h, w) and shift for a grid (H, W).

    The window is no larger than the grid; there is no shift if a side of the grid fits into one window.
    """
    window = (min(window_size, grid[0]), min(window_size, grid[1]))
    return window, window_size // 2 if shifted and all(side > window_size for side in grid) else 0


def window_partition(x: Array, window: tuple[int, int]) -> Array:
    """(B, H, W, C) -> (B, M, N, C): M windows in reading order, N tokens of a window in reading order."""
    b, height, width, c = x.shape
    h, w = window
    x = x.reshape(b, height // h, h, width // w, w, c)
    return x.swapaxes(2, 3).reshape(b, -1, h * w, c)


def window_reverse(x: jax.Array, grid: tuple[int, int], window: tuple[int, int]) -> jax.Array:
    """(..., M, N, C) -> (..., H, W, C), the inverse of `window_partition`."""
    (height, width), (h, w) = grid, window
    x = x.reshape(*x.shape[:-3], height // h, width // w, h, w, x.shape[-1])
    return x.swapaxes(-4, -3).reshape(*x.shape[:-5], height, width, x.shape[-1])


@functools.cache
def relative_position_index(window: tuple[int, int], window_size: int) -> np.ndarray:
    """Row of the position table for each pair of tokens, (N, N) int32.

    The table covers offsets of a `window_size` window in both axes; smaller windows use its centre.
    """
    rows, columns = np.divmod(np.arange(window[0] * window[1]), window[1])
    down = rows[:, None] - rows[None, :] + window_size - 1
    right = columns[:, None] - columns[None, :] + window_size - 1
    return (down * (2 * window_size - 1) + right).astype(np.int32)


def attention_mask(grid: tuple[int, int], window: tuple[int, int], shift: int) -> np.ndarray | jax.Array:
    """Make the additive mask (M, N, N) float32 that separates tokens which the cyclic shift brought into one window."""
    known = all(isinstance(side, int) for side in grid)
    return _known_mask(grid, window, shift) if known else _mask(jnp, grid, window, shift)


def _mask(xp: Any, grid: tuple[int, int], window: tuple[int, int], shift: int) -> Any:
    """The mask by `xp`, numpy or jax.numpy."""

    def band(length: int, size: int) -> Any:
        position = xp.arange(length)
        return (position >= length - size).astype(np.int32) + (position >= length - shift)

    region = 3 * band(grid[0], window[0])[:, None] + band(grid[1], window[1])
    tokens = window_partition(region[None, :, :, None], window)[0, :, :, 0]
    return xp.where(tokens[:, :, None] == tokens[:, None, :], np.float32(0), np.float32(MASK_VALUE))


_known_mask = functools.cache(functools.partial(_mask, np))
