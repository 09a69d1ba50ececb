"""Matches files to ids: an id is the file name without its suffix, in any Unicode form."""

import os
import pathlib
from collections.abc import Collection

from mtlora_jax.errors import UserError
from mtlora_jax.io.files import describe_error, normalize_name


def id_of(path: pathlib.Path) -> str:
    """Return the id of a file in the form of `normalize_name`.

    Ids and file names are UTF-8, whatever the locale is.
    """
    return normalize_name(os.fsencode(path.stem).decode("utf-8", "surrogateescape"))


def files_of(folder: pathlib.Path, suffixes: Collection[str]) -> dict[str, pathlib.Path]:
    """Return {id: file} of the files in a folder with one of `suffixes` (in any case), sorted by name.

    Ids are in the form of `normalize_name`. Raises UserError if the folder cannot be read, or if two files share an id.
    """
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({describe_error(error)})") from error
    found: dict[str, pathlib.Path] = {}
    for path in paths:
        if path.suffix.lower() in suffixes:
            name = id_of(path)
            if name in found:
                raise UserError(f"{path}: a second file for id {name!r}, besides {found[name].name}; keep one of them")
            found[name] = path
    return found
