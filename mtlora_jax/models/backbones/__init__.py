"""Encoders, by the name that a config gives them."""

from mtlora_jax.models.backbones.base import Backbone
from mtlora_jax.models.backbones.swin import Swin

BACKBONES: dict[str, type[Backbone]] = {"swin": Swin}
