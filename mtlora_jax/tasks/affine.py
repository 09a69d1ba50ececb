"""The affine map that moves an image and its labels together in augmentation."""

import dataclasses
import math

import cv2
import numpy as np


@dataclasses.dataclass(frozen=True)
class AffineTransform:
    """Flips left to right, then rotates and zooms around the centre, then stretches to the output size."""

    flip: bool = False
    degrees: float = 0.0  # counter-clockwise
    scale: float = 1.0  # zoom; above 1 objects get larger

    def matrix(self, input_size: tuple[int, int], output_size: tuple[int, int]) -> np.ndarray:
        """Return the (2, 3) float64 matrix from input to output pixels (x, y, 1).

        Sizes are (H, W); pixel centres have integer coordinates.
        """
        height, width = input_size
        # The centre lies between the middle pixels, so that flipping commutes with rotating the other way.
        matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), self.degrees, self.scale)
        if self.flip:
            matrix = matrix @ np.array([[-1, 0, width - 1], [0, 1, 0], [0, 0, 1]])
        stretch = np.array([output_size[1] / width, output_size[0] / height])
        # The borders of the image, at -1/2 and size - 1/2, must map to borders.
        matrix[:, 2] += 0.5
        return matrix * stretch[:, None] - [[0, 0, 0.5]]

    def vector_matrix(self) -> np.ndarray:
        """Return the (3, 3) float64 matrix that flips and rotates vectors with x right, y down, z to the viewer."""
        cosine, sine = math.cos(math.radians(self.degrees)), math.sin(math.radians(self.degrees))
        mirror = -1 if self.flip else 1
        # Counter-clockwise to the eye is clockwise in coordinates whose y points down.
        return np.array([[mirror * cosine, sine, 0], [-mirror * sine, cosine, 0], [0, 0, 1]])

    def __call__(self, pixels: np.ndarray, size: tuple[int, int], interpolation: int, outside: float = 0) -> np.ndarray:
        """Warp `pixels` (H, W[, D]) into an array of `size` = (H, W), filled with `outside` beyond the input."""
        height, width = pixels.shape[:2]
        matrix = self.matrix((height, width), size)
        border = (outside,) * 4
        constant = cv2.BORDER_CONSTANT
        return cv2.warpAffine(pixels, matrix, size[::-1], flags=interpolation, borderMode=constant, borderValue=border)
