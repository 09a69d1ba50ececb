"""What it takes to damage files of one kind, and to see whether they are opened rightly."""

import io
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import micro
import mutations
import numpy as np
import PIL.Image

from mtlora_jax.model_io import model_folder

Open = Callable[[pathlib.Path], Any]
Check = Callable[[Any, bytes, pathlib.Path], None]


class Way(NamedTuple):
    """How a file is opened, and what is asserted of (what came of it, the file's bytes, its path)."""

    open: Open
    check: Check


class Kind(NamedTuple):
    """Files of one kind.

    Attributes:
      genuine: {path below the folder: bytes}, each of which must be right; the damaged file takes this place.
      damage: one of `mutations`.
      ways: all are taken in turn.
      command: arguments after `python -m` that end with one line because the first of the files was refused, the first way.
      after: asserts that nothing was left behind, of (the folder, whether the file was refused).
    """

    genuine: dict[str, bytes]
    damage: mutations.Damage
    ways: list[Way]
    command: Callable[[pathlib.Path], list[str]]
    after: Callable[[pathlib.Path, bool], None] = lambda folder, refused: None


def encoded(pixels: np.ndarray, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, format, **options)
    return buffer.getvalue()


ARCHITECTURE = micro.architecture(stages=1, tasks=("semseg", "sal"))
EXTRA = {
    "classes": {"semseg": ["red", "green", "blue"]},
    "scores": {"semseg/mIoU": 31.5, "sal/mIoU": None, "delta_m": -1.25},
    "step": 12,
    "training": {
        "command": "python -m mtlora_jax.main",
        "config": {"epochs": 2, "data": {"name": "folder", "eval_split": "val"}},
    },
    "converted_from": {"file": "swin_tiny_patch4_window7_224.pth", "format": "swin"},
}


def write_model(folder: pathlib.Path) -> None:
    model_folder.save(folder, ARCHITECTURE, micro.random_arrays(ARCHITECTURE), EXTRA)
