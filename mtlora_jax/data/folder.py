"""The folder data set: images, one folder of label files per task, and lists of ids."""

import json
import pathlib
from collections.abc import Sequence

from mtlora_jax.data.decoding import Example, decode_example, read_file
from mtlora_jax.data.naming import files_of
from mtlora_jax.errors import UserError
from mtlora_jax.files import same_form
from mtlora_jax.tasks import TASKS, Task, make_tasks

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


class FolderDataset:
    """Random access to the examples of one split of

        ROOT/images/ID.jpg        (or .jpeg, .png, .webp)
        ROOT/TASK/ID.png          one folder per task of `TASKS`, label files as the task reads them
        ROOT/splits/SPLIT.txt     ids, one per line
        ROOT/classes.json         optional, {"TASK": ["name of class 0", ...]}

    `dataset[i]` is what `decode_example` makes of its files, with its errors. `tasks` maps the names asked for, in
    their order, to tasks that know the class names. Everything that shows without decoding a file is checked here:
    UserError for a missing folder, list, image or label, for ids given twice, and for a task the data set does not have.
    """

    def __init__(self, root: str | pathlib.Path, split: str, tasks: Sequence[str]):
        self.root = pathlib.Path(root)
        self.split = split
        for folder in (self.root, self.root / "images", self.root / "splits"):
            if not folder.is_dir():
                raise UserError(f"{folder}: no such folder; a data set needs images/, splits/ and one folder of labels per task")
        self.tasks = self.describe(root, tasks)
        for name in self.tasks:
            if not (self.root / name).is_dir():
                has = [task for task in TASKS if (self.root / task).is_dir()]
                raise UserError(f"{self.root}: no labels for task {name!r}; the data set has {', '.join(has) or 'no task at all'}")
        self.ids = self._read_ids()
        self._images = self._find("images", IMAGE_SUFFIXES)
        self._labels = {name: self._find(name, task.suffixes) for name, task in self.tasks.items()}

    @classmethod
    def describe(cls, root: str | pathlib.Path, tasks: Sequence[str]) -> dict[str, Task]:
        """The tasks with the class names of the data set, or with their usual ones where there is no list of them."""
        return make_tasks(tasks, _read_classes(pathlib.Path(root) / "classes.json"))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Example:
        image = read_file(self.root / "images" / self._images[index])
        labels = {name: read_file(self.root / name / files[index]) for name, files in self._labels.items()}
        return decode_example(self.ids[index], image, labels, self.tasks)

    def __repr__(self) -> str:
        return f"FolderDataset({str(self.root)!r}, {self.split!r}, {list(self.tasks)})"

    def _read_ids(self) -> list[str]:
        path = self.root / "splits" / f"{self.split}.txt"
        if not path.is_file():
            has = sorted(file.stem for file in path.parent.glob("*.txt"))
            raise UserError(f"{path}: no such file; the data set has the splits {', '.join(has) or '(none)'}")
        ids = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        if not ids:
            raise UserError(f"{path}: empty; it must list one id per line")
        seen = set()
        twice = [id_ for id_ in ids if same_form(id_) in seen or seen.add(same_form(id_))]
        if twice:
            raise UserError(f"{path}: {len(twice)} ids are listed again: {_first(twice)}")
        return ids

    def _find(self, folder: str, suffixes: tuple[str, ...]) -> list[str]:
        """Names of the files of `folder` that belong to the ids, in their order."""
        files = files_of(self.root / folder, suffixes)
        missing = [id_ for id_ in self.ids if same_form(id_) not in files]
        if missing:
            wanted = " or ".join("ID" + suffix for suffix in suffixes)
            raise UserError(
                f"{self.root / folder}: no file ({wanted}) for {len(missing)} of the {len(self.ids)} ids of splits/{self.split}.txt: "
                f"{_first(missing)}"
            )
        return [files[same_form(id_)].name for id_ in self.ids]


def _read_classes(path: pathlib.Path) -> dict[str, list[str]] | None:
    if not path.exists():
        return None
    try:
        classes = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(classes, dict) or not all(_is_list_of_names(names) for names in classes.values()):
        raise UserError(f'{path}: must be {{"task": ["name of class 0", ...], ...}}')
    return classes


def _is_list_of_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _first(names: list[str], count: int = 5) -> str:
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")
