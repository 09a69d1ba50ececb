"""Renamed config keys and flags: old names in commands and files are errors, in workdirs they are translated."""

import copy
from collections.abc import Iterable, Mapping
from typing import Any

KEYS = {
    "accumulation": "encoder_microbatches",
    "eval_every": "eval_every_epochs",
    "checkpoint_every": "checkpoint_every_epochs",
    "checkpoint_steps": "checkpoint_every_steps",
    "log_every": "log_every_steps",
    "single_task": "delta_m_baseline",
    "single_task_files": "delta_m_baseline_runs",
    "init": "init_from",
    "precision.compute": "compute_dtype",
    "precision.frozen": "frozen_dtype",
    "guards.max_skipped_in_row": "fault_tolerance.max_consecutive_nonfinite_steps",
    "guards.max_bad_examples": "fault_tolerance.max_unreadable_examples",
    "guards.max_bad_share": "fault_tolerance.max_unreadable_share",
    "guards.grace_seconds": "fault_tolerance.grace_seconds",
    "data.workers": "data.num_workers",
    "data.parity": "data.reference_transforms",
    "data.augmentation.discrete": "data.augmentation.discrete_scales",
}
FLAGS = {"--coordinator": "--coordinator_address", "--processes": "--num_processes", "--process": "--process_id"}


def describe_renamed(keys: Iterable[str]) -> str:
    """Return the message for the first of `keys` that has been renamed; empty if none has.

    `keys` are dotted. A key is recognised if it is an old name, a group of old names, or inside of one.
    """
    for key in keys:
        for old, new in KEYS.items():
            if key == old or key.startswith(f"{old}."):
                return f"config has no key {key}; it is called {new}{key.removeprefix(old)} now"
        inside = [f"{old.removeprefix(f'{key}.')} is {new}" for old, new in KEYS.items() if old.startswith(f"{key}.")]
        if inside and key in {old.partition(".")[0] for old in KEYS} - {new.partition(".")[0] for new in KEYS.values()}:
            return f"config has no group {key} now: {', '.join(inside)}"
    return ""


def describe_missing(word: str) -> str:
    """As `describe_renamed`, for the last part of a key: an AttributeError of a config names no more."""
    return describe_renamed(
        key for old in KEYS for key in (old, old.partition(".")[0]) if key.rpartition(".")[2] == word
    )


def translate(config: Mapping[str, Any]) -> dict[str, Any]:
    """Rename the old keys of a nested config, as JSON stores it. A key present under both names keeps the new one."""
    translated = copy.deepcopy(dict(config))
    for old, new in KEYS.items():
        group, _, name = old.rpartition(".")
        holder = _group(translated, group)
        if holder is None or name not in holder:
            continue
        value = holder.pop(name)
        if not holder:  # all keys of the group have moved
            translated.pop(group, None)
        group, _, name = new.rpartition(".")
        target = translated.setdefault(group, {}) if group and "." not in group else _group(translated, group)
        if isinstance(target, dict):
            target.setdefault(name, value)
    return translated


def _group(config: dict[str, Any], dotted: str) -> dict[str, Any] | None:
    """Return the group of a nested config, or None if it does not exist."""
    group: Any = config
    for name in filter(None, dotted.split(".")):
        group = group.get(name) if isinstance(group, dict) else None
    return group if isinstance(group, dict) else None
