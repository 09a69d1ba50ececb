"""Look-up of names and options that users write, in a dict of classes."""

import difflib
import inspect
from collections.abc import Mapping
from typing import Any

from mtlora_jax import schema
from mtlora_jax.errors import UserError


def find(registry: Mapping[str, Any], part: str, options: Mapping[str, Any]) -> Any:
    """Return the entry of `options["name"]`. Raises UserError for an unknown name."""
    name = options.get("name")
    if not isinstance(name, str) or name not in registry:
        raise UserError(f"{part}.name = {name!r} is not one of {', '.join(registry)}")
    return registry[name]


def resolve(
    registry: Mapping[str, Any], part: str, options: Mapping[str, Any], given: tuple[str, ...] = ("self",)
) -> tuple[Any, dict]:
    """Look up `options["name"]` and check the other options against what the entry accepts.

    The options are the arguments of its constructor. Its `OPTIONS`, {option: check}, says what each may be; an option
    without a check there must be plain and bounded. Returns the entry and its options. Raises UserError for an unknown
    name, an unknown or missing option, and a value out of bounds.
    """
    schema.record({})(options, part)
    entry = find(registry, part, options)
    options = dict(options)
    name = options.pop("name")
    accepted = {key: p for key, p in inspect.signature(entry.__init__).parameters.items() if key not in given}
    for key in options:
        if key not in accepted:
            close = difflib.get_close_matches(key, accepted, 1)
            hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(accepted) or 'no options'}"
            raise UserError(f"{part} {name!r} has no option {key!r}; {hint}")
    missing = [key for key, p in accepted.items() if p.default is p.empty and key not in options]
    if missing:
        raise UserError(f"{part} {name!r} needs {', '.join(missing)}")
    checks = getattr(entry, "OPTIONS", {})
    for key, value in options.items():
        checks.get(key, schema.plain)(value, f"{part}.{key}")
    return entry, options
