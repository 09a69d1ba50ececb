"""Encoders. A backbone maps images (B, H, W, 3) to four `Streams` of features, fine to coarse."""

from mtlora_jax.models.backbones.swin import Swin

BACKBONES = {"swin": Swin}
