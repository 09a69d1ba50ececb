"""How the pixels of an image and of its labels move together in augmentation: one affine map, whatever is combined."""

import dataclasses
import math

import cv2
import numpy as np


@dataclasses.dataclass(frozen=True)
class Motion:
    """Mirrors left to right, then rotates and zooms around the centre, then stretches to the size asked for."""

    mirrored: bool = False
    degrees: float = 0.0  # counter-clockwise
    scale: float = 1.0  # above 1 things get larger

    def matrix(self, before: tuple[int, int], after: tuple[int, int]) -> np.ndarray:
        """(2, 3) float64, takes (x, y, 1) of an image of size `before` = (H, W) to one of size `after`; pixels have integer centres."""
        height, width = before
        # The centre lies between the middle pixels, so that mirroring and rotating back commute.
        turn = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), self.degrees, self.scale)
        if self.mirrored:
            turn = turn @ np.array([[-1, 0, width - 1], [0, 1, 0], [0, 0, 1]])
        stretch = np.array([after[1] / width, after[0] / height])
        # Edges of the image, at -1/2 and size - 1/2, are to become edges.
        turn[:, 2] += 0.5
        return turn * stretch[:, None] - [[0, 0, 0.5]]

    def turn(self) -> np.ndarray:
        """(3, 3) float64, what becomes of a vector whose x points right, y down and z at the viewer."""
        cosine, sine = math.cos(math.radians(self.degrees)), math.sin(math.radians(self.degrees))
        mirror = -1 if self.mirrored else 1
        # Counter-clockwise for the eye, which is clockwise in coordinates whose y points down.
        return np.array([[mirror * cosine, sine, 0], [-mirror * sine, cosine, 0], [0, 0, 1]])

    def __call__(self, pixels: np.ndarray, size: tuple[int, int], interpolation: int, outside: float = 0) -> np.ndarray:
        """Moves `pixels` (H, W[, D]) into an array of `size` = (H, W); what comes from outside of them is `outside`."""
        height, width = pixels.shape[:2]
        matrix = self.matrix((height, width), size)
        border = (outside,) * 4
        return cv2.warpAffine(pixels, matrix, size[::-1], flags=interpolation, borderMode=cv2.BORDER_CONSTANT, borderValue=border)
