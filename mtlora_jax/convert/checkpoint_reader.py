"""Reads tensors off files of strangers, without running anything in them: one file, several with an index, or a folder with those."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from mtlora_jax.convert import containers, torchfile
from mtlora_jax.errors import UserError
from mtlora_jax.io import files, weights
from mtlora_jax.model_io import model_folder
from mtlora_jax.models.parameters import named

READERS: dict[str, Callable[[pathlib.Path], Mapping[Any, Any]]] = {
    ".safetensors": weights.read_tensors,
    **dict.fromkeys((".pth", ".pt", ".bin", ".ckpt", ".tar", ".th"), torchfile.read),
}
LONGEST_NAME = 255  # of files
INDEX = ".index.json"  # ends the name of the file that tells which tensor is in which file
IN_DIRECTORY = tuple(name + end for name in ("model.safetensors", "pytorch_model.bin") for end in ("", INDEX))  # looked for in this order


class Checkpoint(NamedTuple):
    path: pathlib.Path  # the file
    state: dict[str, Any]  # key, without prefixes -> tensor of numpy or PyTorch, as it was saved
    origin: dict[str, str]  # key -> file and whole key, for messages
    beside: list[str]  # keys of what is not behind the prefix, such as other parts of a network
    config: Mapping[str, Any]  # what a training checkpoint says of itself; empty otherwise
    described: Mapping[str, Any]  # config.json of the folder; empty otherwise
    report: list[str]  # lines for people


def read(source: str | pathlib.Path, format: str = "auto", ema: bool = False) -> Checkpoint:
    """Reads a file, or a directory with one.

    Args:
      source: a file of `READERS`, an index of several, or a directory with one of these.
      format: as told; see `mtlora_jax.convert.FORMATS`.
      ema: take weights that were averaged over the training.

    Raises:
      UserError: for what is not there, not a checkpoint, damaged, empty, or asks to run code.
    """
    path = locate(files.user_path(source))
    content, file_of = read_shards(path) if path.name.endswith(INDEX) else (reader_of(path)(path), {})
    found, report = containers.choose(str(path), content, ema)
    prefix, entries = containers.without_multitask(found, format)[1:]
    keys = [key for key in entries if isinstance(key, str) and torchfile.is_tensor(entries[key])]
    others = [key for key in entries if not (isinstance(key, str) and torchfile.is_tensor(entries[key]))]
    state = {key.removeprefix(prefix): entries[key] for key in keys if key.startswith(prefix)}
    if not state and others:
        raise UserError(f"{path}: {others[0]} is a {type(entries[others[0]]).__name__}, not a tensor; expected a state dict")
    if not state:
        raise UserError(f"{path}: holds no tensors")
    if others:
        report = [*report, f"dropped    {named([str(key) for key in others])}: no named tensors"]
    origin = {key: f"{file_of.get(prefix + key, path)}: {prefix}{key}" for key in state}
    beside = [containers.beside(key, prefix) for key in keys if not key.startswith(prefix)]
    config = torchfile.plain(containers.get(content, "config"))
    described = description(path) if files.user_path(source).is_dir() or path.name in IN_DIRECTORY else {}
    return Checkpoint(path, state, origin, beside, config if isinstance(config, Mapping) else {}, described, report)


def locate(source: pathlib.Path) -> pathlib.Path:
    """The file to read. Raises UserError where there is none, or several."""
    if source.is_file():
        return source
    if not source.is_dir():
        raise UserError(f"{source}: no such file or directory")
    usual = [source / name for name in IN_DIRECTORY if (source / name).is_file()]
    found = usual[:1] or sorted(path for path in source.iterdir() if path.suffix in READERS and path.is_file())
    if not found:
        model_folder.refuse_run(source)
        raise UserError(f"{source}: the directory holds neither model.safetensors nor pytorch_model.bin, nor another file of weights")
    if len(found) > 1:
        raise UserError(f"{source}: the directory holds {named([path.name for path in found])}; name the file you mean")
    return found[0]


def reader_of(path: pathlib.Path) -> Callable[[pathlib.Path], Mapping[Any, Any]]:
    if path.suffix not in READERS:
        raise UserError(f"{path}: unknown kind of file, expected one of {', '.join(READERS)}, *{INDEX}; {torchfile.SAVE_ALONE}")
    return READERS[path.suffix]


def read_shards(index: pathlib.Path) -> tuple[dict[str, Any], dict[str, pathlib.Path]]:
    """({key: tensor} of all files of an index, {key: its file}).

    Raises UserError for an index that is none, files outside of its folder, and unless each key is in its file and nowhere else.
    """
    content = files.read_json(index)
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise UserError(f"{index}: expected an object with weight_map, the names of tensors and of their files")
    outside = [name for name in places.values() if not _is_beside(name)]
    if outside:
        raise UserError(f"{index}: {outside[0][:LONGEST_NAME]!r} is no name of a file in its folder")
    state, file_of = {}, {}
    for name in dict.fromkeys(places.values()):
        path = index.with_name(name)
        if not path.is_file():
            raise UserError(f"{path}: no such file, but {index.name} names it")
        shard = reader_of(path)(path)
        twice = [key for key in shard if key in state]
        if twice:
            raise UserError(f"{path}: {named(twice)} is in {file_of[twice[0]].name} already")
        state |= {key: shard[key] for key in shard}
        file_of |= dict.fromkeys(shard, path)
    missing = [key for key, name in places.items() if key not in file_of or file_of[key].name != name]
    if missing:
        raise UserError(f"{index}: {named(missing)} is not in the file that it names")
    unknown = [str(key) for key in state if key not in places]
    if unknown:
        raise UserError(f"{index}: names no file for {named(unknown)}, which is in {file_of[unknown[0]].name}")
    return state, file_of


def _is_beside(name: str) -> bool:
    """Whether a name is that of a file in the same folder, on any system."""
    return bool(name) and name == pathlib.PurePath(name).name and not set("\\\0") & set(name) and len(name) <= LONGEST_NAME


def description(path: pathlib.Path) -> Mapping[str, Any]:
    """What config.json says of the model, in folders of the Hub."""
    config = path.with_name("config.json")
    value = files.read_json(config) if config.is_file() else {}
    return value if isinstance(value, dict) else {}
