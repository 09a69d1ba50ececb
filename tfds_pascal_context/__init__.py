"""TFDS builders of PASCAL_MT (`pascal_context`) and NYUD_MT (`nyud`), registered when this package is imported."""

from tfds_pascal_context.nyud import Nyud
from tfds_pascal_context.pascal_context import PascalContext

__all__ = ["Nyud", "PascalContext"]
