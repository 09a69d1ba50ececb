"""What the outputs of a model mean: names of classes, stored beside the weights and compared with the data wherever the two meet."""

from collections.abc import Mapping, Sequence

from mtlora_jax.errors import UserError
from mtlora_jax.tasks.task import Task

Classes = Mapping[str, Sequence[str]]  # {task: names}, what config.json has under "classes"


def of(tasks: Mapping[str, Task]) -> dict[str, list[str]]:
    """The names to store with a model of these tasks."""
    return {name: list(task.classes) for name, task in tasks.items() if task.classes}


def names_outputs(task: Task) -> bool:
    """Whether each output of a task is one of its classes. Data sets may name the two classes of saliency, which has one output."""
    return len(task.classes) == task.channels > 1


def difference(stored: Sequence[str], task: Task) -> str:
    """The first class that is another one in the data, in words; empty where there is none, and where names mean nothing."""
    if not names_outputs(task) or tuple(stored) == task.classes:
        return ""
    pairs = enumerate(zip(stored, task.classes, strict=False))
    index, names = next(((i, pair) for i, pair in pairs if pair[0] != pair[1]), (0, None))
    counts = "" if len(stored) == len(task.classes) else f"{len(stored)} classes there, {len(task.classes)} here"
    first = f"class {index} is {names[0]!r} there, {names[1]!r} here" if names else ""
    return ", ".join(filter(None, (counts, first)))


def differences(stored: Classes, tasks: Mapping[str, Task]) -> dict[str, str]:
    """{task: what is another class in the data, in words}. What a model does not tell contradicts nothing."""
    found = {name: difference(stored[name], task) for name, task in tasks.items() if name in stored}
    return {name: told for name, told in found.items() if told}


def check(
    stored: Classes,
    tasks: Mapping[str, Task],
    where: str,
    advice: str = "give the data whose classes it was trained on",
) -> None:
    """Raises UserError, naming the model `where` and the first difference, unless its classes are those of the data, in order."""
    found = differences(stored, tasks)
    if found:
        told = "; ".join(f"{task}: {difference}" for task, difference in found.items())
        raise UserError(f"{where} predicts other classes than the data has: {told}; {advice}")
