"""Writes the output files of a command below one folder."""

import io
import os
import pathlib
import zlib
from collections.abc import Mapping

import numpy as np
import PIL.Image

from mtlora_jax.io import files

MAX_NAME_BYTES = 200  # without suffix; most systems allow 255 with it


def shorten_name(name: str) -> str:
    """Shorten a long file name to its beginning and a checksum of the whole."""
    data = os.fsencode(name)
    if len(data) <= MAX_NAME_BYTES:
        return name
    whole = data[: MAX_NAME_BYTES - 9].decode("utf-8", "ignore").encode()  # drops a character cut in half
    return f"{os.fsdecode(whole)}-{zlib.crc32(data):08x}"


class OutputFolder:
    """Writes files below `folder`, each atomically; folders are created with their first file.

    Raises UserError if `folder` cannot be a writable folder, and later naming a file that cannot be written.
    """

    def __init__(self, folder: pathlib.Path):
        files.check_writable(folder)
        self.folder = folder

    def write(self, name: str, data: bytes) -> pathlib.Path:
        """Write FOLDER/name, replacing an older file; return its path."""
        path = self.folder / name
        files.write_bytes(path, data)
        return path

    def write_image(self, name: str, image: PIL.Image.Image) -> None:
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        self.write(name, buffer.getvalue())

    def write_arrays(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **arrays)
        self.write(name, buffer.getvalue())
