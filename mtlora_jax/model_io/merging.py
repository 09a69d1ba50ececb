"""Merges a trained model into one with the same outputs and fewer operations; docs/merging.md explains how."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mtlora_jax import model_factory
from mtlora_jax.errors import UserError
from mtlora_jax.model_factory import Architecture
from mtlora_jax.model_io.model_folder import Model, filled
from mtlora_jax.models import parameters


def merge(model: Model) -> Model:
    """Merges a model for inference; `model` itself does not change.

    `load`, `predict`, `evaluate` and `export` accept the result like any other model, but it cannot be trained. Logits
    differ from those of `model` by rounding only (in float32 by less than 1e-5 of the largest). `features(images)` does
    differ: task streams of stages with a patch merging hold the normalised neighbours, which the decoders then reduce
    themselves, and the shared stream of the last stage, which no decoder reads, is not computed in full.

    Raises:
      UserError: for a merged model.
    """
    architecture, arrays = merged_arrays(model.architecture, parameters.host_arrays(model.module))
    return filled(model.config, architecture, arrays, "the merged weights")


def merged_arrays(
    architecture: Architecture, arrays: Mapping[str, np.ndarray]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Architecture and {path: float32 array} of the merged model. Sums and products are float64, on the host.

    Raises:
      UserError: for a merged model, and for arrays that do not fit the architecture.
    """
    folded = merged_architecture(architecture)
    model = model_factory.build(architecture)
    parameters.assign(model, arrays, "the model to merge")
    model_factory.method_of(architecture).merge(model)
    return folded, parameters.host_arrays(model)


def merged_architecture(architecture: Architecture) -> dict[str, Any]:
    """The architecture of the merged model. Raises UserError for a merged model."""
    method = architecture["method"]
    if method["name"] == "merged":
        name = method["of"].get("name")
        raise UserError(f"the model is merged already; merge the {name} model that it was made from")
    return {**architecture, "method": {"name": "merged", "of": dict(method)}}
