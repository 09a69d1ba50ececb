"""The weights that training starts from: those of a model folder, wherever they fit."""

import pathlib
from collections.abc import Mapping
from typing import Any

from flax import nnx

from mtlora_jax import folder, parameters
from mtlora_jax.errors import UserError
from mtlora_jax.models.lora import SharedLoRA, TaskLoRA
from mtlora_jax.records import console


def merged_method(source: str) -> dict[str, Any]:
    """{"method": ...} of a merged model folder, which no config describes; of any other {}."""
    method = folder.read_config(source)["architecture"]["method"]
    return {"method": method} if method["name"] == "merged" else {}


def origin_of(source: str) -> dict[str, str]:
    """The model folder that training starts from, and which checkpoint it was converted from."""
    there = folder.read_config(source)
    known = there.get("converted_from") or there.get("started_from") or {}
    return {"folder": pathlib.Path(source).resolve().name, **{key: known[key] for key in ("file", "format") if key in known}}


def load(model: nnx.Module, source: str, architecture: Mapping[str, Any], complete: bool) -> None:
    """Assigns the weights of a model folder; low-rank factors and decoders it lacks stay to be initialised, unless it must be complete."""
    there, values = folder.read(source)
    there = there["architecture"]
    kept = {key: value for key, value in architecture["backbone"].items() if key != "drop_path_rate"}
    refuse_differences({**kept, **there["backbone"]}, kept, f"init = {source} holds another backbone", "see --config.backbone.variant")

    def may_miss(path: str, variable: nnx.Variable) -> bool:
        return not complete and (path.startswith("decoders.") or isinstance(variable, SharedLoRA | TaskLoRA))

    missing = parameters.assign(model, values, source, may_miss)
    console.print(f"weights of {source}" + (f"; {len(missing)} tensors are new (low-rank factors, decoders)" if missing else ""))


def refuse_differences(there: Mapping[str, Any], here: Mapping[str, Any], what: str, advice: str) -> None:
    """Raises UserError naming the entries of `here` that are another thing `there`."""
    differing = [key for key in here if there[key] != here[key]]
    if differing:
        told = "; ".join(f"{key} {there[key]} there, {here[key]} in the config" for key in differing)
        raise UserError(f"{what}: {told}; {advice}")
