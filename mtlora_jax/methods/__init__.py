"""Fine-tuning methods: each adapts a model and says what of it trains."""

from collections.abc import Mapping
from typing import Any

from mtlora_jax.methods.base import Method
from mtlora_jax.methods.baselines import DecodersOnly, Full, SingleTask
from mtlora_jax.methods.merged import Merged
from mtlora_jax.methods.mtlora.method import MTLoRA
from mtlora_jax.registry import choose

METHODS = {"mtlora": MTLoRA, "full": Full, "decoders_only": DecodersOnly, "single_task": SingleTask, "merged": Merged}


def make_method(options: Mapping[str, Any]) -> Method:
    """The method that `options["name"]` names. Raises UserError for an unknown name or option, or a wrong value."""
    method, options = choose(METHODS, "method", options)
    return method(**options)
