"""Prepared data sets: what the builders of `tfds_pascal_context` write, read without TensorFlow.

A data set lies in ROOT/NAME/CONFIG/VERSION/, as TFDS lays it out, in ArrayRecord files; CONFIG says which tasks it has labels of. Images
and labels stay encoded as JPEG and PNG, so that only those asked for are decoded.
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

INCOMPLETE = "incomplete."  # so begins the name of a folder that TFDS has not finished
NYU_CLASSES = (
    *("wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf", "picture", "counter", "blinds", "desk"),
    *("shelves", "curtain", "dresser", "pillow", "mirror", "floor mat", "clothes", "ceiling", "books", "refrigerator", "television"),
    *("paper", "towel", "shower curtain", "box", "whiteboard", "person", "night stand", "toilet", "sink", "lamp", "bathtub", "bag"),
    *("otherstructure", "otherfurniture", "otherprop"),
)


class PreparedDataset:
    """Random access to the examples of one split.

    `dataset[i]` is what `decode_example` makes of its record, with its errors. `tasks` maps the names asked for, in their order, to
    tasks that know the class names. `ids` are those of the images, or the numbers of their records where the builder told none. Of
    several configs the smallest that has all tasks is read, and of that the newest version. With human_parts as the only task, images
    without a person whose parts are labelled are left out, as in the reference.

    Raises UserError where nothing is built, or only half, and for a task or a split that is not there.
    """

    name: ClassVar[str]
    classes: ClassVar[Mapping[str, Sequence[str]]] = {}  # of tasks whose classes are not the usual ones

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
            raise UserError(f"{absent[0]}: no such file, though {self.folder} tells of it; build the data set again")
        ids, people = ((builder.info.metadata.get(key) or {}).get(split) for key in ("image_ids", "people"))
        self._indices = list(range(info.num_examples))
        if list(self.tasks) == [HumanParts.name]:
            if ids is None or people is None:
                raise UserError(f"{self.folder}: metadata.json does not tell which images of {split} have people; build the data set again")
            self._indices = [index for index, chosen in enumerate(np.isin(ids, people)) if chosen]
        if not self._indices:
            raise UserError(f"{self.folder}: split {split!r} has no image with labels of {', '.join(self.tasks)}")
        self.ids = [ids[index] if ids and len(ids) == info.num_examples else str(index) for index in self._indices]

    @classmethod
    def make_tasks(cls, root: str | pathlib.Path, tasks: Sequence[str]) -> dict[str, Task]:
        """The tasks with the classes of this data set, which need not be at hand."""
        del root
        made = make_tasks(tasks, cls.classes)
        return {name: dataclasses.replace(task, encoding="0/255") if isinstance(task, Binary) else task for name, task in made.items()}

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Example:
        image_id, encoded = self._read(index, ("image", *self.tasks))
        return decode_example(image_id, encoded["image"], encoded, self.tasks)

    def label(self, index: int, task: str) -> np.ndarray:
        """One label of an example. Raises UserError if it is bad."""
        return decode_label(self.tasks[task], self._read(index, (task,))[1][task])

    def _read(self, index: int, names: Sequence[str]) -> tuple[str, dict[str, EncodedFile]]:
        """The id of an example, and of its record what is asked for."""
        place = f"{self.name}/{self.split}"
        try:
            features = self._parse(self._records[self._indices[index]]).features.feature
            image_id = _content(features["image_id"]).decode()
            return image_id, {name: EncodedFile(_content(features[name]), f"{place}: {image_id} ({name})") for name in names}
        except Exception as error:  # whatever a damaged record makes the layers below stumble over
            raise UserError(f"{place}: record {self._indices[index]} cannot be read ({error}); build {self.folder} again") from error

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
        """Of a record; TFDS would copy what is not asked for too."""
        from tensorflow_datasets.proto import tf_example_pb2

        return tf_example_pb2.Example.FromString  # pyright: ignore[reportAttributeAccessIssue]

    def _find(self, root: pathlib.Path) -> pathlib.Path:
        """The folder to read."""
        here = root / self.name
        command = f"python -m tfds_pascal_context.build --dataset={self.name} --data_dir={root}"
        builders = [_open(path.parent) for path in here.glob("*/*/dataset_info.json") if not path.parent.name.startswith(INCOMPLETE)]
        if not builders:
            begun = list(here.glob("*.partial")) + list(here.glob(f"*/{INCOMPLETE}*"))
            state = f"{begun[0]}: the data set is only half built; finish it" if begun else f"{here}: no such data set; build it"
            raise UserError(f"{state} with {command}")
        has = {builder.data_dir: [task for task in TASKS if task in builder.info.features] for builder in builders}
        fitting = [builder for builder in builders if set(self.tasks) <= set(has[builder.data_dir])]
        if not fitting:
            told = "; ".join(sorted({", ".join(tasks) for tasks in has.values()}))
            raise UserError(f"{here}: no config has the tasks {', '.join(self.tasks)}; built: {told}. Build another with {command}")
        fewest = min(len(has[builder.data_dir]) for builder in fitting)
        newest = max((builder for builder in fitting if len(has[builder.data_dir]) == fewest), key=lambda builder: builder.version)
        return pathlib.Path(newest.data_dir)


class PascalContext(PreparedDataset):
    """PASCAL-Context with the labels of PASCAL_MT."""

    name = "pascal_context"


class NYUD(PreparedDataset):
    """NYU Depth v2 with the labels of NYUD_MT."""

    name = "nyud"
    classes: ClassVar = {"semseg": NYU_CLASSES}


def _content(feature: Any) -> bytes:
    """What a feature of a record holds. Raises ValueError for one that is not there."""
    (content,) = feature.bytes_list.value
    return content


def _open(folder: pathlib.Path) -> Any:
    """TFDS's view of a folder. Raises UserError."""
    import tensorflow_datasets as tfds  # takes half a second, which programs that read no data need not spend

    try:
        builder = tfds.builder_from_directory(folder)
        assert builder.info.metadata is not None  # read here, as TFDS would do later
        return builder
    except Exception as error:  # whatever a damaged file makes the parsers stumble over
        raise UserError(f"{folder}: cannot be read as a prepared data set ({error}); build it again") from error
