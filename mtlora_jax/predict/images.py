"""Photographs as people take them, found in a folder, read upright and in 8 bits per channel; and their labels."""

import collections
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
import PIL.ExifTags
import PIL.Image
import PIL.ImageOps

from mtlora_jax.data.decoding import decode_image, decode_label, read_file
from mtlora_jax.data.image_folder import IMAGE_SUFFIXES, FolderDataset, with_label_encodings
from mtlora_jax.data.naming import files_of, id_of
from mtlora_jax.errors import UserError
from mtlora_jax.io import image_files
from mtlora_jax.io.files import normalize_name
from mtlora_jax.model_io import class_names
from mtlora_jax.tasks import Task

ORIENTATION = PIL.ExifTags.Base.Orientation
GREY_16 = ("I;16", "I;16L", "I;16B", "I;16N")  # Pillow's modes of 16 bits; what has colour and 16 bits it reads with 8


def find(path: pathlib.Path, only: Sequence[str] = ()) -> dict[str, pathlib.Path]:
    """{id: file} of an image, or of the images of a folder (not of those below it), sorted by name.

    The id is the name without its ending, or with it where two files would have the same. `only` chooses ids. Raises UserError where
    nothing is found.
    """
    try:
        candidates = sorted(path.iterdir()) if path.is_dir() else [path]
        files = [file for file in candidates if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".") and file.is_file()]
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    if not files:
        raise UserError(f"{path}: no image; their names end in {', '.join(IMAGE_SUFFIXES)}")
    count = collections.Counter(file.stem for file in files)
    named = {file.stem if count[file.stem] == 1 else file.name: file for file in files}
    written = {normalize_name(name): name for name in named}
    missing = [name for name in only if normalize_name(name) not in written]
    if missing:
        raise UserError(f"{path}: no image {', '.join(missing)}; it has {_some(list(named))}")
    return {name: named[name] for name in ([written[normalize_name(name)] for name in only] or named)}


def read(path: pathlib.Path, upright: bool = True) -> np.ndarray:
    """uint8 RGB (H, W, 3) of a photograph in any pixel format of JPEG, PNG and WebP.

    16 bits are reduced to 8, what is transparent lies on white. RGB images come out as the data sets read them. Raises UserError for what
    cannot be read.

    Args:
      upright: turns and mirrors as EXIF says the photograph is to be shown; if False it stays as it is stored, as labels are.
    """
    data, origin = read_file(path)
    with image_files.open_image(data, origin, "a photograph") as image:
        pixels = decode_image(data, origin) if image.mode == "RGB" and not image.has_transparency_data else _rgb(image)
        orientation = image.getexif().get(ORIENTATION, 1)
    if not upright:
        return pixels
    stored = PIL.Image.fromarray(pixels)
    stored.getexif()[ORIENTATION] = orientation
    return np.asarray(PIL.ImageOps.exif_transpose(stored))


def _rgb(image: PIL.Image.Image) -> np.ndarray:
    if image.mode in GREY_16:
        grey = np.round(np.asarray(image).astype(np.float32) / 257).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.has_transparency_data:
        white = PIL.Image.new("RGBA", image.size, "white")
        return np.asarray(PIL.Image.alpha_composite(white, image.convert("RGBA")).convert("RGB"))
    return np.asarray(image.convert("RGB"))


class Labels:
    """The labels of a folder data set, for those of `tasks` that it has.

    Raises UserError where it has none of them, or classes that are not those of the model.
    """

    def __init__(self, root: pathlib.Path, tasks: Mapping[str, Task]):
        self._files = {name: files_of(root / name, task.suffixes) for name, task in tasks.items() if (root / name).is_dir()}
        if not self._files:
            raise UserError(f"--labels={root}: no labels; expected a folder for at least one of {', '.join(tasks)}")
        self._root, self._tasks = root, with_label_encodings(root, {name: tasks[name] for name in self._files})
        if (root / "classes.json").exists():
            labelled = FolderDataset.make_tasks(root, list(self._files))
            class_names.check(class_names.of(tasks), labelled, "the model", f"see {root / 'classes.json'}")

    def read(self, task: str, image: pathlib.Path, size: tuple[int, ...]) -> np.ndarray | None:
        """The label of an image file of `size` = (H, W), as the task decodes it; None where the data set lacks the task.

        Raises UserError if there is no such label, or it is bad.
        """
        if task not in self._files:
            return None
        path = self._files[task].get(id_of(image))
        if path is None:
            raise UserError(f"{self._root / task / (image.stem + self._tasks[task].suffixes[0])}: no such label")
        label = decode_label(self._tasks[task], read_file(path))
        if label.shape[:2] != size:
            raise UserError(f"{path}: {label.shape[1]}x{label.shape[0]} pixels, but its image has {size[1]}x{size[0]}")
        return label


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
