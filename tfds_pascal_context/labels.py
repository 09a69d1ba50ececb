"""Makes label maps from annotations as the reference does (reference: data set section)."""

import cv2
import numpy as np
from skimage.morphology import thin

from mtlora_jax.errors import UserError
from tfds_pascal_context.context import NORMALS_CLASSES
from tfds_pascal_context.layout import PERSON, Annotated

PARTS = {
    **dict.fromkeys(("hair", "head", "lear", "rear", "lebrow", "rebrow", "leye", "reye", "mouth", "nose"), 1),
    **dict.fromkeys(("neck", "torso"), 2),
    **dict.fromkeys(("luarm", "ruarm"), 3),
    **dict.fromkeys(("llarm", "rlarm", "lhand", "rhand"), 4),
    **dict.fromkeys(("luleg", "ruleg"), 5),
    **dict.fromkeys(("llleg", "rlleg", "lfoot", "rfoot"), 6),
}


def human_parts(objects: list[Annotated], size: tuple[int, int]) -> np.ndarray:
    """Paints a part map (H, W) uint8 of 0 (none) to 6, later parts over earlier ones.

    Returns zeros of `size` = (H, W) if no person has annotated parts. Raises UserError, without the name of the file,
    for a part that people do not have and for masks of different sizes.
    """
    people = [annotated for annotated in objects if annotated.category == PERSON and annotated.parts]
    label = np.zeros(people[0].mask.shape if people else size, np.uint8)
    for person in people:
        for part, mask in person.parts.items():
            if part not in PARTS:
                raise UserError(f"unknown part {part!r} of a person; expected one of {', '.join(PARTS)}")
            if mask.shape != label.shape:
                raise UserError(
                    f"the mask of part {part!r} is {_wh(mask)}, others are {_wh(label)}; they must have one size"
                )
            label[mask] = PARTS[part]
    return label


def has_people(objects: list[Annotated]) -> bool:
    """Whether a person has a mask, with or without parts: the reference trains human parts alone on these images."""
    return any(annotated.category == PERSON and annotated.mask.any() for annotated in objects)


def edges(context: np.ndarray) -> np.ndarray:
    """Returns the thinned borders between classes in `context` (H, W): uint8, 255 on an edge, else 0."""
    return binary(thin(cv2.Laplacian(context.astype(np.float64), cv2.CV_64F) != 0))


def binary(positive: np.ndarray) -> np.ndarray:
    """Returns uint8: 255 where `positive`, else 0."""
    return np.where(positive, 255, 0).astype(np.uint8)


def valid_normals(encoded: np.ndarray, context: np.ndarray) -> np.ndarray:
    """Returns normals (H, W, 3) uint8, n = 2 v / 255 - 1, with (0, 0, 0) on untrusted classes of `context` (h, w)."""
    trusted = np.isin(fit(context, encoded.shape[:2]), list(NORMALS_CLASSES.values()))
    return np.where(trusted[..., None], encoded, 0).astype(np.uint8)


def encode_normals(vectors: np.ndarray) -> np.ndarray:
    """Encodes vectors (H, W, 3) of any length as unit vectors in uint8, n = 2 v / 255 - 1.

    Vectors that are zero or not finite become (0, 0, 0).
    """
    finite = np.isfinite(vectors).all(axis=-1, keepdims=True)
    vectors = np.where(finite, vectors, 0).astype(np.float64)
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    known = length > 1e-6
    return np.where(known, np.round((vectors / np.where(known, length, 1) + 1) * 127.5), 0).astype(np.uint8)


def fit(label: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes a label (h, w) to `size` = (H, W) with nearest-neighbour interpolation."""
    return label if label.shape == size else cv2.resize(label, size[::-1], interpolation=cv2.INTER_NEAREST)


def fit_normals(encoded: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes normals (h, w, 3) uint8 to `size` = (H, W) with cubic interpolation.

    Unknown vectors, (0, 0, 0), do not change the direction of others.
    """
    if encoded.shape[:2] == size:
        return encoded
    known = np.any(encoded != 0, axis=-1)
    vectors = np.where(known[..., None], encoded.astype(np.float32) * (2 / 255) - 1, 0).astype(np.float32)
    vectors = cv2.resize(vectors, size[::-1], interpolation=cv2.INTER_CUBIC)
    return np.where(fit(known.astype(np.uint8), size)[..., None] > 0, encode_normals(vectors), 0).astype(np.uint8)


def _wh(label: np.ndarray) -> str:
    return f"{label.shape[1]}x{label.shape[0]}"
