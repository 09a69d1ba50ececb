"""Model folders: `config.json` and `model.safetensors`, all that is needed to use a model again."""

import contextlib
import glob
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy
from flax import nnx

from mtlora_jax import architecture as architectures
from mtlora_jax import parameters
from mtlora_jax.errors import UserError
from mtlora_jax.models.multitask import MultiTaskModel

FORMAT = 1
UNFINISHED = ".unfinished-"  # in the names of folders that are being written


@contextlib.contextmanager
def replacing(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """A temporary folder beside `folder` that takes its place when the block ends well, and vanishes when it does not.

    What a killed program left half-written there before is removed.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    for abandoned in folder.parent.glob(f".{glob.escape(folder.name)}{UNFINISHED}*"):
        shutil.rmtree(abandoned, ignore_errors=True)
    temporary = pathlib.Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}{UNFINISHED}"))
    temporary.chmod(0o755)
    try:
        yield temporary
        if folder.exists():
            folder.rename(temporary.with_name(f"{temporary.name}.old"))
        temporary.rename(folder)
    finally:
        for done in (temporary, temporary.with_name(f"{temporary.name}.old")):
            shutil.rmtree(done, ignore_errors=True)


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a file, whole or not at all; an existing one is replaced."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text)
    os.replace(temporary, path)


def save(
    folder: str | pathlib.Path, architecture: Mapping[str, Any], arrays: Mapping[str, np.ndarray], extra: Mapping[str, Any] | None = None
) -> None:
    """Writes a model folder, whole or not at all; an existing one is replaced.

    Args:
      folder: where.
      architecture: see `mtlora_jax.architecture`.
      arrays: {path: array} of every parameter and batch statistic.
      extra: further JSON-able entries of config.json, such as classes, scores, where the weights come from.
    """
    config = {"format": FORMAT, **(extra or {}), "architecture": architecture}
    with replacing(pathlib.Path(folder)) as temporary:
        contiguous = {path: np.ascontiguousarray(array) for path, array in arrays.items()}
        safetensors.numpy.save_file(contiguous, temporary / "model.safetensors", {"format": "mtlora_jax"})
        (temporary / "model.safetensors").chmod(0o644)  # the library makes it private
        (temporary / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def read_config(folder: str | pathlib.Path) -> dict[str, Any]:
    """config.json of a model folder. Raises UserError if there is none or it is not ours."""
    path = pathlib.Path(folder) / "config.json"
    if not path.is_file():
        raise UserError(f"{folder} is not a model folder: it has no config.json (make one with python -m mtlora_jax.convert)")
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(config, dict) or not isinstance(config.get("architecture"), dict):
        raise UserError(f"{path} describes no mtlora_jax model; convert the checkpoint with python -m mtlora_jax.convert {folder} OUT")
    if config.get("format") != FORMAT:
        raise UserError(f"{path} has format {config.get('format')!r}; this version reads {FORMAT}")
    missing = [part for part in architectures.PARTS if part not in config["architecture"]]
    if missing:
        raise UserError(f"{path}: the architecture lacks {', '.join(missing)}")
    return config


def read(folder: str | pathlib.Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(architecture, {path: array}) of a model folder. Raises UserError for missing or damaged files."""
    config = read_config(folder)
    path = pathlib.Path(folder) / "model.safetensors"
    try:
        return config["architecture"], safetensors.numpy.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


class Model:
    """A loaded model. Calling it runs the compiled forward pass, compiled once per image shape.

    Attributes:
      config: config.json as a dict. architecture: the part of it the model is built from.
      tasks: task names, in order.
      module: the `flax.nnx` module with its weights.
    """

    def __init__(self, config: Mapping[str, Any], module: MultiTaskModel):
        self.config = config
        self.architecture = config["architecture"]
        self.tasks = tuple(self.architecture["tasks"])
        self.module = module
        graph, self._state = nnx.split(module)
        self._forward = jax.jit(lambda state, images: nnx.merge(graph, state)(images))
        self._features = jax.jit(lambda state, images: nnx.merge(graph, state).backbone(images))

    def __call__(self, images: jax.Array | np.ndarray) -> dict[str, jax.Array]:
        """Normalised images (B, H, W, 3) float32 -> {task: logits (B, H, W, C)}. Raises UserError for a bare backbone."""
        if not self.tasks:
            raise UserError("this model folder holds a bare backbone without tasks: use model.features(images), or fine-tune it first")
        logits = self._forward(self._state, self._checked(images))
        return {task: logits[task] for task in self.tasks}  # jit sorts the keys of a dict

    def features(self, images: jax.Array | np.ndarray) -> list:
        """Normalised images (B, H, W, 3) float32 -> the backbone's four `Streams`, fine to coarse."""
        return self._features(self._state, self._checked(images))

    @staticmethod
    def _checked(images: jax.Array | np.ndarray) -> jax.Array | np.ndarray:
        if images.ndim != 4 or images.shape[-1] != 3 or not np.issubdtype(images.dtype, np.floating):
            raise UserError(f"images must be float32 (B, H, W, 3), normalised; got {images.dtype} {tuple(images.shape)}")
        return images


def load(folder: str | pathlib.Path) -> Model:
    """Opens a model folder written by the converter or by training."""
    config = read_config(folder)
    architecture, arrays = read(folder)
    module = architectures.build(architecture)
    parameters.assign(module, arrays, str(folder))
    return Model(config, module)
