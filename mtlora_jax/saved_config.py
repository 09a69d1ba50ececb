"""WORKDIR/config.json: with what a run was started, so that it goes on with the same."""

import json
import pathlib
from typing import Any

from ml_collections import ConfigDict

from mtlora_jax.defaults import Config
from mtlora_jax.errors import UserError
from mtlora_jax.files import write_text

ANY_TIME = ("wandb", "evaluation")  # no part of what a training run computes


def refuse_other(workdir: pathlib.Path, config: Config) -> None:
    """Raises UserError that names every key for which `config` contradicts the one that the run of `workdir` was started with.

    Keys which that one does not have are newer than the run, and contradict nothing.
    """
    path = workdir / "config.json"
    if not path.exists():
        return
    try:
        saved = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); restore it, or go on without it by --override_config") from error
    differing = differences(saved, config)
    if differing:
        told = "; ".join(f"{key} was {json.dumps(there)} and is {json.dumps(here)}" for key, (there, here) in differing.items())
        raise UserError(
            f"{workdir} holds a run with another config: {told}. Give the values it was started with, choose another --workdir, or go on "
            "with these by --override_config"
        )


def save(workdir: pathlib.Path, config: Config) -> None:
    """Writes the config of a run."""
    write_text(workdir / "config.json", config.to_json_best_effort(indent=2) + "\n")


def differences(saved: dict[str, Any], config: Config, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """{dotted key: (value in `saved`, value in `config`)} wherever both have the key and it matters; groups of free form are one value."""
    here = json.loads(config.to_json_best_effort())
    found: dict[str, tuple[Any, Any]] = {}
    for key, value in config.items():
        if key not in saved or prefix + key in ANY_TIME:
            continue
        if isinstance(value, ConfigDict) and value.is_type_safe and isinstance(saved[key], dict):
            found |= differences(saved[key], value, f"{prefix}{key}.")
        elif saved[key] != here[key]:
            found[f"{prefix}{key}"] = (saved[key], here[key])
    return found
