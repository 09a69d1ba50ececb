"""PASCAL_MT for TFDS: PASCAL-Context with labels for semseg, human_parts, sal, normals and edge."""

import functools
import pathlib
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds

from mtlora_jax.errors import UserError
from tfds_pascal_context import files, labels, layout
from tfds_pascal_context.builder import BYTES, NORMALS, RawBuilder, configs
from tfds_pascal_context.raw import Raw

CLASSES = 21  # of semseg

Size = tuple[int, int]


class PascalRaw(Raw):
    """The unpacked PASCAL_MT; see `tfds_pascal_context.layout` for its files."""

    name = "pascal_context"
    archive = "PASCAL_MT.tgz"
    tasks = ("semseg", "human_parts", "sal", "normals", "edge")
    counts: ClassVar = {"train": 4998, "val": 5105}
    largest = 2**34
    images = layout.IMAGES
    lists = layout.LISTS

    def folders(self, task: str) -> list[str]:
        return [folder for folder, _ in FILES[task]]

    def has(self, task: str) -> bool:
        return (any if task == "semseg" else all)((self.root / folder).is_dir() for folder in self.folders(task))

    def files(self, task: str, image_id: str) -> list[pathlib.Path]:
        paths = [self.root / folder / (image_id + suffix) for folder, suffix in FILES[task]]
        return [next((path for path in paths if path.is_file()), paths[0])] if task == "semseg" else paths

    def label(self, task: str, image_id: str, size: Size) -> np.ndarray:
        return LABELS[task](self.files(task, image_id), size)

    def has_people(self, image_id: str) -> bool:
        return labels.has_people(_objects(*self.files("human_parts", image_id)))


class PascalContext(RawBuilder):
    """PASCAL-Context for multi-task learning (PASCAL_MT)."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "First version."}
    BUILDER_CONFIGS: ClassVar = configs(PascalRaw)
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "PASCAL_MT.tgz is downloaded if it is not in manual_dir. If you have it already, or the server is gone, give "
        "the archive, the folder it unpacks to, or the folder that holds either."
    )

    RAW = PascalRaw
    FEATURES: ClassVar = {"semseg": BYTES, "human_parts": BYTES, "sal": BYTES, "normals": NORMALS, "edge": BYTES}
    URL = "https://data.vision.ee.ethz.ch/kmaninis/share/MTL/PASCAL_MT.tgz"
    HOMEPAGE = "https://github.com/facebookresearch/astmt"
    LICENSE = (
        "No single licence. The photographs come from Flickr under its terms of use (PASCAL VOC 2010); the annotations "
        "of PASCAL VOC, PASCAL-Context and PASCAL-Part are published for research without a licence text; normals "
        "and saliency were distilled by the authors of ASTMT, whose code is CC BY-NC 4.0. Research use; "
        "do not redistribute."
    )


def _semseg(paths: list[pathlib.Path], size: Size) -> np.ndarray:
    label = files.read_image(paths[0], ("P", "L"), "a palette or grey PNG of VOC classes")
    return files.check_classes(paths[0], label, CLASSES)


def _human_parts(paths: list[pathlib.Path], size: Size) -> np.ndarray:
    objects = _objects(paths[0])
    try:
        return labels.human_parts(objects, size)
    except UserError as error:
        raise UserError(f"{paths[0]}: {error}") from error


def _sal(paths: list[pathlib.Path], size: Size) -> np.ndarray:
    return labels.binary(files.read_image(paths[0], ("L",), "a grey PNG of saliency") > 127)


def _normals(paths: list[pathlib.Path], size: Size) -> np.ndarray:
    encoded = files.read_image(paths[0], ("RGB",), "an RGB PNG of normals")
    return labels.valid_normals(encoded, layout.read_context(paths[1]))


def _edge(paths: list[pathlib.Path], size: Size) -> np.ndarray:
    return labels.edges(layout.read_context(paths[0]))


def _objects(path: pathlib.Path) -> list[layout.Annotated]:
    return _unchanged(path, path.stat().st_mtime_ns if path.is_file() else 0)


@functools.lru_cache(maxsize=1)  # read for the label and again for `has_people`
def _unchanged(path: pathlib.Path, modified: int) -> list[layout.Annotated]:
    del modified  # part of the key of the cache
    return layout.read_objects(path)


FILES = {
    "semseg": [(folder, ".png") for folder in layout.SEMSEG],
    "human_parts": [(layout.HUMAN_PARTS, ".mat")],
    "sal": [(layout.SAL, ".png")],
    "normals": [(layout.NORMALS, ".png"), (layout.CONTEXT, ".mat")],
    "edge": [(layout.CONTEXT, ".mat")],
}
LABELS = {"semseg": _semseg, "human_parts": _human_parts, "sal": _sal, "normals": _normals, "edge": _edge}
