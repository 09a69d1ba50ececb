"""Adapters without the frozen base, and tasks added to or dropped from a trained model.

An adapter folder has config.json, a card, and `adapter.safetensors` with the trained parameters and the BatchNorm
statistics.
"""

import hashlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flax import nnx

from mtlora_jax import model_factory
from mtlora_jax.errors import UserError
from mtlora_jax.io import files, weights
from mtlora_jax.model_factory import Architecture
from mtlora_jax.model_io import model_folder
from mtlora_jax.model_io.model_folder import Model
from mtlora_jax.model_io.tasks import Arrays, keep_tasks, one_more, only
from mtlora_jax.models import parameters
from mtlora_jax.tasks import make_tasks

ADAPTER = "adapter.safetensors"


def load(where: str | pathlib.Path, base: str | pathlib.Path | None = None) -> Model:
    """Opens a model folder written by the converter, by training or by `Model.save`; with `base`, an adapter folder.

    Raises UserError for other folders, damaged files, weights that do not fit, and a base other than the adapter's.
    """
    return model_folder.load(where) if base is None else load_adapter(where, base)


def save_adapter(model: Model, where: str | pathlib.Path, base: str | pathlib.Path) -> None:
    """Writes the adapter of a model atomically; an existing folder is replaced.

    Args:
      model: trained from `base`.
      where: the adapter folder.
      base: a model folder with the frozen weights, such as that of `config.init_from`, or WORKDIR/initial of the run.

    Raises:
      UserError: for a method without adapters, and for a base whose weights are not the model's.
    """
    write_adapter(where, model.config, parameters.host_arrays(model.module), base)


def write_adapter(
    where: str | pathlib.Path, config: Mapping[str, Any], arrays: Arrays, base: str | pathlib.Path
) -> None:
    """`save_adapter` for a model given by its config, as in config.json, and all of its arrays."""
    where, base = files.user_path(where), files.user_path(base)
    options = config["architecture"]["method"]
    if why := model_factory.method_class(options).NO_ADAPTER:
        raise UserError(f"a model of the method {options['name']} has no adapter, since {why}: ship the model folder")
    frozen = frozen_paths(config["architecture"])
    there = frozen_arrays(base, frozen)
    differing = [path for path in frozen if not np.array_equal(there[path], np.asarray(arrays[path], np.float32))]
    if differing:
        raise UserError(f"{base} is not the base of this model; other values: {parameters.list_keys(differing)}")
    entry = {"base": base.resolve().name, "sha256": fingerprint(there)}
    trained = {path: array for path, array in arrays.items() if path not in there}
    model_folder.write(where, {**config, "adapter": entry}, trained, ADAPTER)


def load_adapter(where: str | pathlib.Path, base: str | pathlib.Path) -> Model:
    """The model of an adapter folder and its base. Raises UserError for a base with another hash."""
    config, arrays = read_adapter(where, base)
    return model_folder.filled(config, config["architecture"], arrays, f"{where} on {base}")


def read_adapter(where: str | pathlib.Path, base: str | pathlib.Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(config, {path: array}) of the whole model, as in a model folder."""
    where, base = files.user_path(where), files.user_path(base)

    def both() -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        config = model_folder.read_config(where)
        if "adapter" not in config:
            raise UserError(f"{where} is a whole model and needs no base")
        return config, weights.read(where / ADAPTER)

    config, trained = files.read_consistently(where, both)
    entry = config.pop("adapter")
    paths = frozen_paths(config["architecture"])
    refuse_other_tensors(str(where / ADAPTER), config["architecture"], trained, paths)
    frozen = frozen_arrays(base, paths)
    found, expected = fingerprint(frozen), str(entry.get("sha256"))
    if found != expected:
        raise UserError(
            f"{base} is not the base of {where}: its frozen weights have the SHA-256 {found[:12]}, "
            f"expected {expected[:12]} ({entry.get('base')})"
        )
    return config, {**frozen, **trained}


def refuse_other_tensors(source: str, architecture: Architecture, arrays: Arrays, frozen: Sequence[str]) -> None:
    """Raises UserError unless an adapter holds exactly the trained parameters and the batch statistics.

    All other arrays come from the base, whose hash is checked.
    """
    expected = set(parameters.flat_variables(model_factory.build(architecture))) - set(frozen)
    problems = {
        "of the base": sorted(arrays.keys() & set(frozen)),
        "left over": sorted(arrays.keys() - expected - set(frozen)),
        "missing": sorted(expected - arrays.keys()),
    }
    told = [f"{what}: {parameters.list_keys(paths)}" for what, paths in problems.items() if paths]
    if told:
        raise UserError(
            f"{source} must hold what was trained and the batch statistics, nothing else; {'; '.join(told)}"
        )


def frozen_paths(architecture: Architecture) -> list[str]:
    """Paths of the variables that are neither trained nor batch statistics."""
    method, own = model_factory.method_of(architecture), parameters.flat_variables(model_factory.build(architecture))
    return [path for path, v in own.items() if not isinstance(v, nnx.BatchStat) and not method.is_trainable(path, v)]


def frozen_arrays(base: str | pathlib.Path, paths: Sequence[str]) -> dict[str, np.ndarray]:
    """The arrays at `paths` of a model folder, float32, as a model holds them. Raises UserError if it lacks one."""
    _, arrays = model_folder.read(base)
    missing = [path for path in paths if path not in arrays]
    if missing:
        raise UserError(f"{base} is not the base of this model; missing: {parameters.list_keys(missing)}")
    return {path: np.asarray(arrays[path], np.float32) for path in paths}


def fingerprint(arrays: Arrays) -> str:
    """SHA-256 over names, shapes and values, sorted by name."""
    digest = hashlib.sha256()
    for path in sorted(arrays):
        digest.update(f"{path} {arrays[path].shape}\n".encode())
        digest.update(np.ascontiguousarray(arrays[path], "<f4").data)
    return digest.hexdigest()


def drop_task(model: Model, name: str) -> Model:
    """The model without a task; the logits of the others stay as they are, bit by bit.

    Raises UserError if it has no such task, or no other.
    """
    if name not in model.tasks:
        raise UserError(f"the model has no task {name}; it has {', '.join(model.tasks) or 'none'}")
    config, arrays = keep_tasks(
        model.config, parameters.host_arrays(model.module), [task for task in model.tasks if task != name]
    )
    return model_folder.filled(config, config["architecture"], arrays, "the model")


def add_task(
    model: Model,
    name: str,
    outputs: int | None = None,
    *,
    position: int | None = None,
    task_rank: int | Sequence[int] | None = None,
    seed: int = 0,
    source: Model | None = None,
) -> Model:
    """The model with one more task; the logits of the others stay as they are, bit by bit.

    Args:
      model: trained, not merged.
      name: of the new task.
      outputs: channels of its logits; None takes those of the source, else the default of the task.
      position: in the order of tasks; None puts it at the end.
      task_rank: of its task-specific branches, a number or one per stage; None takes that of the source, else that of
        the first task.
      seed: for its weights, initialised as in a new model and still to be trained.
      source: a model with this task and the same shared weights; its weights, classes and scores of the task are taken.

    Raises:
      UserError: if the model has the task already, for a merged model or a bare backbone, and for a source with other
        shared weights.
    """
    if name in model.tasks:
        raise UserError(f"the model has the task {name} already; it has {', '.join(model.tasks)}")
    kind = model_factory.method_class(model.architecture["method"])
    if not model.tasks or not kind.EXTENSIBLE:
        what = "a merged model" if model.tasks else "a bare backbone"
        raise UserError(f"{what} takes no further task: add {name} to the model that was fine-tuned")
    options = {} if task_rank is None else {"task_rank": task_rank}
    config, arrays = dict(model.config), parameters.host_arrays(model.module)
    # Scores without "/" are means over tasks, which change.
    config["scores"] = {key: value for key, value in config.get("scores", {}).items() if "/" in key}
    if source is not None:
        refuse_other_weights(model, source, name)
        theirs = only(source.architecture, [name])
        outputs = theirs["tasks"][name]
        method = {key: theirs["method"][key] for key in kind.PER_TASK_OPTIONS if key in theirs["method"]}
        options = {key: value[name] if isinstance(value, Mapping) else value for key, value in method.items()}
        told, weights = keep_tasks(source.config, parameters.host_arrays(source.module), [name])
        arrays = {**weights, **arrays}
        for part in ("classes", "scores"):
            own = {key: value for key, value in told.get(part, {}).items() if key.partition("/")[0] == name}
            config[part] = {**config.get(part, {}), **own}
    if outputs is None:
        outputs = make_tasks([name])[name].channels
    config["architecture"] = one_more(model.architecture, name, outputs, position, options)
    module = model_factory.build(config["architecture"])
    parameters.assign(module, arrays, "the model", lambda path, variable: source is None)
    parameters.initialise(module, seed)
    return Model(config, module)


def inference_options(architecture: Architecture) -> dict[str, dict[str, Any]]:
    """Returns {part: the options that determine the outputs of a trained model and are shared by all tasks}."""
    kind, method = model_factory.method_class(architecture["method"]), architecture["method"]
    options = kind.inference_options(method)
    return {
        "backbone": {key: value for key, value in architecture["backbone"].items() if key != "drop_path_rate"},
        "decoder": {key: value for key, value in architecture["decoder"].items() if key != "dropout"},
        "method": {key: value for key, value in options.items() if key not in kind.PER_TASK_OPTIONS},
    }


def refuse_other_weights(model: Model, source: Model, name: str) -> None:
    """Raises UserError unless the source has the task and the model's shared weights."""
    if name not in source.tasks:
        raise UserError(f"the source has no task {name}; it has {', '.join(source.tasks)}")
    here, there = (inference_options(m.architecture) for m in (model, source))
    for part in here:
        if here[part] != there[part]:
            raise UserError(f"the source has another {part}: {there[part]}, where the model has {here[part]}")
    here, there = (parameters.host_arrays(m.module) for m in (model, source))
    shared = parameters.flat_variables(model_factory.build(only(model.architecture, ())))
    differing = [path for path in shared if not np.array_equal(here[path], there[path])]
    if differing:
        what = f"the task {name} of the source was trained with other shared weights"
        raise UserError(f"{what}; different: {parameters.list_keys(differing)}")
