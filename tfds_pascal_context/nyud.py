"""NYUD_MT for TFDS: NYU Depth v2 with labels for semseg (40 classes), normals, edge and depth.

ROOT/images/ID.jpg
ROOT/gt_sets/{train,val}.txt     ids, one per line
ROOT/segmentation/ID.png         0 = ignore, 1 to 40
ROOT/normals/ID.npy              (H, W, 3) float; the zero vector where unknown
ROOT/edge/ID.npy                 (H, W), above 0 on an edge
ROOT/depth/ID.npy                (H, W) float, metres; 0 where unknown
"""

import pathlib
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds

from mtlora_jax.errors import UserError
from tfds_pascal_context import files, labels
from tfds_pascal_context.builder import BYTES, NORMALS, RawBuilder, configs
from tfds_pascal_context.raw import Raw

CLASSES = 40  # of semseg
FARTHEST = 65.535  # metres: the largest number of millimetres in 16 bits


class NyudRaw(Raw):
    """The unpacked NYUD_MT."""

    name = "nyud"
    archive = "NYUD_MT.tgz"
    tasks = ("semseg", "normals", "edge", "depth")
    counts: ClassVar = {"train": 795, "val": 654}
    largest = 2**36  # the label arrays are not compressed
    images = "images"
    lists = "gt_sets"

    def folders(self, task: str) -> list[str]:
        return [FOLDERS[task]]

    def files(self, task: str, image_id: str) -> list[pathlib.Path]:
        return [self.root / FOLDERS[task] / (image_id + (".png" if task == "semseg" else ".npy"))]

    def label(self, task: str, image_id: str, size: tuple[int, int]) -> np.ndarray:
        return LABELS[task](*self.files(task, image_id))


class Nyud(RawBuilder):
    """NYU Depth v2 for multi-task learning (NYUD_MT)."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "First version."}
    BUILDER_CONFIGS: ClassVar = configs(NyudRaw)
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "fetch NYUD_MT.tgz with a browser from https://drive.google.com/file/d/14EAEMXmd3zs2hIMY63UhHPSFPDAkiTzw and "
        "give it, the folder it unpacks to, or the folder that holds either, as manual_dir."
    )

    RAW = NyudRaw
    FEATURES: ClassVar = {
        "semseg": BYTES,
        "normals": NORMALS,
        "edge": BYTES,
        "depth": tfds.features.Image(shape=(None, None, 1), dtype=np.uint16, encoding_format="png"),
    }
    HOMEPAGE = "https://cs.nyu.edu/~fergus/datasets/nyu_depth_v2.html"
    LICENSE = "NYU Depth v2 is published for research without a licence text; research use, do not redistribute."


def _semseg(path: pathlib.Path) -> np.ndarray:
    label = files.read_image(path, ("P", "L"), "a grey PNG of NYU classes")
    return files.check_classes(path, label - np.uint8(1), CLASSES)  # 0 wraps around to 255, ignore


def _normals(path: pathlib.Path) -> np.ndarray:
    vectors = files.read_npy(path, 3, "a NumPy array (H, W, 3) of normals")
    if vectors.shape[2] != 3:
        raise UserError(f"{path}: has the shape {vectors.shape}; expected (H, W, 3)")
    return labels.encode_normals(vectors)


def _edge(path: pathlib.Path) -> np.ndarray:
    return labels.binary(files.read_npy(path, 2, "a NumPy array (H, W) of edges") > 0)


def _depth(path: pathlib.Path) -> np.ndarray:
    metres = files.read_npy(path, 2, "a NumPy array (H, W) of metres")
    metres = np.where(np.isfinite(metres) & (metres > 0), metres, 0).astype(np.float64)
    if metres.max(initial=0) > FARTHEST:
        raise UserError(f"{path}: has a depth of {metres.max():g}; expected metres up to {FARTHEST}")
    return np.round(metres * 1000).astype(np.uint16)


FOLDERS = {"semseg": "segmentation", "normals": "normals", "edge": "edge", "depth": "depth"}
LABELS = {"semseg": _semseg, "normals": _normals, "edge": _edge, "depth": _depth}
