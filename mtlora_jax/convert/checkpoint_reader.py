"""Reads tensors from untrusted files without running code: one file, several with an index, or a folder."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from mtlora_jax.convert import containers, torchfile
from mtlora_jax.errors import UserError
from mtlora_jax.io import files, weights
from mtlora_jax.model_io import model_folder
from mtlora_jax.models.parameters import list_keys

READERS: dict[str, Callable[[pathlib.Path], Mapping[Any, Any]]] = {
    ".safetensors": weights.read_tensors,
    **dict.fromkeys((".pth", ".pt", ".bin", ".ckpt", ".tar", ".th"), torchfile.read),
}
MAX_NAME = 255  # characters of a file name
INDEX = ".index.json"  # suffix of the file that lists which tensor is in which file
# In order of preference.
DEFAULT_NAMES = tuple(name + end for name in ("model.safetensors", "pytorch_model.bin") for end in ("", INDEX))


class Checkpoint(NamedTuple):
    path: pathlib.Path  # of the file
    state: dict[str, Any]  # {key without prefix: tensor of numpy or PyTorch, as saved}
    sources: dict[str, str]  # {key: file and full key, for messages}
    other_keys: list[str]  # keys without the prefix, such as those of other parts of a network
    config: Mapping[str, Any]  # the configuration in a training checkpoint; otherwise empty
    hub_config: Mapping[str, Any]  # config.json of the folder; otherwise empty
    report: list[str]  # lines to print


def read(source: str | pathlib.Path, format: str = "auto", ema: bool = False) -> Checkpoint:
    """Reads a file, or a directory with one.

    Args:
      source: a file with a suffix of `READERS`, an index of several, or a directory with one of these.
      format: the user's choice; see `mtlora_jax.convert.FORMATS`.
      ema: take the EMA weights, averaged during training.

    Raises:
      UserError: for a file that is missing, not a checkpoint, damaged, empty, or asks to run code.
    """
    path = find_file(files.user_path(source))
    content, file_of = read_shards(path) if path.name.endswith(INDEX) else (choose_reader(path)(path), {})
    found, report = containers.choose_weights(str(path), content, ema)
    prefix, entries = containers.keep_backbone_prefix(found, format)[1:]
    keys = [key for key in entries if isinstance(key, str) and torchfile.is_tensor(entries[key])]
    others = [key for key in entries if not (isinstance(key, str) and torchfile.is_tensor(entries[key]))]
    state = {key.removeprefix(prefix): entries[key] for key in keys if key.startswith(prefix)}
    if not state and others:
        raise UserError(
            f"{path}: {others[0]} is a {type(entries[others[0]]).__name__}, not a tensor; expected a state dict"
        )
    if not state:
        raise UserError(f"{path}: holds no tensors")
    if others:
        report = [*report, f"dropped    {list_keys([str(key) for key in others])}: no named tensors"]
    sources = {key: f"{file_of.get(prefix + key, path)}: {prefix}{key}" for key in state}
    other_keys = [containers.strip_common_prefix(key, prefix) for key in keys if not key.startswith(prefix)]
    config = torchfile.to_plain_dict(containers.get(content, "config"))
    hub_config = read_hub_config(path) if files.user_path(source).is_dir() or path.name in DEFAULT_NAMES else {}
    return Checkpoint(
        path, state, sources, other_keys, config if isinstance(config, Mapping) else {}, hub_config, report
    )


def find_file(source: pathlib.Path) -> pathlib.Path:
    """Finds the file to read. Raises UserError if there is none, or several."""
    if source.is_file():
        return source
    if not source.is_dir():
        raise UserError(f"{source}: no such file or directory")
    usual = [source / name for name in DEFAULT_NAMES if (source / name).is_file()]
    found = usual[:1] or sorted(path for path in source.iterdir() if path.suffix in READERS and path.is_file())
    if not found:
        model_folder.refuse_run(source)
        usual = "neither model.safetensors nor pytorch_model.bin"
        raise UserError(f"{source}: the directory holds {usual}, nor another file of weights")
    if len(found) > 1:
        raise UserError(
            f"{source}: the directory holds {list_keys([path.name for path in found])}; name the file you mean"
        )
    return found[0]


def choose_reader(path: pathlib.Path) -> Callable[[pathlib.Path], Mapping[Any, Any]]:
    if path.suffix not in READERS:
        raise UserError(
            f"{path}: unknown kind of file, expected one of {', '.join(READERS)}, *{INDEX}; {torchfile.SAVE_ALONE}"
        )
    return READERS[path.suffix]


def read_shards(index: pathlib.Path) -> tuple[dict[str, Any], dict[str, pathlib.Path]]:
    """Reads all files of an index; returns ({key: tensor}, {key: its file}).

    Raises UserError for an invalid index, for files outside its folder, and unless each key is in its own file alone.
    """
    content = files.read_json(index)
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise UserError(f"{index}: expected an object with weight_map, the names of tensors and of their files")
    outside = [name for name in places.values() if not _is_beside(name)]
    if outside:
        raise UserError(f"{index}: {outside[0][:MAX_NAME]!r} is not the name of a file in its folder")
    state, file_of = {}, {}
    for name in dict.fromkeys(places.values()):
        path = index.with_name(name)
        if not path.is_file():
            raise UserError(f"{path}: no such file, but {index.name} names it")
        shard = choose_reader(path)(path)
        twice = [key for key in shard if key in state]
        if twice:
            raise UserError(f"{path}: {list_keys(twice)} is in {file_of[twice[0]].name} already")
        state |= {key: shard[key] for key in shard}
        file_of |= dict.fromkeys(shard, path)
    missing = [key for key, name in places.items() if key not in file_of or file_of[key].name != name]
    if missing:
        raise UserError(f"{index}: {list_keys(missing)} is not in the file that it names")
    unknown = [str(key) for key in state if key not in places]
    if unknown:
        raise UserError(f"{index}: names no file for {list_keys(unknown)}, which is in {file_of[unknown[0]].name}")
    return state, file_of


def _is_beside(name: str) -> bool:
    """Whether a name is that of a file in the same folder, on any operating system."""
    return bool(name) and name == pathlib.PurePath(name).name and not set("\\\0") & set(name) and len(name) <= MAX_NAME


def read_hub_config(path: pathlib.Path) -> Mapping[str, Any]:
    """Reads the config.json beside a file, as in folders of the Hugging Face Hub; empty without one."""
    config = path.with_name("config.json")
    value = files.read_json(config) if config.is_file() else {}
    return value if isinstance(value, dict) else {}
