"""Configuration files, and overrides of single values from the command line.

`--config.KEY=VALUE` is read as the type that KEY has in the file. A tuple is written with commas, with or without
brackets and quotes: `--config.tasks=semseg,sal`, `--config.depths=2,2,6,2`; a single element needs no comma.

ml_collections.config_flags is not used: it takes `semseg,sal` for the name of one task and answers a wrong key with a
stack trace.
"""

import ast
import difflib
import importlib.util
import inspect
import pathlib
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ml_collections import ConfigDict

from mtlora_jax import config_aliases
from mtlora_jax.errors import UserError
from mtlora_jax.io.files import user_path

FLAG = "--config"
PATHS = ("init_from", "data.root", "delta_m_baseline_runs")
BY_TASK = ("loss_weights", "delta_m_baseline")  # groups {task: number}, which also take tasks missing from the file


def load(spec: str, overrides: Iterable[str] = ()) -> ConfigDict:
    """Read a configuration file and return it locked.

    Args:
      spec: "FILE.py" or "FILE.py:ARGUMENT". The file has a `get_config()` or `get_config(argument)` that returns a
        ConfigDict and raises UserError for an unknown argument.
      overrides: "KEY=VALUE" each, KEY with dots.

    Raises:
      UserError: for a missing or unfit file, a missing or superfluous argument, an unknown key, a value of another
        type.
    """
    name, colon, argument = spec.partition(":")
    name = str(user_path(name)) if name else name
    get_config = _get_config_of(name)
    arguments = [argument] if colon else []
    try:
        inspect.signature(get_config).bind(*arguments)
    except TypeError:
        wrong = f"takes no argument, but got {argument!r}" if colon else f"needs an argument: {FLAG}={name}:ARGUMENT"
        raise UserError(f"configuration file {name} {wrong}; its first lines say more") from None
    config = _call(get_config, arguments)
    if not isinstance(config, ConfigDict):
        raise UserError(f"get_config of {name} returns {type(config).__name__}, not ml_collections.ConfigDict")
    _refuse_renamed(_leaves(config))
    for override in overrides:
        _refuse_renamed([override.partition("=")[0]])
        _set(config, override)
    _expand_paths(config)
    return config.lock()


def _get_config_of(name: str) -> Callable[..., Any]:
    path = pathlib.Path(name)
    if not path.is_file():
        others = [str(other) for other in sorted(path.parent.glob("*.py"))]
        raise UserError(f"no configuration file {name}{did_you_mean(name, others)}")
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"configuration file {name} is no Python file: its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise UserError(f"configuration file {name}, line {error.lineno}: {error.msg}") from error
    if not callable(getattr(module, "get_config", None)):
        raise UserError(f"configuration file {name} defines no function get_config")
    return module.get_config


def _call(get_config: Callable[..., Any], arguments: Sequence[str]) -> Any:
    """Make the config. Raises UserError if the file sets a key that has been renamed."""
    try:
        return get_config(*arguments)
    except (AttributeError, KeyError) as error:  # from a locked config; the message quotes the key
        word = re.match(r"\W*(?:Key\W+)?(\w*)", str(error))
        message = config_aliases.describe_missing(word.group(1)) if word else ""
        if message:
            raise UserError(message) from error
        raise


def _refuse_renamed(keys: Iterable[str]) -> None:
    if message := config_aliases.describe_renamed(keys):
        raise UserError(message)


def _expand_paths(config: ConfigDict) -> None:
    """Expand `~` in paths, which a shell does not do in the middle of an argument."""
    values = _leaves(config)
    for key in (key for key in PATHS if values.get(key)):
        value = values[key]
        expanded = tuple(str(user_path(path)) for path in value) if isinstance(value, tuple) else str(user_path(value))
        config.update_from_flattened_dict({key: expanded})


def _set(config: ConfigDict, override: str) -> None:
    """Apply one "KEY=VALUE"."""
    key, equals, text = override.partition("=")
    values = _leaves(config)
    group, _, task = key.rpartition(".")
    if group in BY_TASK and group in config and task and equals:
        weights: Any = config[group]
        with weights.unlocked():
            weights[task] = _number(key, text)
        return
    if key not in values:
        members = [leaf for leaf in values if leaf.startswith(f"{key}.")]
        wrong = (
            f"is a group of values; set one of {', '.join(members)}"
            if members
            else f"is unknown{did_you_mean(key, values)}"
        )
        raise UserError(f"{FLAG}.{key} {wrong}")
    before = values[key]
    if not equals:
        raise UserError(f"{FLAG}.{key} has no value: write {FLAG}.{key}=VALUE")
    if _may_change_type(config, key) and not isinstance(before, tuple):
        config.update_from_flattened_dict({key: _literal(text)})
        return
    if type(before) not in _READERS:
        raise UserError(
            f"{FLAG}.{key} is a {type(before).__name__}, which cannot be set on the command line: change the file"
        )
    read, wanted = _READERS[type(before)]
    try:
        config.update_from_flattened_dict({key: _tuple(text, before) if isinstance(before, tuple) else read(text)})
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{FLAG}.{key}={text} is not {wanted}, like {before!r}") from None


def _number(key: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(f"{FLAG}.{key}={text} is not a number") from None


def _may_change_type(config: ConfigDict, key: str) -> bool:
    """Return whether the group of `key` takes values of any type, such as a list of ranks instead of one rank."""
    group: Any = config
    for name in key.split(".")[:-1]:
        group = group[name]
    return not group.is_type_safe


def _leaves(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    """Return {dotted key: value} of everything that is not a group."""
    leaves: dict[str, Any] = {}
    for key, value in config.items():
        leaves |= _leaves(value, f"{prefix}{key}.") if isinstance(value, ConfigDict) else {f"{prefix}{key}": value}
    return leaves


def _bool(text: str) -> bool:
    return {"true": True, "false": False}[text.lower()]


def _literal(text: str) -> Any:
    """Parse a Python literal, or else return the text itself."""
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


def _tuple(text: str, before: tuple[Any, ...]) -> tuple[Any, ...]:
    """Read elements as the type of those before, or as literals if these had several types or there were none."""
    value = _literal(text)
    items = value if isinstance(value, tuple | list) else text.strip("()[] ").split(",")
    kinds = {type(element) for element in before}
    read, _ = _READERS.get(kinds.pop() if len(kinds) == 1 else type(None), _READERS[type(None)])
    return tuple(read(item) for item in (str(item).strip(" '\"") for item in items) if item)


# {type of the value in the file: (how to read another value, what the error message asks for)}
_READERS: dict[type, tuple[Callable[[str], Any], str]] = {
    bool: (_bool, "true or false"),
    int: (int, "a whole number"),
    float: (float, "a number"),
    str: (str, "text"),
    tuple: (_literal, "a list of the same kind"),
    type(None): (_literal, "a value of the right type"),
}


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean X?` for the closest of `known`; if none is close, list all of them.

    Names are compared whole, or by the part after their last dot.
    """
    known = list(known)
    by_last = {other.rpartition(".")[2]: other for other in known}
    last = difflib.get_close_matches(name.rpartition(".")[2], list(by_last), 1)
    close = difflib.get_close_matches(name, known, 1) or [by_last[match] for match in last]
    return f"; did you mean {close[0]}?" if close else f"; there are {', '.join(known)}" if known else ""
