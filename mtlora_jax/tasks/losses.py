"""The losses of the training recipe (MTLoRA, section 4.1), as pure functions of logits and label.

Logits are (B, H, W, C) of any float dtype; the loss is computed in float32 and is a float32 scalar. Pixels labelled
`IGNORE` do not count. A batch without a valid pixel gives exactly 0, with zero gradients. Under `jax.jit` with a
sharded batch, every mean is over the global batch.
"""

import jax
import jax.numpy as jnp

IGNORE = 255  # label value that losses and metrics leave out, for every task


def cross_entropy(logits: jax.Array, label: jax.Array) -> jax.Array:
    """Compute the softmax cross-entropy, mean over valid pixels. label (B, H, W), integers in [0, C) or `IGNORE`."""
    logits = logits.astype(jnp.float32)
    # A comparison instead of a gather, whose gradient is a scatter, which is slow on accelerators.
    chosen = jnp.arange(logits.shape[-1]) == label[..., None]
    nll = jax.nn.logsumexp(logits, axis=-1) - jnp.sum(jnp.where(chosen, logits, 0.0), axis=-1)
    return _mean(nll, label != IGNORE)


def balanced_cross_entropy(logits: jax.Array, label: jax.Array, positive_weight: float | None = None) -> jax.Array:
    """Compute the class-balanced binary cross-entropy, mean over valid pixels.

    Positives have weight w, negatives 1 - w. Without `positive_weight`, w is the fraction of negatives among the valid
    pixels of the whole batch, so both weigh the same in total (Xie & Tu, Holistically-Nested Edge Detection, eq. 2).
    logits (B, H, W, 1); label (B, H, W), 0, 1 or `IGNORE`.
    """
    logits = logits[..., 0].astype(jnp.float32)
    valid = label != IGNORE
    positive = label == 1
    weight = _mean(~positive, valid) if positive_weight is None else positive_weight
    losses = jnp.where(positive, weight * jax.nn.softplus(-logits), (1 - weight) * jax.nn.softplus(logits))
    return _mean(losses, valid)


def normals_l1(logits: jax.Array, label: jax.Array) -> jax.Array:
    """Compute the L1 distance of the unit-length prediction to the label, mean over valid components.

    logits and label (B, H, W, 3). Components that are `IGNORE` are left out one by one.
    """
    logits = logits.astype(jnp.float32)
    squares = jnp.sum(logits**2, axis=-1, keepdims=True)
    # The gradient of sqrt(0) is not finite, and a product with 0 would not remove it.
    length = jnp.sqrt(jnp.where(squares > 0, squares, 1.0)) + 1e-12
    return _mean(jnp.abs(logits / length - label), label != IGNORE)


def depth_l1(logits: jax.Array, label: jax.Array) -> jax.Array:
    """Compute the L1 error in metres, mean over valid pixels. logits (B, H, W, 1); label (B, H, W)."""
    return _mean(jnp.abs(logits[..., 0].astype(jnp.float32) - label), label != IGNORE)


def _mean(values: jax.Array, valid: jax.Array) -> jax.Array:
    total = jnp.sum(jnp.where(valid, values, 0.0), dtype=jnp.float32)
    return total / jnp.maximum(jnp.sum(valid), 1)
