"""Prepared data sets: reads what the builders of `tfds_pascal_context` write, without TensorFlow.

A data set is in ROOT/NAME/CONFIG/VERSION/, the layout of TFDS, as ArrayRecord files. CONFIG says which tasks have
labels. Images and labels stay encoded as JPEG and PNG, so that only the requested ones are decoded.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from mtlora_jax.data.decoding import EncodedFile, Example, decode_example, decode_label
from mtlora_jax.errors import UserError
from mtlora_jax.tasks import TASKS, Task, make_tasks
from mtlora_jax.tasks.binary import Binary
from mtlora_jax.tasks.human_parts import HumanParts

INCOMPLETE = "incomplete."  # prefix of folders that TFDS has not finished
NYU_CLASSES = (
    "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door",
    "window", "bookshelf", "picture", "counter", "blinds", "desk", "shelves", "curtain",
    "dresser", "pillow", "mirror", "floor mat", "clothes", "ceiling", "books", "refrigerator",
    "television", "paper", "towel", "shower curtain", "box", "whiteboard", "person", "night stand",
    "toilet", "sink", "lamp", "bathtub", "bag", "otherstructure", "otherfurniture", "otherprop",
)  # fmt: skip


class PreparedDataset:
    """Random access to the examples of one split.

    `dataset[i]` returns `decode_example` of its record and raises its errors. `tasks` maps the requested names, in
    their order, to tasks with the class names. `ids` are those of the images, or record numbers if the builder stored
    none. Of several configs, the one with the fewest tasks that has all requested ones is read, in its newest version.
    With human_parts as the only task, images without labelled people are left out, as in the reference implementation.

    Raises UserError if the data set is not built, or only half, or lacks a task or the split.
    """

    name: ClassVar[str]
    classes: ClassVar[Mapping[str, Sequence[str]]] = {}  # of tasks without the default classes

    def __init__(self, root: str | pathlib.Path, split: str, tasks: Sequence[str]):
        self.tasks = self.make_tasks(root, tasks)
        self.folder = self._find(pathlib.Path(root))
        self.split = split
        builder = _open(self.folder)
        if split not in builder.info.splits:
            raise UserError(f"{self.folder}: no split {split!r}; the data set has {', '.join(builder.info.splits)}")
        info = builder.info.splits[split]
        absent = [str(path) for path in info.filepaths if not path.exists()]
        if absent:
            raise UserError(f"{absent[0]}: no such file, but {self.folder} lists it; build the data set again")
        ids, people = ((builder.info.metadata.get(key) or {}).get(split) for key in ("image_ids", "people"))
        self._indices = list(range(info.num_examples))
        if list(self.tasks) == [HumanParts.name]:
            if ids is None or people is None:
                lacks = f"metadata.json does not list the images of {split} with people"
                raise UserError(f"{self.folder}: {lacks}; build the data set again")
            self._indices = [index for index, chosen in enumerate(np.isin(ids, people)) if chosen]
        if not self._indices:
            raise UserError(f"{self.folder}: split {split!r} has no image with labels of {', '.join(self.tasks)}")
        self.ids = [ids[index] if ids and len(ids) == info.num_examples else str(index) for index in self._indices]

    @classmethod
    def make_tasks(cls, root: str | pathlib.Path, tasks: Sequence[str]) -> dict[str, Task]:
        """Build the tasks with the classes of this data set, even if its files are missing."""
        del root
        made = make_tasks(tasks, cls.classes)
        return {
            name: dataclasses.replace(task, encoding="0/255") if isinstance(task, Binary) else task
            for name, task in made.items()
        }

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Example:
        image_id, encoded = self._read(index, ("image", *self.tasks))
        return decode_example(image_id, encoded["image"], encoded, self.tasks)

    def label(self, index: int, task: str) -> np.ndarray:
        """Decode one label of an example. Raises UserError if it is bad."""
        return decode_label(self.tasks[task], self._read(index, (task,))[1][task])

    def _read(self, index: int, names: Sequence[str]) -> tuple[str, dict[str, EncodedFile]]:
        """Read the id of an example and the requested features of its record."""
        place = f"{self.name}/{self.split}"
        try:
            features = self._parse(self._records[self._indices[index]]).features.feature
            image_id = _content(features["image_id"]).decode()
            return image_id, {
                name: EncodedFile(_content(features[name]), f"{place}: {image_id} ({name})") for name in names
            }
        except Exception as error:  # a damaged record can fail in any way
            raise UserError(
                f"{place}: record {self._indices[index]} cannot be read ({error}); build {self.folder} again"
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        opened = ("_records", "_parse")  # every process opens the files itself
        return {name: value for name, value in self.__dict__.items() if name not in opened}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.folder)!r}, {self.split!r}, {list(self.tasks)})"

    @functools.cached_property
    def _records(self) -> Sequence[bytes]:
        return _open(self.folder).as_data_source(self.split).data_source

    @functools.cached_property
    def _parse(self) -> Callable[[bytes], Any]:
        """The parser of a record; TFDS would also copy features that are not requested."""
        from tensorflow_datasets.proto import tf_example_pb2

        return tf_example_pb2.Example.FromString  # pyright: ignore[reportAttributeAccessIssue]

    def _find(self, root: pathlib.Path) -> pathlib.Path:
        """Find the folder to read."""
        here = root / self.name
        command = f"python -m tfds_pascal_context.build --dataset={self.name} --data_dir={root}"
        builders = [
            _open(path.parent)
            for path in here.glob("*/*/dataset_info.json")
            if not path.parent.name.startswith(INCOMPLETE)
        ]
        if not builders:
            begun = list(here.glob("*.partial")) + list(here.glob(f"*/{INCOMPLETE}*"))
            state = (
                f"{begun[0]}: the data set is only half built; finish it"
                if begun
                else f"{here}: no such data set; build it"
            )
            raise UserError(f"{state} with {command}")
        has = {builder.data_dir: [task for task in TASKS if task in builder.info.features] for builder in builders}
        fitting = [builder for builder in builders if set(self.tasks) <= set(has[builder.data_dir])]
        if not fitting:
            built = "; ".join(sorted({", ".join(tasks) for tasks in has.values()}))
            lacks = f"no config has the tasks {', '.join(self.tasks)}"
            raise UserError(f"{here}: {lacks}; built: {built}. Build another with {command}")
        fewest = min(len(has[builder.data_dir]) for builder in fitting)
        newest = max(
            (builder for builder in fitting if len(has[builder.data_dir]) == fewest),
            key=lambda builder: builder.version,
        )
        return pathlib.Path(newest.data_dir)


class PascalContext(PreparedDataset):
    """PASCAL-Context with the labels of PASCAL_MT."""

    name = "pascal_context"


class NYUD(PreparedDataset):
    """NYU Depth v2 with the labels of NYUD_MT."""

    name = "nyud"
    classes: ClassVar = {"semseg": NYU_CLASSES}


def _content(feature: Any) -> bytes:
    """Return the bytes of a feature. Raises ValueError if there are none."""
    (content,) = feature.bytes_list.value
    return content


def _open(folder: pathlib.Path) -> Any:
    """Open a folder with TFDS. Raises UserError if it cannot be read."""
    import tensorflow_datasets as tfds  # takes half a second, which programs without data should not spend

    try:
        builder = tfds.builder_from_directory(folder)
        assert builder.info.metadata is not None  # read here, since TFDS would read it later
        return builder
    except Exception as error:  # a damaged file can fail in any way
        raise UserError(f"{folder}: cannot be read as a prepared data set ({error}); build it again") from error
