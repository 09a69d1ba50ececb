"""Encoders, by their names in configs."""

from mtlora_jax.models.backbones.base import Backbone
from mtlora_jax.models.backbones.swin import Swin

BACKBONES: dict[str, type[Backbone]] = {"swin": Swin}
