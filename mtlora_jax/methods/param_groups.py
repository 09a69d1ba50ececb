"""Groups of parameters: units that methods freeze or train, and rows of tables of parameters."""

import re

from flax import nnx

from mtlora_jax.methods.base import AdapterParam
from mtlora_jax.models import parameters
from mtlora_jax.models.multitask import MultiTaskModel

# Groups of every model, in the order of tables; groups of adapters come before them.
GROUPS = ("decoders", "patch_embed", "norms", "position_tables", "merging")
REST = "linears"  # parameters in no other group: the weights of attention and MLPs


def label_groups(model: MultiTaskModel) -> None:
    """Store the groups of every variable of a model in its metadata, for `groups_of`."""
    for path, variable in parameters.flat_variables(model).items():
        variable.set_metadata(groups=tuple(_groups(model, path, variable)))


def groups_of(variable: nnx.Variable) -> tuple[str, ...]:
    """Return all groups of a parameter, the most specific first.

    The norm of the patch embedding is in `patch_embed` and in `norms`.
    """
    return variable.get_metadata("groups")


def sorted_groups(names: set[str]) -> list[str]:
    """Sort groups in the order of tables: those of adapters, those of every model, the rest."""
    return [*sorted(names - {*GROUPS, REST}), *(name for name in (*GROUPS, REST) if name in names)]


def task_of(path: str, variable: nnx.Variable) -> str:
    """Return the task that a variable belongs to; empty if tasks share it."""
    if path.startswith("decoders."):
        return path.split(".")[1]
    return path.rpartition(".")[2] if isinstance(variable, AdapterParam) and variable.per_task else ""


def _groups(model: MultiTaskModel, path: str, variable: nnx.Variable) -> list[str]:
    if isinstance(variable, AdapterParam):
        return [variable.group]
    if path.startswith("decoders."):
        return ["decoders"]
    below = path.removeprefix("backbone.")
    return [name for name, pattern in model.backbone.PARAM_GROUPS.items() if re.fullmatch(pattern, below)] or [REST]
