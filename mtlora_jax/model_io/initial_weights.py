"""Initial weights of training, from a model folder wherever they fit."""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import nnx

from mtlora_jax import model_factory
from mtlora_jax.console import console
from mtlora_jax.errors import UserError
from mtlora_jax.io import files
from mtlora_jax.methods.base import AdapterParam
from mtlora_jax.methods.param_groups import task_of
from mtlora_jax.model_factory import Architecture
from mtlora_jax.model_io import class_names, model_folder
from mtlora_jax.model_io.tasks import only
from mtlora_jax.models import parameters
from mtlora_jax.tasks.task import Task

DECODERS = "decoders"

# Attributes of modules that affect only training, or only how a module is executed.
EXECUTION = ("fused", "compute", "remat_blocks", "remat_stages", "remat_decoders")
OF_TRAINING = ("dropout", "drop_path_rate", "momentum", *EXECUTION)


def merged_method(source: str) -> dict[str, Any]:
    """{"method": ...} of a merged model folder, since no config describes it; {} of any other folder."""
    method = model_folder.read_config(source)["architecture"]["method"]
    return {"method": method} if method["name"] == "merged" else {}


def origin_of(source: str) -> dict[str, str]:
    """The name of the model folder that training starts from, and the checkpoint that it was converted from."""
    there = model_folder.read_config(source)
    known = there.get("converted_from") or there.get("started_from") or {}
    return {
        "folder": files.user_path(source).resolve().name,
        **{key: known[key] for key in ("file", "format") if key in known},
    }


def holds(source: str, started: pathlib.Path) -> bool:
    """Whether a model folder agrees with `started`, the initial weights of a run, in all weights that both have."""
    try:
        (_, there), (_, here) = model_folder.read(source), model_folder.read(started)
    except UserError:
        return False
    both = there.keys() & here.keys()
    return bool(both) and all(np.array_equal(there[path], here[path]) for path in both)


def load(
    model: nnx.Module,
    source: str,
    architecture: Architecture,
    tasks: Mapping[str, Task],
    complete: bool = False,
    strict: bool = True,
) -> None:
    """Assigns the weights of a model folder; low-rank factors and decoders that it lacks remain to be initialised.

    Args:
      model: declared.
      architecture: of the model.
      source: the model folder.
      tasks: of the data, for the classes of the outputs.
      complete: require every weight, as an evaluation does.
      strict: require that all of its weights fit. Otherwise low-rank factors and parts of decoders that do not fit are
        reported and left out.

    Raises:
      UserError: for a merged source (unless the model is merged), another or an incomplete backbone, other classes,
        and, naming them, other weights that do not fit.
    """
    config, values = model_folder.read(source)
    there = config["architecture"]
    kept = {key: value for key, value in architecture["backbone"].items() if key != "drop_path_rate"}
    another = f"init_from = {source} holds another backbone"
    refuse_differences({**kept, **there["backbone"]}, kept, another, "see --config.backbone.variant")
    if there["method"]["name"] == "merged" != architecture["method"]["name"]:
        merged = f"init_from = {source} is merged, which cannot be trained further"
        raise UserError(f"{merged}: start from the model that it was made from")
    if complete:
        class_names.check(config.get("classes", {}), tasks, f"init_from = {source}")
        parameters.assign(model, values, source)
        refuse_differences(
            computing(model_factory.build(only(there, list(architecture["tasks"])))),
            computing(model),
            f"init_from = {source} computes something else",
            "give the values it was trained with",
        )
        console.print(f"weights of {source}")
        return

    whole = model_factory.build(there)
    parameters.assign(whole, values, source)
    left_out = misfits(model, architecture, whole, there, class_names.differences(config.get("classes", {}), tasks))
    taken = {path: value for path, value in values.items() if path not in left_out}
    missing = parameters.assign(model, taken, source, lambda path, variable: fresh(path, variable) != "")
    reasons = parameters.list_keys(list(dict.fromkeys(left_out.values())))
    if left_out and strict:
        advice = "--config.init_strict=False takes what fits and initialises the rest"
        raise UserError(f"init_from = {source} does not fit the config: {reasons}; {advice}")
    new = f"; {len(missing)} tensors are new (low-rank factors, decoders)" if missing else ""
    console.print(f"weights of {source}{new}")
    if left_out:
        console.print(f"left out of {source}: {reasons}", markup=False)


def misfits(
    model: nnx.Module, architecture: Architecture, whole: nnx.Module, there: Architecture, meaning: Mapping[str, str]
) -> dict[str, str]:
    """{path: reason in words} of the variables of `whole` that do not fit `model` and may be initialised anew.

    `meaning` has the differing classes of tasks, in words.
    """
    own, found = parameters.flat_variables(model), {}
    outputs = {task: outputs_of(there, task) for task in there["tasks"]}
    heads = [part["decoder"] and part["decoder"]["name"] for part in (there, architecture)]
    for path, variable in parameters.flat_variables(whole).items():
        what, task = fresh(path, variable), task_of(path, variable)
        if not what:
            continue
        if task and task not in architecture["tasks"]:
            found[path] = f"the config has no task {task}"
        elif what == DECODERS and heads[0] != heads[1]:
            found[path] = f"decoder {heads[0]} there, {heads[1]} here"
        elif path not in own:
            found[path] = f"{what} there, none here"
        elif path in outputs.get(task, ()) and task in meaning:
            found[path] = f"{path.rpartition('.')[0]}: {meaning[task]}"
        elif own[path].shape != variable.shape:
            size, other = next(pair for pair in zip(variable.shape, own[path].shape, strict=True) if pair[0] != pair[1])
            unit = "outputs" if path in outputs.get(task, ()) else "channels"
            module = path.rpartition(".")[0]
            decoder = f"{module}: {size} {unit} there, {other} here"
            found[path] = decoder if what == DECODERS else f"{what}: rank {size} there, {other} here"
    return found


def computing(model: nnx.Module) -> dict[str, Any]:
    """{attribute: its value or values in all modules} of the attributes that determine a trained model's outputs."""
    found: dict[str, list[Any]] = {}
    for _, module in nnx.iter_modules(model):
        for name, value in attributes(module).items():
            if isinstance(value, int | float | str | tuple) and name not in OF_TRAINING and not name.startswith("_"):
                values = found.setdefault(name, [])
                values += [value] if value not in values else []
    return {name: values[0] if len(values) == 1 else values for name, values in found.items()}


def attributes(module: nnx.Module) -> dict[str, Any]:
    """Returns {name: value} of a module's attributes, with the defaults that its classes give them."""
    kinds = [kind for kind in reversed(type(module).__mro__) if issubclass(kind, nnx.Module)]
    return {name: value for holder in (*kinds, module) for name, value in vars(holder).items()}


def fresh(path: str, variable: nnx.Variable) -> str:
    """What to call a variable that may be initialised anew if the source lacks it; empty for all others."""
    if path.startswith("decoders."):
        return DECODERS
    return variable.described if isinstance(variable, AdapterParam) else ""


def outputs_of(architecture: Architecture, task: str) -> list[str]:
    """Paths of the variables of a task whose shapes depend on how many outputs it has."""
    alone = only(architecture, [task])
    other = {**alone, "tasks": {task: alone["tasks"][task] % 2 + 1}}
    shapes, others = (
        {path: v.shape for path, v in parameters.flat_variables(model_factory.build(a)).items()} for a in (alone, other)
    )
    return [path for path in shapes if shapes[path] != others[path]]


def refuse_differences(there: Mapping[str, Any], here: Mapping[str, Any], what: str, advice: str) -> None:
    """Raises UserError naming the entries of `here` whose values differ in `there`."""
    differing = [key for key in here if there[key] != here[key]]
    if differing:
        told = "; ".join(f"{key} {there[key]} there, {here[key]} in the config" for key in differing)
        raise UserError(f"{what}: {told}; {advice}")
