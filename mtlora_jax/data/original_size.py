"""Examples whose labels keep the size of their images, to score predictions as the files have them."""

from collections.abc import Mapping, Sequence

import numpy as np

from mtlora_jax.data.decoding import Example
from mtlora_jax.data.pipeline import Dataset
from mtlora_jax.tasks.task import IGNORE, Task

STEP = 128  # pixels: sides of the arrays are multiples of it, so that few programs are compiled whatever sizes the images have


class OriginalSize:
    """A data set as `eval_batches` takes it, seen so that transforms find no label to resize.

    "originals" of a batch is an object array (B,) of {task: label as `Task.finish` gives it, at the size of its image}.
    """

    tasks: Mapping[str, Task] = {}

    def __init__(self, dataset: Dataset):
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Example:
        example = self._dataset[index]
        originals = np.empty((), object)  # what batches take as it is, though the sizes differ
        originals[()] = {name: task.finish(example[name]) for name, task in self._dataset.tasks.items()}
        return {"image_id": example["image_id"], "image": example["image"], "originals": originals}


def sizes_of(originals: Sequence[Mapping[str, np.ndarray]]) -> np.ndarray:
    """Height and width of each image, (B, 2) int32."""
    return np.array([next(iter(labels.values())).shape[:2] for labels in originals], np.int32)


def canvas_for(sizes: np.ndarray) -> np.ndarray:
    """(2,): the smallest height and width that hold images of all `sizes` (B, 2) and are multiples of `STEP`."""
    return -(-sizes.max(axis=0) // STEP) * STEP


def on_canvas(originals: Sequence[Mapping[str, np.ndarray]], canvas: tuple[int, int]) -> dict[str, np.ndarray]:
    """{task: labels (B, *canvas[, D])}: each lies in the upper left corner, and all around it is `IGNORE`."""
    batch = {}
    for name, like in originals[0].items():
        batch[name] = np.full((len(originals), *canvas, *like.shape[2:]), IGNORE, like.dtype)
        for row, labels in zip(batch[name], originals, strict=True):
            height, width = labels[name].shape[:2]
            row[:height, :width] = labels[name]
    return batch
