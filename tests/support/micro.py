"""A model so small that compiling it takes a second or two, and batches for it."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from mtlora_jax.model_factory import build
from mtlora_jax.models import parameters
from mtlora_jax.tasks import Task, make_tasks

# XLA optimises nothing here, since compilation takes longer than anything these models compute.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

TASKS = {"semseg": 3, "sal": 1, "normals": 3}


def architecture(
    method: str = "mtlora", tasks: Sequence[str] = tuple(TASKS), stages: int = 2, **options
) -> dict[str, Any]:
    """An architecture of one or two stages; `options` are those of the method.

    It has shifted windows, and task streams after blocks of both kinds.
    """
    if method == "mtlora":
        task_rank = {"semseg": [1, 2][:stages], "sal": 2, "normals": [3, 1][:stages]}
        options = {"rank": [3, 2][:stages], "task_rank": task_rank, "dropout": 0.05} | options
    return {
        "backbone": {
            **{"name": "swin", "embed_dim": 12, "depths": [2, 1][:stages], "num_heads": [2, 3][:stages]},
            **{"window_size": 4, "patch_size": 4, "mlp_ratio": 2.0, "drop_path_rate": 0.2},
        },
        "tasks": {task: TASKS[task] for task in tasks},
        "decoder": {"name": "hrnet", "channels": [2, 3][:stages]} if tasks else None,
        "method": {"name": method, **options},
        "image_size": [32, 32],
    }


def tasks_of(architecture: dict[str, Any]) -> dict[str, Task]:
    """The tasks, with as many classes as the architecture has outputs."""
    return make_tasks(architecture["tasks"], {"semseg": ["red", "green", "blue"]})


def fresh(architecture: dict[str, Any], seed: int = 0) -> nnx.Module:
    """The model with its initial weights."""
    model = build(architecture)
    parameters.initialise(model, seed)
    return model


def random_arrays(architecture: dict[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """Weights without zeros, as after training."""
    rng = np.random.default_rng(seed)
    initial = parameters.host_arrays(fresh(architecture, seed))
    noise = {path: np.abs(rng.normal(size=value.shape)).astype(np.float32) for path, value in initial.items()}
    return {path: value + 0.1 * noise[path] for path, value in initial.items()}


def holding(architecture: dict[str, Any], arrays: dict[str, np.ndarray]) -> nnx.Module:
    """The model filled with the arrays that it has a place for."""
    model = build(architecture)
    own = parameters.flat_variables(model)
    parameters.assign(model, {path: value for path, value in arrays.items() if path in own}, "arrays")
    return model


def logits_of(model: nnx.Module, images: np.ndarray) -> dict[str, np.ndarray]:
    """Compiled forward pass in evaluation mode."""
    graph, *parts = parameters.partition(model, lambda path, variable: True)
    return jax.device_get(jit(lambda parts, images: parameters.bind(graph, *parts)(images))(parts, images))


def random_images(batch: int = 2, height: int = 32, width: int = 32) -> np.ndarray:
    """Normalised float32 images."""
    return np.random.default_rng(0).normal(size=(batch, height, width, 3)).astype(np.float32)


def random_batch(batch: int = 4, size: int = 32, seed: int = 0) -> dict[str, np.ndarray]:
    """A batch of uint8 images whose brightness determines the labels."""
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, 3, (batch, size // 8, size // 8)).repeat(8, 1).repeat(8, 2)
    return {
        "image": (60 + 60 * classes[..., None] + rng.integers(0, 20, (*classes.shape, 3))).astype(np.uint8),
        "semseg": classes.astype(np.uint8),
        "sal": (classes > 0).astype(np.uint8),
        "normals": np.eye(3, dtype=np.float32)[classes],
        "mask": np.ones(batch, bool),
    }
