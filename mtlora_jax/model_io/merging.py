"""Merging: a trained model into one that puts out the same with fewer operations. What folds into what is told in docs/merging.md."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mtlora_jax import model_factory
from mtlora_jax.errors import UserError
from mtlora_jax.model_factory import Architecture
from mtlora_jax.model_io.model_folder import Model, filled
from mtlora_jax.models import parameters


def merge(model: Model) -> Model:
    """The merged form of a model, which `load`, `predict`, `evaluate` and `export` take like any other, and which cannot be trained.

    Logits differ from those of `model` by rounding alone (in float32 by less than 1e-5 of the largest). Other than theirs are
    `features(images)`: task streams of stages with a patch merging carry the normed neighbours that their decoders reduce themselves, and
    the shared stream of the last stage, which no decoder reads, is not computed in full. `model` stays as it is.

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
    """What the merged model is built from. Raises UserError for a merged model."""
    method = architecture["method"]
    if method["name"] == "merged":
        raise UserError(
            f"the model is merged already; merge the {method['of'].get('name')} model that it was made from"
        )
    return {**architecture, "method": {"name": "merged", "of": dict(method)}}
