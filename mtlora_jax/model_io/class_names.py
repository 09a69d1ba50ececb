"""Class names of a model, stored with its weights and compared with the classes of the data."""

from collections.abc import Mapping, Sequence

from mtlora_jax.errors import UserError
from mtlora_jax.tasks.task import Task

Classes = Mapping[str, Sequence[str]]  # {task: names}, "classes" in config.json


def of(tasks: Mapping[str, Task]) -> dict[str, list[str]]:
    """The names to store with a model of these tasks."""
    return {name: list(task.classes) for name, task in tasks.items() if task.classes}


def names_outputs(task: Task) -> bool:
    """Whether each output of a task is one of its classes.

    Saliency is an exception: it has one output, but data sets may name two classes.
    """
    return len(task.classes) == task.channels > 1


def difference(stored: Sequence[str], task: Task) -> str:
    """The first class that differs in the data, in words; empty if there is none, or if classes are not outputs."""
    if not names_outputs(task) or tuple(stored) == task.classes:
        return ""
    pairs = enumerate(zip(stored, task.classes, strict=False))
    index, names = next(((i, pair) for i, pair in pairs if pair[0] != pair[1]), (0, None))
    counts = "" if len(stored) == len(task.classes) else f"{len(stored)} classes there, {len(task.classes)} here"
    first = f"class {index} is {names[0]!r} there, {names[1]!r} here" if names else ""
    return ", ".join(filter(None, (counts, first)))


def differences(stored: Classes, tasks: Mapping[str, Task]) -> dict[str, str]:
    """{task: the class that differs in the data, in words}, of the tasks whose classes are stored."""
    found = {name: difference(stored[name], task) for name, task in tasks.items() if name in stored}
    return {name: told for name, told in found.items() if told}


def check(
    stored: Classes,
    tasks: Mapping[str, Task],
    where: str,
    advice: str = "use data with the classes that it was trained on",
) -> None:
    """Raises UserError unless the model's classes are those of the data, in order.

    The error names the model, as `where`, and the first difference.
    """
    found = differences(stored, tasks)
    if found:
        told = "; ".join(f"{task}: {difference}" for task, difference in found.items())
        raise UserError(f"{where} predicts other classes than the data has: {told}; {advice}")
