"""MTLoRA in JAX: low-rank adaptation of one frozen Swin Transformer to several dense tasks at once.

Images are uint8 RGB (H, W, 3), or a batch of them, of any size:

    import mtlora_jax

    model = mtlora_jax.load("weights/mtlora_tiny")
    logits = model(images)["semseg"]  # (H, W, 21)
    labels = mtlora_jax.postprocess("semseg", logits)["labels"]
"""

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtlora_jax.model_io.adapters import add_task, drop_task, load, load_adapter, save_adapter
    from mtlora_jax.model_io.merging import merge
    from mtlora_jax.tasks.postprocess import postprocess

__all__ = ["add_task", "drop_task", "load", "load_adapter", "merge", "postprocess", "save_adapter"]

# Where each function is. It is imported on first use, so that data workers need not import the models. No submodule may
# have the name of a function.
_HOMES = {name: "model_io.adapters" for name in ("add_task", "drop_task", "load", "load_adapter", "save_adapter")}
_HOMES |= {"merge": "model_io.merging", "postprocess": "tasks.postprocess"}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.metadata.version(__name__)
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
