"""Files that a command makes below one folder."""

import io
import os
import pathlib
import zlib
from collections.abc import Mapping

import numpy as np
import PIL.Image

from mtlora_jax.io import files

LONGEST = 200  # bytes of a name; most systems take 255, its ending included


def short(name: str) -> str:
    """A name for a file, or the beginning of a long one and a number that stands for all of it."""
    data = os.fsencode(name)
    if len(data) <= LONGEST:
        return name
    whole = data[: LONGEST - 9].decode("utf-8", "ignore").encode()  # no half of a letter
    return f"{os.fsdecode(whole)}-{zlib.crc32(data):08x}"


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
