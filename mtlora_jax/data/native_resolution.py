"""Examples whose labels keep the size of their images, to score predictions as the files have them."""

from collections.abc import Mapping, Sequence

import numpy as np

from mtlora_jax.data.decoding import Example
from mtlora_jax.data.pipeline import Dataset
from mtlora_jax.tasks.task import IGNORE, Task

BYTES = 2**31  # of float32 logits at the images' sizes, on each device, that are made at once
STEP = 128  # pixels: sides of the arrays are multiples of it, so that few programs are compiled whatever sizes the images have


class OriginalSize:
    """A data set as `eval_batches` takes it, seen so that transforms find no label to resize.

    "native_labels" of a batch is an object array (B,) of {task: label as `Task.finish` gives it, at the size of its image}.
    """

    tasks: Mapping[str, Task] = {}

    def __init__(self, dataset: Dataset):
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Example:
        example = self._dataset[index]
        originals = np.empty((), object)  # what batches take as it is, though the sizes differ
        originals[()] = {name: task.to_device_format(example[name]) for name, task in self._dataset.tasks.items()}
        return {"image_id": example["image_id"], "image": example["image"], "native_labels": originals}


def sizes_of(originals: Sequence[Mapping[str, np.ndarray]]) -> np.ndarray:
    """Height and width of each image, (B, 2) int32."""
    return np.array([next(iter(labels.values())).shape[:2] for labels in originals], np.int32)


def canvas_for(sizes: np.ndarray) -> np.ndarray:
    """(2,): the smallest height and width that hold images of all `sizes` (B, 2) and are multiples of `STEP`."""
    return -(-sizes.max(axis=0) // STEP) * STEP


def groups_of(sizes: np.ndarray, channels: int) -> list[tuple[list[int], tuple[int, int]]]:
    """Which rows of a batch are scored together, and on which canvas: all, unless their logits take more than `BYTES`.

    Then images of like sizes come together, in halves, quarters and so on, so that few programs are compiled. An image that is too large
    by itself is alone; see `band_of`.

    Args:
      sizes: (devices, rows, 2), heights and widths of the images on each device.
      channels: of the logits.
    """

    def halved(rows: list[int]) -> list[tuple[list[int], tuple[int, int]]]:
        height, width = map(int, canvas_for(sizes[:, rows].reshape(-1, 2)))
        if len(rows) == 1 or len(rows) * height * width * channels * 4 <= BYTES:
            return [(sorted(rows), (height, width))]
        middle = len(rows) // 2
        return halved(rows[:middle]) + halved(rows[middle:])

    return halved(sorted(range(sizes.shape[1]), key=lambda row: sizes[:, row].max(axis=0).tolist()))


def band_of(canvas: tuple[int, int], rows: int, channels: int) -> int:
    """How many lines of a canvas to score at once: all of them, unless the logits of so many rows take more than `BYTES`."""
    height, width = canvas
    most = BYTES // (rows * width * channels * 4)
    return height if height <= most else max(most // STEP, 1) * STEP


def on_canvas(originals: Sequence[Mapping[str, np.ndarray]], canvas: tuple[int, int]) -> dict[str, np.ndarray]:
    """{task: labels (B, *canvas[, D])}: each lies in the upper left corner, and all around it is `IGNORE`."""
    batch = {}
    for name, like in originals[0].items():
        batch[name] = np.full((len(originals), *canvas, *like.shape[2:]), IGNORE, like.dtype)
        for row, labels in zip(batch[name], originals, strict=True):
            height, width = labels[name].shape[:2]
            row[:height, :width] = labels[name]
    return batch
