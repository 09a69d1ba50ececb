"""Checks of a config's values: bounds of numbers, and values that must agree."""

import math
from collections.abc import Mapping
from typing import Any

from mtlora_jax.defaults import Config, flattened
from mtlora_jax.errors import UserError
from mtlora_jax.models.decoders import HEADS
from mtlora_jax.schema import within

POSITIVE, NOT_NEGATIVE, COUNT = within(above=0), within(0), within(1)
BELOW_ONE = within(0, below=1)
BOUNDS = {
    "seed": within(0, 2**32 - 1),
    "epochs": COUNT,
    "batch_size": COUNT,
    "eval_batch_size": COUNT,
    "encoder_microbatches": COUNT,
    "eval_every_epochs": COUNT,
    "checkpoint_every_epochs": COUNT,
    "checkpoint_every_steps": NOT_NEGATIVE,
    "keep_checkpoints": COUNT,
    "log_every_steps": COUNT,
    "data.num_workers": NOT_NEGATIVE,
    "backbone.drop_path_rate": BELOW_ONE,
    "optimizer.learning_rate": POSITIVE,
    "optimizer.warmup_learning_rate": NOT_NEGATIVE,
    "optimizer.final_learning_rate": NOT_NEGATIVE,
    "optimizer.reference_batch_size": COUNT,
    "optimizer.warmup_epochs": NOT_NEGATIVE,
    "optimizer.weight_decay": NOT_NEGATIVE,
    "optimizer.clip_norm": POSITIVE,
    "optimizer.b1": BELOW_ONE,
    "optimizer.b2": BELOW_ONE,
    "optimizer.eps": POSITIVE,
    "fault_tolerance.max_consecutive_nonfinite_steps": COUNT,
    "fault_tolerance.max_unreadable_examples": NOT_NEGATIVE,
    "fault_tolerance.max_unreadable_share": within(0, 1),
    "fault_tolerance.grace_seconds": NOT_NEGATIVE,
    "evaluation.boundary_tolerance": within(above=0, below=1),
}


def check(config: Config) -> None:
    """Check the values of a config.

    Raises UserError that names the key if a number is not finite or out of bounds, or if values contradict each other.
    """
    values = flattened(config)
    for key, value in values.items():
        for number in _numbers(value):
            if not math.isfinite(number):
                raise UserError(f"{key} = {value} must be finite")
    for key, bounds in BOUNDS.items():
        if key in values:
            bounds(values[key], key)
    _check_tasks(config)
    name = config.decoder["name"] if config.decoder else ""
    least = getattr(HEADS.get(name), "smallest_batch", 1)
    if config.batch_size < least:
        raise UserError(
            f"batch_size = {config.batch_size}: the decoder {name} normalises over the batch and needs at least "
            f"{least} images"
        )


def _numbers(value: Any) -> list[float]:
    """Return the numbers of a JSON-able value, which may be nested lists."""
    if isinstance(value, list):
        return [number for entry in value for number in _numbers(entry)]
    return [value] if isinstance(value, int | float) else []


def _check_tasks(config: Config) -> None:
    if not config.tasks:
        raise UserError("tasks = (): the config names no task; give at least one, such as --config.tasks=semseg")
    weights: Mapping[str, float] = config.loss_weights
    for name, weight in weights.items():
        if name not in config.tasks:
            raise UserError(f"loss_weights.{name}: the config trains {', '.join(config.tasks)}")
        if weight < 0:
            raise UserError(f"loss_weights.{name} = {weight} must be at least 0")
    if all(weights.get(name, 1.0) == 0 for name in config.tasks):
        raise UserError("loss_weights: all are 0, so nothing would be trained; give one task a weight above 0")
