"""Description of a kind of files for fuzzing: how to damage them, open them and check the result."""

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
    """How to open a file, and a check of (the result, the file's bytes, its path)."""

    open: Open
    check: Check


class Kind(NamedTuple):
    """Files of one kind.

    Attributes:
      genuine: {path below the folder: bytes} of valid files; a damaged file replaces one of them.
      damage: one of `mutations`.
      ways: to open a file, used in turn.
      command: returns arguments after `python -m` of a command that must end with one line, given the path of the first
        genuine file when the first way has refused its damaged form.
      after: asserts that nothing was left behind, given the folder and whether the file was refused.
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
CONFIG = {"epochs": 2, "data": {"name": "folder", "eval_split": "val"}}
EXTRA = {
    "classes": {"semseg": ["red", "green", "blue"]},
    "scores": {"semseg/mIoU": 31.5, "sal/mIoU": None, "delta_m": -1.25},
    "step": 12,
    "training": {"command": "python -m mtlora_jax.main", "config": CONFIG},
    "converted_from": {"file": "swin_tiny_patch4_window7_224.pth", "format": "swin"},
}


def write_model(folder: pathlib.Path) -> None:
    model_folder.save(folder, ARCHITECTURE, micro.random_arrays(ARCHITECTURE), EXTRA)
