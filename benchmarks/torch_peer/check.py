"""Checks that ours and the PyTorch peer are the same model, by logits, losses and gradients of the same weights.

Gradients are compared in float64. In float32, a few of millions of ReLUs have inputs within rounding of zero, which
changes the gradients of some parameters by some thousandths in any model.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from mtlora_jax import model_factory
from mtlora_jax.convert import to_mtlora
from mtlora_jax.errors import UserError
from mtlora_jax.models import parameters
from mtlora_jax.models.inputs import normalise
from mtlora_jax.models.parameters import Flat
from mtlora_jax.tasks.losses import IGNORE
from mtlora_jax.tasks.task import Task
from mtlora_jax.train.step import compute_losses
from torch_peer import training
from torch_peer.model import MTLoRA, load

Arrays = Mapping[str, np.ndarray]

# As a share of the largest logit of a task, of the loss, and of the norm of each parameter's gradient.
BOUNDS = {"logits": 1e-4, "loss": 1e-5, "gradients": 5e-4}
# Gradients below this share of the norm of all gradients are compared relative to that share: some are zero but for
# rounding.
VANISHING = 1e-3
IMAGES = 2  # number of images to compare


def random_arrays(architecture: Mapping[str, Any], seed: int) -> dict[str, np.ndarray]:
    """Initial weights and noise, so that no low-rank factor, bias or statistic is zero."""
    model = model_factory.build(architecture)
    parameters.initialise(model, seed)
    rng = np.random.default_rng(seed)
    return {
        path: value + 0.02 * rng.standard_normal(value.shape, np.float32)
        for path, value in parameters.host_arrays(model).items()
    }


def peer_of(architecture: Mapping[str, Any], arrays: Arrays) -> MTLoRA:
    """The peer with our weights, converted to a checkpoint of the reference.

    Raises UserError for a model that the reference has no format for.
    """
    method = model_factory.method_of(architecture)
    own = parameters.flat_variables(model_factory.build(architecture))
    trained = {path: arrays[path] for path, variable in own.items() if method.is_trainable(path, variable)}
    names = frozenset(to_mtlora.make_state_dict(architecture, trained))
    return load(architecture, to_mtlora.make_state_dict(architecture, arrays), names)


def without_chance(architecture: Mapping[str, Any]) -> dict[str, Any]:
    """The architecture without dropout and stochastic depth."""
    method = dict(architecture["method"])
    method |= {"dropout": 0.0} if "dropout" in method else {}
    return {**architecture, "backbone": {**architecture["backbone"], "drop_path_rate": 0.0}, "method": method}


def compare_logits(logits: Mapping[str, jax.Array], peer: MTLoRA, batch: Arrays) -> dict[str, float]:
    """{"logits": the largest relative difference of any task}; `logits` (B, H, W, C) are ours."""
    device = next(peer.parameters()).device
    with torch.inference_mode():
        theirs = peer.eval()(training.tensors(batch, device)[0])
    pairs = [(np.asarray(ours), theirs[task].permute(0, 2, 3, 1).cpu().numpy()) for task, ours in logits.items()]
    return {"logits": max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs)}


def compare_training(
    architecture: Mapping[str, Any], arrays: Arrays, batch: Arrays, tasks: Mapping[str, Task], device: torch.device
) -> dict[str, float]:
    """{"loss": relative difference, "gradients": the largest of any parameter}.

    Both are computed in training mode, without dropout and stochastic depth.
    """
    batch = with_ignored_pixels(batch)
    weights = {name: task.weight for name, task in tasks.items()}
    peer = peer_of(without_chance(architecture), arrays).to(device).double().train()
    images, labels = training.tensors(batch, device)
    total = training.total_loss(peer(images.double()), labels, weights)
    total.backward()
    theirs = {name: gradient_of(parameter) for name, parameter in peer.named_parameters() if parameter.requires_grad}

    with jax.enable_x64(True):
        own_total, gradients = jax.device_get(our_gradients(architecture, arrays, batch, tasks, weights))
    ours = to_mtlora.make_state_dict(architecture, {path: np.asarray(value) for path, value in gradients.items()})
    whole = np.sqrt(sum(np.sum(gradient**2) for gradient in theirs.values()))
    errors = [
        np.linalg.norm(ours[name] - gradient) / max(np.linalg.norm(gradient), VANISHING * whole)
        for name, gradient in theirs.items()
    ]
    return {"loss": abs(float(own_total) / total.item() - 1), "gradients": float(max(errors))}


def gradient_of(parameter: torch.nn.Parameter) -> np.ndarray:
    """The gradient of a parameter; zeros if nothing depends on it."""
    return np.zeros(parameter.shape, np.float32) if parameter.grad is None else parameter.grad.cpu().numpy()


def our_gradients(
    architecture: Mapping[str, Any],
    arrays: Arrays,
    batch: Arrays,
    tasks: Mapping[str, Task],
    weights: Mapping[str, float],
) -> tuple[jax.Array, Flat]:
    """(total loss, gradients of the trained parameters) of our model in training mode, computed in float64."""
    model = model_factory.build(architecture)
    parameters.assign(model, arrays, "the random weights")
    model.compute = "float64"
    graph, *parts = parameters.partition(model, model_factory.method_of(architecture).is_trainable)
    trainable, frozen, stats = (
        {path: jnp.asarray(value, jnp.float64) for path, value in part.items()} for part in parts
    )

    def loss(trainable: Flat, frozen: Flat, batch: Mapping[str, jax.Array]) -> jax.Array:
        model = parameters.bind(graph, trainable, frozen, stats)
        return compute_losses(model(normalise(batch["image"]), train=True), batch, tasks, weights)[0]

    return jax.jit(jax.value_and_grad(loss))(trainable, frozen, dict(batch))


def with_ignored_pixels(batch: Arrays) -> dict[str, np.ndarray]:
    """The batch with the upper eighth of all labels ignored."""
    changed = {name: np.array(value) for name, value in batch.items()}
    for name, value in changed.items():
        if name != "image":
            value[:, : value.shape[1] // 8] = IGNORE
    return changed


def refuse(differences: Mapping[str, float]) -> None:
    """Raises UserError for a difference that is above its bound or not a number."""
    wrong = [
        f"{name} differ by {value:.1e}, more than {BOUNDS[name]:g}"
        for name, value in differences.items()
        if not value <= BOUNDS[name]
    ]
    if wrong:
        raise UserError(f"ours and the peer are not the same model: {'; '.join(wrong)}")
