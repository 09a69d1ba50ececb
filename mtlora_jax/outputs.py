"""Files that a command makes below one folder."""

import io
import pathlib
from collections.abc import Mapping

import numpy as np
import PIL.Image

from mtlora_jax import files


class Outputs:
    """Writes files below `folder`, each whole or not at all; folders are made when the first file comes.

    Raises UserError, here where `folder` can be none, and later naming the file that cannot be written.
    """

    def __init__(self, folder: pathlib.Path):
        files.check_writable(folder)
        self.folder = folder

    def write(self, name: str, data: bytes) -> pathlib.Path:
        """Writes FOLDER/name, in place of an older file; returns its path."""
        path = self.folder / name
        files.write_bytes(path, data)
        return path

    def picture(self, name: str, image: PIL.Image.Image) -> None:
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        self.write(name, buffer.getvalue())

    def arrays(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **arrays)
        self.write(name, buffer.getvalue())
