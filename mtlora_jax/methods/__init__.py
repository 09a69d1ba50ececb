"""Fine-tuning methods by name: each modifies a model and selects its trainable parameters."""

from collections.abc import Mapping
from typing import Any

from mtlora_jax.methods.base import Method
from mtlora_jax.methods.baselines import DecodersOnly, Full, SingleTask
from mtlora_jax.methods.bitfit import BitFit
from mtlora_jax.methods.merged import Merged
from mtlora_jax.methods.mtlora.method import MTLoRA
from mtlora_jax.registry import resolve

METHODS: dict[str, type[Method]] = {
    "mtlora": MTLoRA,
    "bitfit": BitFit,
    "decoders_only": DecodersOnly,
    "full": Full,
    "single_task": SingleTask,
    "merged": Merged,
}


def make_method(options: Mapping[str, Any]) -> Method:
    """Make the method that `options["name"]` names.

    Raises UserError for an unknown name or option, or a wrong value.
    """
    method, options = resolve(METHODS, "method", options)
    return method(**options)
