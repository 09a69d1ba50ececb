"""Architecture and arrays of a model with fewer tasks, or the architecture with one more."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mtlora_jax import model_factory
from mtlora_jax.errors import UserError
from mtlora_jax.model_factory import Architecture
from mtlora_jax.models import parameters

Arrays = Mapping[str, np.ndarray]


def only(architecture: Architecture, tasks: Sequence[str]) -> dict[str, Any]:
    """The architecture with only these of its tasks, in this order; () leaves the part that all tasks share."""
    kept = {task: architecture["tasks"][task] for task in tasks}
    return {**architecture, "tasks": kept, "method": of_tasks(architecture["method"], tasks)}


def of_tasks(method: Mapping[str, Any], tasks: Sequence[str]) -> dict[str, Any]:
    """The options of a method; options given per task are reduced to these tasks."""
    per_task = model_factory.method_class(method).PER_TASK_OPTIONS
    chosen = {
        key: {task: value[task] for task in tasks}
        for key, value in method.items()
        if key in per_task and isinstance(value, Mapping)
    }
    nested = {key: of_tasks(value, tasks) for key, value in method.items() if key == "of"}  # of a merged model
    return {**method, **chosen, **nested}


def keep_tasks(
    config: Mapping[str, Any], arrays: Arrays, tasks: Sequence[str]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(config, arrays) of a model with only these of its tasks, in this order, and their scores.

    Args:
      config: as config.json.
      arrays: all arrays of the model.
      tasks: at least one, each once.

    Raises:
      UserError: for unknown, repeated or no tasks.
    """
    present = config["architecture"]["tasks"]
    if not present:
        raise UserError(f"tasks {','.join(tasks)}: the model is a bare backbone without tasks")
    if not tasks or len(set(tasks)) != len(tasks) or not set(tasks) <= set(present):
        raise UserError(f"tasks {','.join(tasks)}: expected some of {', '.join(present)}, each once")
    kept = {**config, "architecture": only(config["architecture"], tasks)}
    if "classes" in config:
        kept["classes"] = {task: names for task, names in config["classes"].items() if task in tasks}
    if "scores" in config and set(tasks) != set(present):
        kept["scores"] = {name: value for name, value in config["scores"].items() if name.partition("/")[0] in tasks}
    own = parameters.flat_variables(model_factory.build(kept["architecture"]))
    return kept, {path: array for path, array in arrays.items() if path in own}


def one_more(
    architecture: Architecture, name: str, outputs: int, position: int | None, options: Mapping[str, Any]
) -> dict[str, Any]:
    """The architecture with one more task.

    Args:
      architecture: with at least one task.
      name: of the task.
      outputs: channels of its logits.
      position: in the order of tasks; None puts it at the end.
      options: of the method, {option of `PER_TASK_OPTIONS`: value}, where the new task differs from the first one.
    """
    tasks = list(architecture["tasks"].items())
    first = tasks[0][0]
    tasks.insert(len(tasks) if position is None else position, (name, outputs))
    method = dict(architecture["method"])
    for key in model_factory.method_class(method).PER_TASK_OPTIONS:
        if key in method and (isinstance(method[key], Mapping) or options.get(key, method[key]) != method[key]):
            given = method[key]
            table = given if isinstance(given, Mapping) else dict.fromkeys(architecture["tasks"], given)
            method[key] = {**table, name: options.get(key, table[first])}
    return {**architecture, "tasks": dict(tasks), "method": method}
