"""The pinhole camera."""

import dataclasses

import numpy as np

from mtlora_jax.demo.scenes.solids import turn


@dataclasses.dataclass(frozen=True, eq=False)
class Camera:
    """A camera at `position` (3,), looking along -z of its own frame (x right, y up).

    `rotation` (3, 3) maps that frame to the world. `focal` is in pixels. The centre of pixel (row, column) is at
    (u, v) = (column + 0.5, row + 0.5).
    """

    position: np.ndarray
    rotation: np.ndarray
    focal: float
    size: tuple[int, int]  # (H, W)

    def rays(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Returns ray directions (3, N) in the world, of length 1 along the optical axis, so that distance is depth."""
        height, width = self.size
        x, y = (u - width / 2) / self.focal, (height / 2 - v) / self.focal
        return self.rotation @ np.stack([x, y, np.full(u.shape, -1.0)])

    def project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Projects points (3, N) in the world to (u, v, depth)."""
        x, y, z = self.rotation.T @ (points - self.position[:, None])
        height, width = self.size
        return width / 2 - self.focal * x / z, height / 2 + self.focal * y / z, -z

    def window(self, corners: np.ndarray | None) -> tuple[float, float, float, float]:
        """Returns (left, right, top, bottom) in pixels around `corners`.

        It is the whole plane without corners, and if one of them is behind the camera.
        """
        if corners is not None:
            u, v, depth = self.project(corners)
            if depth.min() > 0.05:
                return u.min(), u.max(), v.min(), v.max()
        return -np.inf, np.inf, -np.inf, np.inf


def look_at(
    target: np.ndarray, distance: float, yaw: float, pitch: float, roll: float, focal: float, size: tuple[int, int]
) -> Camera:
    """Places a camera `distance` metres from `target`, rotated by `yaw` and looking down by `pitch` radians."""
    rotation = turn(yaw, -pitch) @ turn(roll=roll)
    return Camera(np.asarray(target, float) + distance * rotation[:, 2], rotation, focal, size)
