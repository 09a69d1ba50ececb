"""Builders by data set."""

from mtlora_jax.errors import UserError
from tfds_pascal_context.builder import RawBuilder
from tfds_pascal_context.nyud import Nyud
from tfds_pascal_context.pascal_context import PascalContext

BUILDERS: dict[str, type[RawBuilder]] = {"pascal_context": PascalContext, "nyud": Nyud}


def builder_class(name: str) -> type[RawBuilder]:
    """Returns the builder of a data set. Raises UserError for an unknown name."""
    if name not in BUILDERS:
        raise UserError(f"unknown data set {name!r}; expected one of {', '.join(BUILDERS)}")
    return BUILDERS[name]
