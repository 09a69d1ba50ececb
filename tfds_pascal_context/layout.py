"""Reads and writes the annotation files of PASCAL_MT.

ROOT/JPEGImages/ID.jpg
ROOT/ImageSets/Context/{train,val}.txt   ids, one per line
ROOT/semseg/VOC12/ID.png                 palette or grey, VOC class 0 to 20, 255 = ignore;
                                         some ids in semseg/pascal-context/ instead
ROOT/human_parts/ID.mat                  PASCAL-Part: objects, their masks and their parts' masks
ROOT/pascal-context/trainval/ID.mat      PASCAL-Context: `LabelMap`, class index of every pixel
ROOT/normals_distill/ID.png              RGB, n = 2 v / 255 - 1
ROOT/sal_distill/ID.png                  grey, salient above one half
"""

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np
import PIL.Image
import scipy.io

from mtlora_jax.errors import UserError
from mtlora_jax.io.files import write_text
from tfds_pascal_context import files

PERSON = 15  # VOC class

IMAGES = "JPEGImages"
LISTS = "ImageSets/Context"
SEMSEG = ("semseg/VOC12", "semseg/pascal-context")  # the first folder that has the image
HUMAN_PARTS = "human_parts"
CONTEXT = "pascal-context/trainval"
NORMALS = "normals_distill"
SAL = "sal_distill"

_OBJECT = [("class", object), ("class_ind", object), ("mask", object), ("parts", object)]
_PART = [("part_name", object), ("mask", object)]


@dataclasses.dataclass(frozen=True)
class Annotated:
    """One object of `human_parts/ID.mat`.

    Attributes:
      category: VOC class, 1 to 20; 15 is a person.
      mask: (H, W) bool.
      parts: {PASCAL-Part name such as "head" or "luarm": (H, W) bool}, in the order of the file; may be empty.
    """

    category: int
    mask: np.ndarray
    parts: dict[str, np.ndarray]


def read_objects(path: pathlib.Path) -> list[Annotated]:
    """Reads the objects of a PASCAL-Part file. Raises UserError if it is missing, damaged or another file."""
    expected = "a PASCAL-Part annotation (anno.objects with class_ind, mask, parts)"
    anno = files.read_mat(path, "anno", expected)
    try:
        return [
            Annotated(int(entry["class_ind"].item()), _mask(entry["mask"]), _read_parts(entry["parts"]))
            for entry in anno["objects"].item().ravel()
        ]
    except (KeyError, ValueError, IndexError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: has an unexpected structure ({error}); expected {expected}") from error


def read_context(path: pathlib.Path) -> np.ndarray:
    """Reads class indices (H, W) uint16 from a PASCAL-Context file. Raises UserError naming the file."""
    expected = "a PASCAL-Context annotation (LabelMap of class indices)"
    label = files.read_mat(path, "LabelMap", expected)
    if label.ndim != 2 or not label.size or label.dtype.kind not in "uif":
        raise UserError(f"{path}: LabelMap is {label.dtype} of shape {label.shape}; expected {expected}")
    with np.errstate(invalid="ignore"):
        indices = label.astype(np.uint16)
    odd = label[indices != label]
    if odd.size:
        raise UserError(f"{path}: LabelMap has the value {odd[0]}; expected {expected}")
    return indices


def write_raw(
    root: str | pathlib.Path,
    image_id: str,
    *,
    image: np.ndarray,
    semseg: np.ndarray,
    objects: Sequence[Annotated],
    context: np.ndarray,
    normals: np.ndarray,
    sal: np.ndarray,
) -> None:
    """Writes all files of one image; creates missing folders.

    Args:
      root: folder of the data set.
      image_id: name of the files.
      image: (H, W, 3) uint8 RGB.
      semseg: (H, W) uint8, 0 to 20 or 255.
      objects: for human_parts.
      context: (H, W) PASCAL-Context class indices.
      normals: (H, W, 3) float, unit vectors.
      sal: (H, W) bool.
    """
    from mtlora_jax.tasks.label_images import class_palette  # here, because it imports JAX

    def place(folder: str, suffix: str) -> pathlib.Path:
        path = pathlib.Path(root, folder, image_id + suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    PIL.Image.fromarray(image).save(place(IMAGES, ".jpg"), quality=90)
    palette_image = PIL.Image.fromarray(semseg.astype(np.uint8))
    palette_image.putpalette(class_palette().tobytes())
    palette_image.save(place(SEMSEG[0], ".png"))
    scipy.io.savemat(place(HUMAN_PARTS, ".mat"), {"anno": _anno(image_id, objects)}, do_compression=True)
    scipy.io.savemat(place(CONTEXT, ".mat"), {"LabelMap": context.astype(np.uint16)}, do_compression=True)
    PIL.Image.fromarray(np.round((normals + 1) * 127.5).astype(np.uint8)).save(place(NORMALS, ".png"))
    PIL.Image.fromarray(np.where(sal, 255, 0).astype(np.uint8)).save(place(SAL, ".png"))


def write_split(root: str | pathlib.Path, split: str, ids: Sequence[str]) -> None:
    """Writes the list of a split, "train" or "val"."""
    write_text(pathlib.Path(root, LISTS, f"{split}.txt"), "".join(f"{image_id}\n" for image_id in ids))


def _mask(array: np.ndarray) -> np.ndarray:
    if array.ndim != 2 or not array.size or array.dtype.kind not in "buif":
        raise ValueError(f"a mask is {array.dtype} of shape {array.shape}")
    return array != 0


def _read_parts(entries: np.ndarray) -> dict[str, np.ndarray]:
    parts: dict[str, np.ndarray] = {}
    for entry in entries.ravel():
        name, mask = str(entry["part_name"].item()), _mask(entry["mask"])
        parts[name] = parts[name] | mask if name in parts else mask
    return parts


def _anno(image_id: str, objects: Sequence[Annotated]) -> np.ndarray:
    """The nested structure of a PASCAL-Part file. As in the originals, `parts` is an empty matrix if there are none."""
    entries = np.empty((1, len(objects)), _OBJECT)
    for entry, annotated in zip(entries[0], objects, strict=True):
        parts = np.empty((1, len(annotated.parts)), _PART)
        for part, (name, mask) in zip(parts[0], annotated.parts.items(), strict=True):
            part["part_name"], part["mask"] = name, mask.astype(np.uint8)
        entry["class"], entry["class_ind"] = _class_name(annotated.category), np.uint8(annotated.category)
        entry["mask"], entry["parts"] = annotated.mask.astype(np.uint8), parts if annotated.parts else np.empty((0, 0))
    anno = np.empty((1, 1), [("imname", object), ("objects", object)])
    anno[0, 0]["imname"], anno[0, 0]["objects"] = image_id, entries
    return anno


def _class_name(category: int) -> str:
    from mtlora_jax.tasks.semseg import VOC_CLASSES  # here, because it imports JAX

    return VOC_CLASSES[category]
