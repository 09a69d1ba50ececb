"""Normalisation of images for backbones."""

import jax
import jax.numpy as jnp
import numpy as np

MEAN = np.array([0.485, 0.456, 0.406], np.float32)  # of ImageNet, RGB in [0, 1]
STD = np.array([0.229, 0.224, 0.225], np.float32)


def normalise(images: jax.Array | np.ndarray) -> jax.Array:
    """uint8 RGB (B, H, W, 3) -> float32, ImageNet statistics."""
    return (jnp.asarray(images, jnp.float32) / 255.0 - MEAN) / STD
