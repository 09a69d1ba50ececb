"""A tiny folder data set with labels for every task, which a model can learn in seconds: colours determine classes."""

import json
import pathlib
import struct
import zlib
from collections.abc import Sequence

import cv2
import numpy as np
import PIL.Image

CLASSES = ("background", "red", "green", "blue")
COLOURS = np.array([(60, 60, 60), (220, 40, 40), (40, 220, 40), (40, 40, 220)], np.uint8)
# Surface normal and depth of each class.
DIRECTIONS = np.array([(0, 0, 1), (0.6, 0, 0.8), (0, 0.6, 0.8), (-0.6, 0, 0.8)], np.float32)
METRES = np.array([8, 2, 4, 6], np.float32)
TASKS = ("semseg", "human_parts", "sal", "normals", "edge", "depth")


def write_tiny_dataset(
    root: pathlib.Path,
    tasks: Sequence[str] = TASKS,
    train: int = 6,
    val: int = 5,
    size: tuple[int, int] = (40, 56),
    seed: int = 0,
) -> pathlib.Path:
    """Writes `train` + `val` pictures of `size` = (H, W): two coloured rectangles on grey. Returns `root`."""
    rng = np.random.default_rng(seed)
    for folder in ("images", "splits", *tasks):
        (root / folder).mkdir(parents=True)
    ids = {"train": [f"train{i}" for i in range(train)], "val": [f"val{i:03}" for i in range(val)]}
    for split, names in ids.items():
        (root / "splits" / f"{split}.txt").write_text("".join(name + "\n" for name in names))
        for name in names:
            classes = _classes(size, rng)
            noise = rng.integers(-10, 11, (*size, 3))
            _save(root / "images" / f"{name}.png", (COLOURS[classes] + noise).astype(np.uint8))
            for task in tasks:
                _save(root / task / f"{name}.png", _label(task, classes))
    classes = {task: CLASSES for task in tasks if task in ("semseg", "human_parts")}
    (root / "classes.json").write_text(json.dumps(classes))
    return root


def _classes(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    height, width = size
    classes = np.zeros(size, np.uint8)
    for left, right in ((0, width // 2), (width // 2, width)):
        top = rng.integers(2, height // 3)
        start = rng.integers(left + 2, left + (right - left) // 3)
        classes[top : top + height // 2, start : start + (right - left) // 2] = rng.integers(1, len(CLASSES))
    return classes


def _label(task: str, classes: np.ndarray) -> np.ndarray:
    """The label image of a task as stored in its file."""
    if task == "sal":
        return np.where(classes > 0, 255, 0).astype(np.uint8)
    if task == "normals":
        return np.round((DIRECTIONS[classes] + 1) * 127.5).astype(np.uint8)
    if task == "edge":
        return np.where(cv2.dilate(classes, np.ones((3, 3))) != classes, 255, 0).astype(np.uint8)
    if task == "depth":
        return (METRES[classes] * 1000).astype(np.uint16)
    return classes


def _save(path: pathlib.Path, pixels: np.ndarray) -> None:
    PIL.Image.fromarray(pixels).save(path)


def png(pixels: Sequence[Sequence[int]] | np.ndarray, bits: int, palette: bool = False) -> bytes:
    """A PNG with 1 to 16 bits per pixel that stores these values, as grey or as indices of a palette."""
    rows = np.asarray(pixels)
    height, width = rows.shape
    unpacked = np.unpackbits(rows.astype(">u2").view(np.uint8).reshape(height, width, 2), axis=2)  # (H, W, 16)
    lines = np.packbits(unpacked[..., 16 - bits :].reshape(height, -1), axis=1)
    chunks = {b"IHDR": struct.pack(">IIBBBBB", width, height, bits, 3 if palette else 0, 0, 0, 0)}
    if palette:
        chunks[b"PLTE"] = np.random.default_rng(0).integers(0, 256, 3 * 2**bits).astype(np.uint8).tobytes()
    chunks |= {b"IDAT": zlib.compress(b"".join(b"\0" + line.tobytes() for line in lines)), b"IEND": b""}
    parts = [(struct.pack(">I", len(data)), kind + data) for kind, data in chunks.items()]
    return b"\x89PNG\r\n\x1a\n" + b"".join(size + part + struct.pack(">I", zlib.crc32(part)) for size, part in parts)
