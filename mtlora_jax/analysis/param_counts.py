"""Counts of parameters by group and module, of unused ones, and of multiply-accumulates of a forward pass."""

import collections
from collections.abc import Mapping
from typing import Any

from flax import nnx

from mtlora_jax.analysis.macs import Macs, macs_of, module_of
from mtlora_jax.methods.base import Method
from mtlora_jax.methods.param_groups import groups_of, sorted_groups
from mtlora_jax.models import parameters
from mtlora_jax.models.multitask import MultiTaskModel


def group_of_each(model: nnx.Module) -> dict[str, str]:
    """{path: the most specific of its groups} of all parameters. Works on a declared model."""
    return {path: groups_of(v)[0] for path, v in parameters.flat_variables(model).items() if isinstance(v, nnx.Param)}


def count_parameters(model: nnx.Module, method: Method) -> dict[str, dict[str, int]]:
    """{group: {"total": values, "trainable": values}} in the order of tables. Works on a declared model."""
    counts = count_by(group_of_each(model), model, method)
    return {group: counts[group] for group in sorted_groups(set(counts))}


def count_by(name_of: Mapping[str, str], model: nnx.Module, method: Method) -> dict[str, dict[str, int]]:
    """{name: {"total": values, "trainable": values}} of the parameters that have this name."""
    counts: dict[str, dict[str, int]] = collections.defaultdict(lambda: {"total": 0, "trainable": 0})
    for path, variable in parameters.flat_variables(model).items():
        if isinstance(variable, nnx.Param):
            count = counts[name_of[path]]
            count["total"] += variable.size
            count["trainable"] += variable.size * method.is_trainable(path, variable)
    return dict(counts)


def summarise(model: MultiTaskModel, method: Method, image_size: tuple[int, int]) -> dict[str, Any]:
    """All counts of a model, JSON-able; `python -m mtlora_jax.summary --help` explains the keys."""
    groups = count_parameters(model, method)
    macs, used = macs_of(model, image_size)
    own = {path: v for path, v in parameters.flat_variables(model).items() if isinstance(v, nnx.Param)}
    unused = {path: v.size for path, v in own.items() if method.is_trainable(path, v) and not used[path]}
    return {
        "trainable": sum(group["trainable"] for group in groups.values()),
        "total": sum(group["total"] for group in groups.values()),
        "groups": groups,
        "trainable_unused": {"count": sum(unused.values()), "paths": sorted(unused)},
        **gmacs_of(macs),
        "gmacs_fused": macs_of(model, image_size, fused=True)[0].products / 1e9,
        "modules": count_modules(model, method, macs),
    }


def gmacs_of(macs: Macs) -> dict[str, float]:
    """10^9 multiply-accumulates, counted in three ways."""
    return {"gmacs": macs.products / 1e9, "gmacs_linear": macs.linear / 1e9, "gmacs_everything": macs.everything / 1e9}


def count_modules(model: MultiTaskModel, method: Method, macs: Macs) -> dict[str, dict[str, float]]:
    """{module: {"total", "trainable", "gmacs"}}, in the order of the forward pass.

    "gmacs" counts products with the module's weights.
    """
    modules = {path: module_of(path) for path in parameters.flat_variables(model)}
    counts = count_by(modules, model, method)
    encoder = [name for name in counts if name.startswith("backbone.")]
    encoder.sort(key=lambda name: name != "backbone.patch_embed")
    order = [*encoder, *(f"decoders.{task}" for task in model.tasks)]
    return {name: {**counts[name], "gmacs": macs.by_module[name] / 1e9} for name in order}
