"""Which file belongs to an id: the name without its ending, however a system writes the two."""

import pathlib
from collections.abc import Collection

from mtlora_jax.errors import UserError
from mtlora_jax.files import reason_of, same_form


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
            name = same_form(path.stem)
            if name in found:
                raise UserError(f"{path}: a second file for id {name!r}, besides {found[name].name}")
            found[name] = path
    return found
