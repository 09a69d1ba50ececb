"""Which tasks a model has: descriptions and arrays of a model with fewer of them, or with one more."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mtlora_jax import model_factory
from mtlora_jax.errors import UserError
from mtlora_jax.model_factory import Architecture
from mtlora_jax.models import parameters

Arrays = Mapping[str, np.ndarray]


def only(architecture: Architecture, tasks: Sequence[str]) -> dict[str, Any]:
    """The architecture with these of its tasks, in this order; () leaves what all tasks share."""
    kept = {task: architecture["tasks"][task] for task in tasks}
    return {**architecture, "tasks": kept, "method": of_tasks(architecture["method"], tasks)}


def of_tasks(method: Mapping[str, Any], tasks: Sequence[str]) -> dict[str, Any]:
    """The options of a method, those that are given per task for these tasks only."""
    per_task = model_factory.method_class(method).PER_TASK_OPTIONS
    chosen = {
        key: {task: value[task] for task in tasks}
        for key, value in method.items()
        if key in per_task and isinstance(value, Mapping)
    }
    nested = {
        key: of_tasks(value, tasks) for key, value in method.items() if key == "of"
    }  # what a merged model was made of
    return {**method, **chosen, **nested}


def keep_tasks(
    config: Mapping[str, Any], arrays: Arrays, tasks: Sequence[str]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(config, arrays) of a model with these of its tasks, in this order, and their scores.

    Args:
      config: as config.json. arrays: all that the model has.
      tasks: at least one, each once.

    Raises:
      UserError: for other tasks.
    """
    present = config["architecture"]["tasks"]
    if not tasks or len(set(tasks)) != len(tasks) or not set(tasks) <= set(present):
        raise UserError(
            f"tasks {','.join(tasks)}: expected some of {', '.join(present) or 'none, for it is a bare backbone'}, each once"
        )
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
      name: of the task. outputs: channels of its logits.
      position: in the order of tasks; None puts it at the end.
      options: of the method, {option of `PER_TASK_OPTIONS`: value}, where the new task has others than the first task.
    """
    tasks = list(architecture["tasks"].items())
    first = tasks[0][0]
    tasks.insert(len(tasks) if position is None else position, (name, outputs))
    method = dict(architecture["method"])
    for key in model_factory.method_class(method).PER_TASK_OPTIONS:
        if key in method and (isinstance(method[key], Mapping) or options.get(key, method[key]) != method[key]):
            table = (
                method[key] if isinstance(method[key], Mapping) else dict.fromkeys(architecture["tasks"], method[key])
            )
            method[key] = {**table, name: options.get(key, table[first])}
    return {**architecture, "tasks": dict(tasks), "method": method}
