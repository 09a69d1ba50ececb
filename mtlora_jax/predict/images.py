"""Finds photographs in a folder, reads them upright as 8-bit RGB, and reads their labels."""

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
GREY_16 = ("I;16", "I;16L", "I;16B", "I;16N")  # Pillow's 16-bit modes; it reads 16-bit colour with 8 bits


def find_images(path: pathlib.Path, only: Sequence[str] = ()) -> dict[str, pathlib.Path]:
    """Returns {id: file} of an image, or of the images directly in a folder, sorted by name.

    The id is the name without its suffix, or with it if two files would share an id. `only` selects ids. Raises
    UserError if nothing is found.
    """
    try:
        candidates = sorted(path.iterdir()) if path.is_dir() else [path]
        files = [
            file
            for file in candidates
            if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".") and file.is_file()
        ]
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


def read_image(path: pathlib.Path, upright: bool = True) -> np.ndarray:
    """Reads a JPEG, PNG or WebP photograph of any pixel format as uint8 RGB (H, W, 3).

    16 bits are reduced to 8, and transparent pixels are put on white. RGB images are read as the data sets read them.

    Args:
      path: of the file.
      upright: apply the EXIF orientation; if False, the image stays as stored, like labels.

    Raises:
      UserError: if it cannot be read.
    """
    data, source = read_file(path)
    with image_files.open_image(data, source, "a photograph") as image:
        pixels = decode_image(data, source) if image.mode == "RGB" and not image.has_transparency_data else _rgb(image)
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

    Raises UserError if it has none of them, or if its classes differ from the model's.
    """

    def __init__(self, root: pathlib.Path, tasks: Mapping[str, Task]):
        self._files = {
            name: files_of(root / name, task.suffixes) for name, task in tasks.items() if (root / name).is_dir()
        }
        if not self._files:
            raise UserError(f"--labels={root}: no labels; expected a folder for at least one of {', '.join(tasks)}")
        self._root, self._tasks = root, with_label_encodings(root, {name: tasks[name] for name in self._files})
        if (root / "classes.json").exists():
            labelled = FolderDataset.make_tasks(root, list(self._files))
            class_names.check(class_names.of(tasks), labelled, "the model", f"see {root / 'classes.json'}")

    def read(self, task: str, image: pathlib.Path, size: tuple[int, ...]) -> np.ndarray | None:
        """Reads the label of an image file of `size` = (H, W); returns None if the data set lacks the task.

        Raises UserError if the label is missing or bad.
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
