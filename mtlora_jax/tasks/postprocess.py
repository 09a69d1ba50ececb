"""From logits to what they say: labels, probabilities, unit normals, metres."""

from typing import Any

import numpy as np

from mtlora_jax.errors import UserError
from mtlora_jax.tasks import Task, make_tasks
from mtlora_jax.tasks.semseg import SemSeg


def postprocess(task: str | Task, logits: Any) -> dict[str, np.ndarray]:
    """What the logits of one task say, on the host.

    Args:
      task: its name, one of `mtlora_jax.tasks.TASKS`, or the task.
      logits: (..., H, W, C), as a model gives them; of one image, a batch, or any number of leading axes.

    Returns:
      semseg, human_parts: "labels" (..., H, W) uint8 and "probabilities" (..., H, W, C), a softmax.
      sal, edge: "probabilities" (..., H, W). normals: "normals" (..., H, W, 3) of length 1. depth: "depth" (..., H, W) in metres.
      A task of your own: what its `results` gives. All but labels are float32.

    Raises:
      UserError: for an unknown task, or logits that cannot be its own.
    """
    task = next(iter(make_tasks([task]).values())) if isinstance(task, str) else task
    values = np.asarray(logits)
    if values.ndim < 3 or not (chooses_class(task) or values.shape[-1] == task.channels):
        channels = "C classes" if chooses_class(task) else f"C = {task.channels}"
        raise UserError(f"logits of {task.name} must be (..., H, W, C) with {channels}; got {values.shape}")
    return task.results(values.astype(np.float32))


def chooses_class(task: Task) -> bool:
    """Whether a task has an output for each class. Data sets may name the classes of saliency too, which has one output."""
    return isinstance(task, SemSeg)
