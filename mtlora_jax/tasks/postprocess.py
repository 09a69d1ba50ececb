"""From logits to labels, probabilities, unit normals and metres."""

from typing import Any

import numpy as np

from mtlora_jax.errors import UserError
from mtlora_jax.tasks import Task, make_tasks
from mtlora_jax.tasks.semseg import SemSeg


def postprocess(task: str | Task, logits: Any) -> dict[str, np.ndarray]:
    """Convert the logits of one task to predictions, on the host.

    Args:
      task: a `Task`, or its name in `mtlora_jax.tasks.TASKS`.
      logits: (..., H, W, C), as a model returns them, with any number of leading axes.

    Returns:
      semseg, human_parts: "labels" (..., H, W) uint8 and "probabilities" (..., H, W, C), a softmax.
      sal, edge: "probabilities" (..., H, W).
      normals: "normals" (..., H, W, 3) of length 1.
      depth: "depth" (..., H, W) in metres.
      Your own task: what its `postprocess` returns.
      All but labels are float32.

    Raises:
      UserError: for an unknown task, or logits whose shape does not fit it.
    """
    task = next(iter(make_tasks([task]).values())) if isinstance(task, str) else task
    values = np.asarray(logits)
    if values.ndim < 3 or not (predicts_class(task) or values.shape[-1] == task.channels):
        channels = "C classes" if predicts_class(task) else f"C = {task.channels}"
        raise UserError(f"logits of {task.name} must be (..., H, W, C) with {channels}; got {values.shape}")
    return task.postprocess(values.astype(np.float32))


def predicts_class(task: Task) -> bool:
    """Whether a task has one output per class; saliency may have class names too, but has one output."""
    return isinstance(task, SemSeg)
