"""The tasks: one file and one line of `TASKS` each."""

import difflib
from collections.abc import Iterable, Mapping, Sequence

from mtlora_jax.errors import UserError
from mtlora_jax.schema import shown
from mtlora_jax.tasks.depth import Depth
from mtlora_jax.tasks.edge import Edge
from mtlora_jax.tasks.human_parts import HumanParts
from mtlora_jax.tasks.normals import Normals
from mtlora_jax.tasks.saliency import Saliency
from mtlora_jax.tasks.semseg import SemSeg
from mtlora_jax.tasks.task import IGNORE, Task

__all__ = ["IGNORE", "TASKS", "Task", "make_tasks"]

TASKS: dict[str, type[Task]] = {
    "semseg": SemSeg,
    "human_parts": HumanParts,
    "sal": Saliency,
    "normals": Normals,
    "edge": Edge,
    "depth": Depth,
}

# Other common names, for suggestions in error messages.
OTHER_NAMES = {
    **{name: "semseg" for name in ("segmentation", "semantic_segmentation", "semantic", "seg", "masks", "labels")},
    **{name: "human_parts" for name in ("parts", "part_segmentation", "body_parts", "person_parts")},
    **{name: "sal" for name in ("saliency", "salient", "salience")},
    **{name: "normals" for name in ("surface_normals", "surface_normal", "normal")},
    **{name: "edge" for name in ("edges", "edge_detection", "boundary", "boundaries")},
    **{name: "depth" for name in ("depth_estimation", "distance", "disparity")},
}


def make_tasks(names: Iterable[str], classes: Mapping[str, Sequence[str]] | None = None) -> dict[str, Task]:
    """Build tasks in the order of `names`.

    Args:
      names: keys of `TASKS`.
      classes: {task: class names of a data set}, instead of the defaults. Class tasks get one channel per class.

    Raises:
      UserError: for an unknown or repeated task, or an invalid list of classes.
    """
    classes = classes or {}
    tasks = {}
    for name in names:
        if name not in TASKS:
            raise UserError(f"unknown task {name!r}; {suggest_task(name)}")
        if name in tasks:
            raise UserError(f"task {name!r} is given twice; expected each task once")
        tasks[name] = TASKS[name](**_class_fields(name, classes[name])) if name in classes else TASKS[name]()
    return tasks


def suggest_task(name: str) -> str:
    """Suggest what an unknown task name may mean: the closest task, or all there are."""
    known = {**OTHER_NAMES, **{task: task for task in TASKS}}
    close = difflib.get_close_matches(name.lower().replace("-", "_").replace(" ", "_"), known, n=1)
    return f"did you mean {known[close[0]]!r}?" if close else f"expected one of {', '.join(TASKS)}"


def _class_fields(name: str, classes: Sequence[str]) -> dict:
    if isinstance(classes, str) or not classes or not all(isinstance(entry, str) for entry in classes):
        raise UserError(f"classes of task {name!r}: {shown(classes)}; expected a list of at least one name")
    if not all(entry.strip() for entry in classes):
        raise UserError(
            f"classes of task {name!r}: name {[bool(entry.strip()) for entry in classes].index(False)} is empty"
        )
    if len(set(classes)) < len(classes):
        twice = next(entry for index, entry in enumerate(classes) if entry in classes[:index])
        raise UserError(f"classes of task {name!r}: the name {shown(twice)} is given twice; expected each once")
    fields = {"classes": tuple(classes)}
    return fields | {"channels": len(classes)} if issubclass(TASKS[name], SemSeg) else fields
