"""The transforms of the reference implementation, with its borders and overflows, to compare scores with it.

Chosen by `config.data.reference_transforms`. The functions have the signatures of those in
`mtlora_jax.data.transforms`, with these differences:

* Pixels from outside a rotated image are background (class 0, not salient, no edge), not ignored. Normals and depth,
  which have no background, are ignored there in both.
* Where cubic interpolation of the image leaves [0, 255], values wrap modulo 256 instead of being clipped. They are
  truncated instead of rounded.
* Rotation and zoom are about (W/2, H/2), half a pixel off the centre. The resize follows as a second interpolation.
* Nearest neighbours are those of OpenCV's INTER_NEAREST, in training and in evaluation.
* A normal is known wherever the interpolated vector is not exactly 0, up to two pixels beyond the annotated region.
* A human parts map is ignored if it is all background. (By default, also if its only other values are ignored.)

Vectors and images are float64 until the last step. Normals are returned as float32, not as uint16.
"""

from collections.abc import Mapping

import cv2
import numpy as np

from mtlora_jax.data.decoding import Example
from mtlora_jax.tasks.affine import AffineTransform
from mtlora_jax.tasks.task import IGNORE, Task

UNKNOWN = ("normals", "depth")  # tasks whose unknown pixels are 0 until the last step, then `IGNORE`
EPS = np.finfo(np.float64).eps


def warp(
    example: Example, tasks: Mapping[str, Task], transform: AffineTransform, image_size: tuple[int, int]
) -> Example:
    """Warp a training example to `image_size` = (H, W)."""
    height, width = example["image"].shape[:2]
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), transform.degrees, transform.scale)

    def warp_pixels(pixels: np.ndarray, interpolation: int) -> np.ndarray:
        flipped = cv2.flip(pixels, 1) if transform.flip else pixels
        return cv2.warpAffine(flipped, matrix, (width, height), flags=interpolation)

    arrays = _prepared(example, tasks)
    arrays |= {name: arrays[name] @ transform.vector_matrix().T for name in arrays if name == "normals"}
    arrays = {name: warp_pixels(values, _interpolation(name, tasks)) for name, values in arrays.items()}
    arrays |= {name: arrays[name] / transform.scale for name in arrays if name == "depth"}
    return example | _resized(arrays, tasks, image_size)


def resize(example: Example, tasks: Mapping[str, Task], image_size: tuple[int, int]) -> Example:
    """Resize an example to `image_size` = (H, W) for evaluation."""
    return example | _resized(_prepared(example, tasks), tasks, image_size)


def _prepared(example: Example, tasks: Mapping[str, Task]) -> dict[str, np.ndarray]:
    """Return image and labels as float64, with unknown normals and depth as 0."""
    arrays = {name: np.asarray(example[name]) for name in ("image", *tasks)}
    arrays |= {name: np.where(arrays[name] == IGNORE, 0, arrays[name]) for name in arrays if name in UNKNOWN}
    return {name: values.astype(np.float64) for name, values in arrays.items()}


def _interpolation(name: str, tasks: Mapping[str, Task]) -> int:
    return tasks[name].interpolation if name in tasks else cv2.INTER_CUBIC


def _resized(
    arrays: Mapping[str, np.ndarray], tasks: Mapping[str, Task], image_size: tuple[int, int]
) -> dict[str, np.ndarray]:
    small = {
        name: cv2.resize(values, image_size[::-1], interpolation=_interpolation(name, tasks))
        for name, values in arrays.items()
    }
    return {name: FINISH.get(name, _finish_classes)(values) for name, values in small.items()}


def _finish_image(image: np.ndarray) -> np.ndarray:
    return np.trunc(image).astype(np.int64).astype(np.uint8)  # float to uint8 overflow would be undefined


def _finish_normals(vectors: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.where(length == 0, IGNORE, vectors / (length + EPS)).astype(np.float32)


def _finish_depth(depth: np.ndarray) -> np.ndarray:
    return np.where(depth == 0, IGNORE, depth).astype(np.float32)


def _finish_parts(label: np.ndarray) -> np.ndarray:
    return label.astype(np.uint8) if label.any() else np.full(label.shape, IGNORE, np.uint8)


def _finish_classes(label: np.ndarray) -> np.ndarray:
    return label.astype(np.uint8)


FINISH = {"image": _finish_image, "normals": _finish_normals, "depth": _finish_depth, "human_parts": _finish_parts}
