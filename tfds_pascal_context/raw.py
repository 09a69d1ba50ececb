"""Common interface of both unpacked data sets: lists of ids, images, and the files of each task."""

import abc
import dataclasses
import pathlib
import re
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from mtlora_jax.errors import UserError
from mtlora_jax.io.files import read_text

SPLITS = ("train", "val")


@dataclasses.dataclass(frozen=True)
class Raw(abc.ABC):
    """The unpacked data set in the folder `root`; pickled for the workers."""

    root: pathlib.Path

    name: ClassVar[str]
    archive: ClassVar[str]  # file name of the published archive
    tasks: ClassVar[tuple[str, ...]]
    counts: ClassVar[dict[str, int]]  # images per split of the published data set
    largest: ClassVar[int]  # bytes that an archive may unpack to: about four times the published one
    images: ClassVar[str]  # folder
    lists: ClassVar[str]  # folder

    @abc.abstractmethod
    def files(self, task: str, image_id: str) -> list[pathlib.Path]:
        """Returns the paths of the files that a label is made from, whether they exist or not."""

    @abc.abstractmethod
    def folders(self, task: str) -> list[str]:
        """Returns the folders of a task's files, relative to `root`."""

    @abc.abstractmethod
    def label(self, task: str, image_id: str, size: tuple[int, int]) -> np.ndarray:
        """Returns the label as in the built data set, but in its annotated size; `size` = (H, W) is the image's.

        It is (H, W) uint8 or uint16, or (H, W, 3) uint8 for normals. Raises UserError naming a file.
        """

    def has_people(self, image_id: str) -> bool:
        """Whether an image is used to train human parts alone. Raises UserError naming a file."""
        raise NotImplementedError(f"{self.name} has no human_parts: {image_id}")

    def image(self, image_id: str) -> pathlib.Path:
        """Returns the path of the photograph."""
        return self.root / self.images / f"{image_id}.jpg"

    def paths(self, tasks: Sequence[str], image_id: str) -> list[pathlib.Path]:
        """Returns the paths of the image and of all files for the labels of `tasks`."""
        return [self.image(image_id), *(path for task in tasks for path in self.files(task, image_id))]

    def list_file(self, split: str) -> pathlib.Path:
        """Returns the path of the list of a split's ids."""
        return self.root / self.lists / f"{split}.txt"

    def ids(self) -> dict[str, list[str]]:
        """Returns {split: ids in the order of its list}.

        Raises UserError for a list that is missing or empty, and for an id that is invalid or listed twice.
        """
        ids = {split: self._read_list(self.list_file(split)) for split in SPLITS}
        both = set(ids["train"]) & set(ids["val"])
        if both:
            raise UserError(f"{self.list_file('val')}: {min(both)!r} is in train.txt too; expected each id once")
        return ids

    def check_counts(self, ids: dict[str, list[str]]) -> None:
        """Raises UserError if the length of a list differs from the published one."""
        for split, expected in self.counts.items():
            if len(ids[split]) != expected:
                raise UserError(
                    f"{self.list_file(split)}: lists {len(ids[split])} images, the published data set has {expected}; "
                    "give --allow_partial if this is intended"
                )

    def check_folders(self, tasks: Sequence[str]) -> None:
        """Raises UserError if `has` is false for a task."""
        absent = [task for task in tasks if not self.has(task)]
        if absent:
            has = ",".join(task for task in self.tasks if self.has(task))
            hint = f"the data set has --tasks={has}" if has else "the data set has no labels at all"
            wanted = " and ".join(f"{task} ({', '.join(self.folders(task))})" for task in absent)
            raise UserError(f"{self.root}: no labels for {wanted}; {hint}")

    def has(self, task: str) -> bool:
        """Whether every file of a task has a folder to be in."""
        return all((self.root / folder).is_dir() for folder in self.folders(task))

    @staticmethod
    def _read_list(path: pathlib.Path) -> list[str]:
        if not path.is_file():
            raise UserError(f"{path}: no such file; expected a list of image ids, one per line")
        ids = read_text(path).split()
        if not ids:
            raise UserError(f"{path}: empty; expected a list of image ids, one per line")
        seen: set[str] = set()
        for image_id in ids:
            if not re.fullmatch(r"\w[\w.-]*", image_id, re.ASCII):
                raise UserError(
                    f"{path}: {image_id[:80]!r} is not an image id; expected letters, digits, '_', '.', '-'"
                )
            if image_id in seen:
                raise UserError(f"{path}: {image_id!r} is listed twice; expected each id once")
            seen.add(image_id)
        return ids


def config_name(raw: type[Raw], tasks: Sequence[str]) -> str:
    """Returns the name of the builder config with `tasks`: "all", or their names in the usual order.

    Raises UserError for a task that is unknown or given twice, and for no task.
    """
    for task in tasks:
        if task not in raw.tasks:
            raise UserError(f"unknown task {task!r}; {raw.name} has {', '.join(raw.tasks)}")
    if not tasks or len(set(tasks)) < len(tasks):
        raise UserError(f"tasks = {','.join(tasks)!r}; expected some of {', '.join(raw.tasks)}, each once")
    ordered = [task for task in raw.tasks if task in tasks]
    return "all" if len(ordered) == len(raw.tasks) else "-".join(ordered)
