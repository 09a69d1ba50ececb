"""Folder data set: images, one folder of label files per task, and lists of ids."""

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from mtlora_jax.data.decoding import EncodedFile, Example, decode_example, decode_label, read_file
from mtlora_jax.data.naming import files_of
from mtlora_jax.data.survey import spread_indices
from mtlora_jax.errors import UserError
from mtlora_jax.io.files import normalize_name, read_json, read_text
from mtlora_jax.schema import shown
from mtlora_jax.tasks import TASKS, Task, make_tasks, suggest_task
from mtlora_jax.tasks.binary import Binary
from mtlora_jax.tasks.label_values import ENCODINGS

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
LONGEST_NAME = 100  # characters of a name in a message


class FolderDataset:
    """Random access to the examples of one split of a folder of images and label files.

        ROOT/images/ID.jpg        (or .jpeg, .png, .webp)
        ROOT/TASK/ID.png          one folder per task of `TASKS`, label files as the task reads them
        ROOT/splits/SPLIT.txt     ids, one per line
        ROOT/classes.json         optional, {"TASK": ["name of class 0", ...]}
        ROOT/labels.json          optional, {"TASK": key of `tasks.label_values.ENCODINGS`}

    `dataset[i]` returns `decode_example` of its files and raises its errors. `tasks` maps the requested names, in
    their order, to tasks with the data set's class names and label encodings; these are inferred from some label files
    of all splits.

    Raises UserError for a missing folder, list, image or label, duplicate ids, a task without labels, and label files
    that disagree about their encoding. All of this is checked before the first example is read.
    """

    def __init__(self, root: str | pathlib.Path, split: str, tasks: Sequence[str]):
        self.root = pathlib.Path(root)
        self.split = split
        for folder in (self.root, self.root / "images", self.root / "splits"):
            if not folder.is_dir():
                raise UserError(
                    f"{folder}: no such folder; a data set needs images/, splits/ and one folder of labels per task"
                )
        self.tasks = self.make_tasks(root, tasks)
        for name in self.tasks:
            if not (self.root / name).is_dir():
                has = [task for task in TASKS if (self.root / task).is_dir()]
                raise UserError(
                    f"{self.root}: no labels for task {name!r}; the data set has {', '.join(has) or 'no task at all'}"
                )
        self.ids = self._read_ids()
        self._images = self._find("images", IMAGE_SUFFIXES)
        self._labels = {name: self._find(name, task.suffixes) for name, task in self.tasks.items()}
        self.tasks = with_label_encodings(self.root, self.tasks)

    @classmethod
    def make_tasks(cls, root: str | pathlib.Path, tasks: Sequence[str]) -> dict[str, Task]:
        """Build the tasks with the class names of the data set, or the default ones if it has no classes.json."""
        default, path = make_tasks(tasks), pathlib.Path(root) / "classes.json"
        classes = _read_classes(path)
        try:
            return default if classes is None else make_tasks(tasks, classes)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Example:
        image = read_file(self.root / "images" / self._images[index])
        labels = {name: read_file(self.root / name / files[index]) for name, files in self._labels.items()}
        return decode_example(self.ids[index], image, labels, self.tasks)

    def label(self, index: int, task: str) -> np.ndarray:
        """Decode one label of an example. Raises UserError if it is bad."""
        return decode_label(self.tasks[task], read_file(self.root / task / self._labels[task][index]))

    def __repr__(self) -> str:
        return f"FolderDataset({str(self.root)!r}, {self.split!r}, {list(self.tasks)})"

    def _read_ids(self) -> list[str]:
        path = self.root / "splits" / f"{self.split}.txt"
        if not path.is_file():
            has = sorted(file.stem for file in path.parent.glob("*.txt"))
            raise UserError(f"{path}: no such file; the data set has the splits {', '.join(has) or '(none)'}")
        ids = [line.strip() for line in read_text(path).splitlines() if line.strip()]
        if not ids:
            raise UserError(f"{path}: empty; it must list one id per line")
        seen = set()
        twice = [id_ for id_ in ids if normalize_name(id_) in seen or seen.add(normalize_name(id_))]
        if twice:
            raise UserError(f"{path}: {len(twice)} ids are listed again: {_first(twice)}")
        return ids

    def _find(self, folder: str, suffixes: tuple[str, ...]) -> list[str]:
        """Find the file of each id in `folder`; return the names in the order of the ids."""
        files = files_of(self.root / folder, suffixes)
        missing = [id_ for id_ in self.ids if normalize_name(id_) not in files]
        if missing:
            wanted = " or ".join("ID" + suffix for suffix in suffixes)
            raise UserError(
                f"{self.root / folder}: no file ({wanted}) for {len(missing)} of the {len(self.ids)} ids "
                f"of splits/{self.split}.txt: {_first(missing)}{_near(missing[0], files)}"
            )
        return [files[normalize_name(id_)].name for id_ in self.ids]


def with_label_encodings(root: pathlib.Path, tasks: Mapping[str, Task]) -> dict[str, Task]:
    """Return the tasks with the label encodings of a data set.

    Raises UserError for a bad labels.json, and for label files that disagree.
    """
    told = _read_label_encodings(root / "labels.json")
    return {
        name: dataclasses.replace(task, encoding=told[name])
        if isinstance(task, Binary) and name in told
        else task.for_dataset(_read_mixed(root / name, task.suffixes))
        for name, task in tasks.items()
    }


def _read_mixed(folder: pathlib.Path, suffixes: tuple[str, ...]) -> Iterator[EncodedFile]:
    """Read the label files of all splits in an order that mixes them; skip unreadable ones."""
    paths = [path for path in files_of(folder, suffixes).values() if not path.name.startswith(".")]
    for index in spread_indices(len(paths)):
        with contextlib.suppress(UserError):
            yield read_file(paths[index])


def _read_label_encodings(path: pathlib.Path) -> dict[str, str]:
    told = read_json(path) if path.exists() else {}
    if not isinstance(told, dict):
        raise UserError(f'{path}: must be {{"task": "what its values mean", ...}}')
    for name, encoding in told.items():
        _check_task(path, name, [task for task, kind in TASKS.items() if issubclass(kind, Binary)])
        if not isinstance(encoding, str) or encoding not in ENCODINGS:
            raise UserError(
                f"{path}: {name} is {shown(encoding)}; expected one of {', '.join(map(json.dumps, ENCODINGS))}"
            )
    return told


def _read_classes(path: pathlib.Path) -> dict[str, list[str]] | None:
    if not path.exists():
        return None
    classes = read_json(path)
    if not isinstance(classes, dict) or not all(_is_list_of_names(names) for names in classes.values()):
        raise UserError(f'{path}: must be {{"task": ["name of class 0", ...], ...}}')
    for name in classes:
        _check_task(path, name, list(TASKS))
    return classes


def _check_task(path: pathlib.Path, name: str, possible: Sequence[str]) -> None:
    if name not in possible:
        told = suggest_task(name) if name not in TASKS else f"expected one of {', '.join(possible)}"
        raise UserError(
            f"{path}: {_short(name)!r} is {'no task' if name not in TASKS else 'a task without such an entry'}; {told}"
        )


def _is_list_of_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _first(names: list[str], count: int = 5) -> str:
    return ", ".join(map(_visible, names[:count])) + (", ..." if len(names) > count else "")


def _visible(name: str) -> str:
    """Shorten a long name, and quote one with invisible characters."""
    name = _short(name)
    return name if name.isprintable() else repr(name)


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}..."


def _near(name: str, names: Iterable[str]) -> str:
    """Suggest one of `names` that differs from `name` only in case or invisible characters."""
    close = next((other for other in names if _plain(other) == _plain(name)), None)
    return "" if close is None else f"; there is {_short(close)!r}, which is not {_short(name)!r}"


def _plain(name: str) -> str:
    return "".join(
        letter for letter in normalize_name(name).casefold() if letter.isprintable() and not letter.isspace()
    )
