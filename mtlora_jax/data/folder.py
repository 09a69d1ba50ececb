"""The folder data set: images, one folder of label files per task, and lists of ids."""

import json
import pathlib
from collections.abc import Sequence

import numpy as np
import PIL.Image

from mtlora_jax.errors import UserError
from mtlora_jax.tasks import TASKS, make_tasks

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def read_image(path: pathlib.Path) -> np.ndarray:
    """Decodes an image file to uint8 RGB (H, W, 3), as it is stored: an EXIF orientation is not applied, since labels have none.

    Raises UserError if the file is missing, damaged, cut off or has more than 8 bits per channel.
    """
    try:
        with PIL.Image.open(path) as image:
            if image.mode[0] in "IF":
                raise UserError(f"{path}: pixel format {image.mode}; images must have 8 bits per channel")
            return np.asarray(image.convert("RGB"))
    except UserError:
        raise
    except Exception as error:  # Pillow's decoders pass on whatever a damaged file makes them stumble over
        raise UserError(f"{path}: cannot be read as an image ({error})") from error


class FolderDataset:
    """Random access to the examples of one split of

        ROOT/images/ID.jpg        (or .jpeg, .png, .webp)
        ROOT/TASK/ID.png          one folder per task of `TASKS`, label files as the task reads them
        ROOT/splits/SPLIT.txt     ids, one per line
        ROOT/classes.json         optional, {"TASK": ["name of class 0", ...]}

    `dataset[i]` is {"image_id": str, "image": uint8 (H, W, 3), TASK: label (H, W) or (H, W, D) as `Task.read` gives it}; it raises
    UserError for a file that cannot be read and for a label whose size is not the image's. `tasks` maps the names asked for, in
    their order, to tasks that know the class names. Everything that shows without decoding a file is checked here:
    UserError for a missing folder, list, image or label, for ids given twice, and for a task the data set does not have.
    """

    def __init__(self, root: str | pathlib.Path, split: str, tasks: Sequence[str]):
        self.root = pathlib.Path(root)
        self.split = split
        for folder in (self.root, self.root / "images", self.root / "splits"):
            if not folder.is_dir():
                raise UserError(f"{folder}: no such folder; a data set needs images/, splits/ and one folder of labels per task")
        self.tasks = make_tasks(tasks, self._read_classes())
        for name in self.tasks:
            if not (self.root / name).is_dir():
                has = [task for task in TASKS if (self.root / task).is_dir()]
                raise UserError(f"{self.root}: no labels for task {name!r}; the data set has {', '.join(has) or 'no task at all'}")
        self.ids = self._read_ids()
        self._images = self._find("images", IMAGE_SUFFIXES)
        self._labels = {name: self._find(name, task.suffixes) for name, task in self.tasks.items()}

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, str | np.ndarray]:
        image_path = self.root / "images" / self._images[index]
        image = read_image(image_path)
        example = {"image_id": self.ids[index], "image": image}
        for name, task in self.tasks.items():
            label_path = self.root / name / self._labels[name][index]
            label = task.read(label_path)
            if label.shape[:2] != image.shape[:2]:
                raise UserError(
                    f"{label_path}: {label.shape[1]}x{label.shape[0]} pixels, but {image_path} is stored with "
                    f"{image.shape[1]}x{image.shape[0]}; a label must have the size of its image (EXIF orientation is not applied)"
                )
            example[name] = label
        return example

    def __repr__(self) -> str:
        return f"FolderDataset({str(self.root)!r}, {self.split!r}, {list(self.tasks)})"

    def _read_classes(self) -> dict[str, list[str]] | None:
        path = self.root / "classes.json"
        if not path.exists():
            return None
        try:
            classes = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{path}: not valid JSON ({error})") from error
        if not isinstance(classes, dict) or not all(_is_list_of_names(names) for names in classes.values()):
            raise UserError(f'{path}: must be {{"task": ["name of class 0", ...], ...}}')
        return classes

    def _read_ids(self) -> list[str]:
        path = self.root / "splits" / f"{self.split}.txt"
        if not path.is_file():
            has = sorted(file.stem for file in path.parent.glob("*.txt"))
            raise UserError(f"{path}: no such file; the data set has the splits {', '.join(has) or '(none)'}")
        ids = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        if not ids:
            raise UserError(f"{path}: empty; it must list one id per line")
        if len(set(ids)) < len(ids):
            seen = set()
            twice = [id_ for id_ in ids if id_ in seen or seen.add(id_)]
            raise UserError(f"{path}: {len(twice)} ids are listed again: {_first(twice)}")
        return ids

    def _find(self, folder: str, suffixes: tuple[str, ...]) -> list[str]:
        """Names of the files of `folder` that belong to the ids, in their order."""
        files = {}
        for file in sorted((self.root / folder).iterdir()):
            if file.suffix.lower() in suffixes:
                if file.stem in files:
                    raise UserError(f"{file}: a second file for id {file.stem!r}, besides {files[file.stem]}")
                files[file.stem] = file.name
        missing = [id_ for id_ in self.ids if id_ not in files]
        if missing:
            wanted = " or ".join("ID" + suffix for suffix in suffixes)
            raise UserError(
                f"{self.root / folder}: no file ({wanted}) for {len(missing)} of the {len(self.ids)} ids of splits/{self.split}.txt: "
                f"{_first(missing)}"
            )
        return [files[id_] for id_ in self.ids]


def _is_list_of_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _first(names: list[str], count: int = 5) -> str:
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")
