"""The optimizer of the recipe: AdamW, warm-up and cosine, clipping by the global norm."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import optax

from mtlora_jax.errors import UserError


def make_schedule(options: Mapping[str, Any], batch_size: int, steps_per_epoch: int, steps: int) -> optax.Schedule:
    """Make the learning rate per step: linear warm-up, then a cosine to the final rate.

    All rates are scaled by batch size once. Raises UserError if the warm-up leaves no step to train.
    """
    factor = batch_size / options["reference_batch_size"]
    warmup = round(options["warmup_epochs"] * steps_per_epoch)
    if warmup >= steps:
        raise UserError(
            f"optimizer.warmup_epochs = {options['warmup_epochs']} is {warmup} steps, but training has only {steps}"
        )
    return optax.warmup_cosine_decay_schedule(
        init_value=factor * options["warmup_learning_rate"],
        peak_value=factor * options["learning_rate"],
        warmup_steps=warmup,
        decay_steps=steps,
        end_value=factor * options["final_learning_rate"],
    )


def decayed(parameters: Mapping[str, jax.Array]) -> Mapping[str, bool]:
    """Select the parameters that weight decay acts on: all but vectors and scalars.

    Entries that optax left out (no leaves) stay left out.
    """
    return jax.tree.map(lambda value: value.ndim > 1, parameters)


def make_optimizer(
    options: Mapping[str, Any], schedule: optax.Schedule, trainable: frozenset[str]
) -> optax.GradientTransformation:
    """Make the transformation from gradients {path: array} to updates.

    Paths outside `trainable` have no optimizer state and get no update: a caller that passes a whole model cannot
    change its frozen weights. Raises UserError for a `clip_norm` that is not a positive number.
    """
    if not math.isfinite(options["clip_norm"]) or options["clip_norm"] <= 0:
        raise UserError(f"optimizer.clip_norm = {options['clip_norm']} must be a positive number")
    recipe = optax.chain(
        optax.clip_by_global_norm(options["clip_norm"]),
        optax.adamw(
            schedule,
            b1=options["b1"],
            b2=options["b2"],
            eps=options["eps"],
            weight_decay=options["weight_decay"],
            mask=decayed,
        ),
    )

    def labels(tree: Mapping[str, Any]) -> dict[str, str]:
        return {path: "trained" if path in trainable else "frozen" for path in tree}

    return optax.partition({"trained": recipe, "frozen": optax.set_to_zero()}, labels)
