"""Files that a command makes below one folder."""

import contextlib
import io
import pathlib
from collections.abc import Mapping

import numpy as np
import PIL.Image

from mtlora_jax.errors import UserError


class Outputs:
    """Writes files below `folder`, each whole or not at all; folders are made when the first file comes.

    Raises UserError, here where `folder` can be none, and later naming the file that cannot be written.
    """

    def __init__(self, folder: pathlib.Path):
        there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
        if not there.is_dir():
            raise UserError(f"{folder}: cannot be written ({there} is a file); expected a folder, or a name for a new one")
        self.folder = folder

    def write(self, name: str, data: bytes) -> pathlib.Path:
        """Writes FOLDER/name, in place of an older file; returns its path."""
        path = self.folder / name
        temporary = path.with_name(f".{path.name}.new")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(data)
            temporary.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise UserError(f"{path}: cannot be written ({error.strerror})") from error
        return path

    def picture(self, name: str, image: PIL.Image.Image) -> None:
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        self.write(name, buffer.getvalue())

    def arrays(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **arrays)
        self.write(name, buffer.getvalue())
