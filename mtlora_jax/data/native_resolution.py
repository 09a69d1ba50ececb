"""Labels at the native resolution of their images, for evaluation."""

from collections.abc import Mapping, Sequence

import numpy as np

from mtlora_jax.data.decoding import Example
from mtlora_jax.data.pipeline import Dataset
from mtlora_jax.tasks.task import IGNORE, Task

MAX_LOGITS_BYTES = 2**31  # of float32 logits at native resolution, per device at once
STEP = 128  # pixels; canvas sides are multiples of it, so that few programs are compiled for many image sizes


class NativeLabels:
    """A data set for `eval_batches` whose labels are not resized.

    "native_labels" of a batch is an object array (B,) of {task: label in device format, at the size of its image}.
    """

    tasks: Mapping[str, Task] = {}  # empty, so that transforms find no label to resize

    def __init__(self, dataset: Dataset):
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Example:
        example = self._dataset[index]
        labels = np.empty((), object)  # objects can be batched although the sizes differ
        labels[()] = {name: task.to_device_format(example[name]) for name, task in self._dataset.tasks.items()}
        return {"image_id": example["image_id"], "image": example["image"], "native_labels": labels}


def native_sizes(native_labels: Sequence[Mapping[str, np.ndarray]]) -> np.ndarray:
    """Return the height and width of each image, (B, 2) int32."""
    return np.array([next(iter(labels.values())).shape[:2] for labels in native_labels], np.int32)


def canvas_size(sizes: np.ndarray) -> np.ndarray:
    """Return the smallest (height, width) in multiples of `STEP` that holds images of all `sizes` (B, 2)."""
    return -(-sizes.max(axis=0) // STEP) * STEP


def group_rows(sizes: np.ndarray, channels: int) -> list[tuple[list[int], tuple[int, int]]]:
    """Group the rows of a batch to score together; return (rows, canvas size) of each group.

    All rows form one group unless their logits take more than `MAX_LOGITS_BYTES`. Then they are split by size into
    halves, quarters and so on, so that few programs are compiled. An image that is too large by itself is alone; see
    `band_height`.

    Args:
      sizes: (devices, rows, 2), heights and widths of the images on each device.
      channels: of the logits.
    """

    def split(rows: list[int]) -> list[tuple[list[int], tuple[int, int]]]:
        height, width = map(int, canvas_size(sizes[:, rows].reshape(-1, 2)))
        if len(rows) == 1 or len(rows) * height * width * channels * 4 <= MAX_LOGITS_BYTES:
            return [(sorted(rows), (height, width))]
        middle = len(rows) // 2
        return split(rows[:middle]) + split(rows[middle:])

    return split(sorted(range(sizes.shape[1]), key=lambda row: sizes[:, row].max(axis=0).tolist()))


def band_height(canvas: tuple[int, int], rows: int, channels: int) -> int:
    """Return how many lines of a canvas to score at once: all, unless logits exceed `MAX_LOGITS_BYTES`."""
    height, width = canvas
    most = MAX_LOGITS_BYTES // (rows * width * channels * 4)
    return height if height <= most else max(most // STEP, 1) * STEP


def place_on_canvas(
    native_labels: Sequence[Mapping[str, np.ndarray]], canvas: tuple[int, int]
) -> dict[str, np.ndarray]:
    """Return {task: labels (B, *canvas[, D])}, each in the upper left corner and surrounded by `IGNORE`."""
    batch = {}
    for name, like in native_labels[0].items():
        batch[name] = np.full((len(native_labels), *canvas, *like.shape[2:]), IGNORE, like.dtype)
        for row, labels in zip(batch[name], native_labels, strict=True):
            height, width = labels[name].shape[:2]
            row[:height, :width] = labels[name]
    return batch
