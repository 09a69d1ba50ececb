"""Groups of parameters: what methods freeze or train, and the rows of tables of parameters."""

import re

from flax import nnx

from mtlora_jax.methods.base import AdapterParam
from mtlora_jax.models import parameters
from mtlora_jax.models.multitask import MultiTaskModel

# Of every model, in the order of tables; groups of adapters come before them.
GROUPS = ("decoders", "patch_embed", "norms", "position_tables", "merging")
REST = "linears"  # the weights of attention and MLPs: what no other group claims


def label_groups(model: MultiTaskModel) -> None:
    """Note the groups of every variable of a model in its metadata, for `groups_of`."""
    for path, variable in parameters.flat_variables(model).items():
        variable.set_metadata(groups=tuple(_groups(model, path, variable)))


def groups_of(variable: nnx.Variable) -> tuple[str, ...]:
    """All groups of a parameter, most telling first: the norm of the patch embedding is in `patch_embed` and in `norms`."""
    return variable.get_metadata("groups")


def sorted_groups(names: set[str]) -> list[str]:
    """Groups in the order of tables: those of adapters, those of every model, the rest."""
    return [*sorted(names - {*GROUPS, REST}), *(name for name in (*GROUPS, REST) if name in names)]


def task_of(path: str, variable: nnx.Variable) -> str:
    """The task that a variable belongs to; empty where tasks share it."""
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
