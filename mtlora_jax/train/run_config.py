"""WORKDIR/config.json and data.json: how a run was started, so that it continues the same way."""

import json
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

from ml_collections import ConfigDict

from mtlora_jax import config_aliases
from mtlora_jax.defaults import Config
from mtlora_jax.errors import UserError
from mtlora_jax.io.files import read_json, write_json, write_text
from mtlora_jax.schema import shown

CONFIG, DATA = "config.json", "data.json"
# Keys that do not change what a training run computes.
ANY_TIME = (
    *("wandb", "evaluation", "fault_tolerance", "data.num_workers", "eval_batch_size", "remat", "init_strict"),
    *("encoder_microbatches", "log_every_steps"),
    *("keep_checkpoints", "checkpoint_every_epochs", "checkpoint_every_steps"),
)
ROOT = "data.root"  # may change if `DATA` tells whether it is the same data


def check_same_config(workdir: pathlib.Path, config: Config, anything_goes: Collection[str] = ()) -> None:
    """Check that `config` does not contradict the one that the run of `workdir` was started with.

    Keys missing from that one are newer than the run and contradict nothing; nor do those of `ANY_TIME` and
    `anything_goes`. Raises UserError that names every key that differs.
    """
    moved = [ROOT] if (workdir / DATA).exists() else []
    differing = find_differences(_read_config(workdir), config, anything_goes=(*ANY_TIME, *moved, *anything_goes))
    if differing:
        raise UserError(
            f"{workdir} holds a run with another config: {_told(differing)}. Give the values it was started with, "
            "choose another --workdir, or go on with these by --override_config"
        )


def check_same_data(workdir: pathlib.Path, data: Mapping[str, Any]) -> None:
    """Check that the data sets are those that the run of `workdir` was started with.

    Args:
      data: as `agreement.describe_data` describes them.

    Raises:
      UserError: if they differ.
    """
    saved = _read(workdir / DATA)
    differing = {key: (saved[key], value) for key, value in data.items() if key in saved and saved[key] != value}
    if differing:
        raise UserError(
            f"{workdir} holds a run on other data: {_told(differing)}. Give the data it was started with, "
            "choose another --workdir, or go on with this by --override_config"
        )


def save(workdir: pathlib.Path, config: Config, data: Mapping[str, Any] | None = None) -> None:
    """Write the config of a run, and a description of its data."""
    write_text(workdir / CONFIG, config.to_json_best_effort(indent=2) + "\n")
    if data is not None:
        write_json(workdir / DATA, dict(data))


def read_value(workdir: pathlib.Path, key: str) -> Any:
    """Return a top-level value of the config that the run of a workdir was started with; None if unknown."""
    return _read_config(workdir).get(key)


def _read_config(workdir: pathlib.Path) -> dict[str, Any]:
    """Read the config of a run, with renamed keys under their new names."""
    return config_aliases.translate(_read(workdir / CONFIG))


def _read(path: pathlib.Path) -> dict[str, Any]:
    """Read the object in one of these files; empty if there is no file."""
    if not path.exists():
        return {}
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(
            f"{path} holds {type(value).__name__}, expected an object; restore it, or choose another --workdir"
        )
    return value


def _told(differing: Mapping[str, tuple[Any, Any]]) -> str:
    return "; ".join(f"{key} was {shown(there)} and is {shown(here)}" for key, (there, here) in differing.items())


def find_differences(
    saved: dict[str, Any], config: Config, prefix: str = "", anything_goes: Collection[str] = ANY_TIME
) -> dict[str, tuple[Any, Any]]:
    """Return {dotted key: (value in `saved`, value in `config`)} wherever both have the key and it matters.

    Groups of free form are one value.
    """
    here = json.loads(config.to_json_best_effort())
    found: dict[str, tuple[Any, Any]] = {}
    for key, value in config.items():
        if key not in saved or prefix + key in anything_goes:
            continue
        if isinstance(value, ConfigDict) and value.is_type_safe and isinstance(saved[key], dict):
            found |= find_differences(saved[key], value, f"{prefix}{key}.", anything_goes)
        elif saved[key] != here[key]:
            found[f"{prefix}{key}"] = (saved[key], here[key])
    return found
