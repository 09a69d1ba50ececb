"""Which file belongs to an id: the name without its ending, however a system writes the two."""

import os
import pathlib
from collections.abc import Collection

from mtlora_jax.errors import UserError
from mtlora_jax.io.files import reason_of, same_form


def id_of(path: pathlib.Path) -> str:
    """The id of a file, as `same_form` writes it. Lists of ids are UTF-8, and so are names of files, whatever the locale makes of them."""
    return same_form(os.fsencode(path.stem).decode("utf-8", "surrogateescape"))


def files_of(folder: pathlib.Path, suffixes: Collection[str]) -> dict[str, pathlib.Path]:
    """{id, as `same_form` writes it: file} of a folder, sorted by name; `suffixes` are those of files that count, in any case.

    Raises UserError if the folder cannot be read, or where two files have one id.
    """
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({reason_of(error)})") from error
    found: dict[str, pathlib.Path] = {}
    for path in paths:
        if path.suffix.lower() in suffixes:
            name = id_of(path)
            if name in found:
                raise UserError(f"{path}: a second file for id {name!r}, besides {found[name].name}")
            found[name] = path
    return found
