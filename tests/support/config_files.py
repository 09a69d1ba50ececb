"""Architectures that the files of `configs/` describe."""

from collections.abc import Mapping
from typing import Any

from paths import CONFIGS

from mtlora_jax import config as configs
from mtlora_jax import model_factory
from mtlora_jax.experiment import build_tasks


def architecture_of(spec: str, *overrides: str) -> dict[str, Any]:
    """The architecture of `--config=configs/SPEC` with overrides."""
    config = configs.load(str(CONFIGS / spec), overrides)
    return model_factory.from_config(config, {name: task.channels for name, task in build_tasks(config).items()})


def changed(spec: str, **parts: Mapping[str, Any]) -> dict[str, Any]:
    """The architecture of a config with other method or decoder options."""
    architecture = architecture_of(spec)
    return architecture | {part: architecture[part] | dict(options) for part, options in parts.items()}
