"""Model folders: `config.json`, `model.safetensors` and a model card."""

import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import cv2
import jax
import numpy as np
from flax import nnx

from mtlora_jax import model_factory
from mtlora_jax.errors import UserError
from mtlora_jax.io import files, weights
from mtlora_jax.model_io import config_schema
from mtlora_jax.model_io.card import card
from mtlora_jax.model_io.tasks import only
from mtlora_jax.models import parameters
from mtlora_jax.models.inputs import normalise
from mtlora_jax.models.layers import pad_to_multiple, resize_bilinear
from mtlora_jax.models.multitask import MultiTaskModel
from mtlora_jax.models.parameters import Flat
from mtlora_jax.schema import shown, whole

FORMAT = 1
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
FITS = ("resize", "pad", "none")
STRIDE = 32  # pixels of an image in one of the coarsest feature map
BRIGHT = 50.0  # far beyond any normalised pixel


def save(
    folder: str | pathlib.Path,
    architecture: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Writes a model folder with its card (README.md) atomically; an existing one is replaced.

    Args:
      folder: to be written.
      architecture: see `mtlora_jax.model_factory`.
      arrays: {path: array} of every parameter and batch statistic.
      extra: further JSON-able entries of config.json, such as classes, scores and the origin of the weights; see
        `mtlora_jax.model_io.card`.
    """
    write(pathlib.Path(folder), {**(extra or {}), "architecture": architecture}, arrays, WEIGHTS)


def write(folder: pathlib.Path, config: Mapping[str, Any], arrays: Mapping[str, np.ndarray], name: str) -> None:
    """Writes config.json, `arrays` as the safetensors file `name`, and the card that belongs to them."""
    config = {"format": FORMAT, **config}
    if "scores" in config:  # JSON has no NaN
        known = {name: value for name, value in config["scores"].items() if value is not None and math.isfinite(value)}
        config["scores"] = {name: known.get(name) for name in config["scores"]}
    with files.atomic_folder(folder) as temporary:
        weights.write(temporary / name, arrays)
        files.write_json(temporary / CONFIG, config)
        files.write_text(temporary / "README.md", card(config, arrays))


def is_model_folder(folder: str | pathlib.Path) -> bool:
    """Whether a folder has a config.json of ours, valid or not.

    config.json of timm also has an `architecture`, but there it is a string.
    """
    path = files.user_path(folder) / CONFIG
    if not path.is_file():
        return False
    try:
        config = files.read_json(path, config_schema.LARGEST_FILE)
    except UserError:  # `read_config` will raise it
        return True
    return isinstance(config, dict) and isinstance(config.get("architecture"), dict)


def read_config(folder: str | pathlib.Path) -> dict[str, Any]:
    """config.json of a model folder.

    Raises UserError if it is missing, not ours, or not valid.
    """
    folder = files.user_path(folder)
    path = folder / CONFIG
    refuse_run(folder, above=2)
    if not path.is_file():
        advice = "make one with python -m mtlora_jax.convert"
        raise UserError(f"{folder} is not a model folder: it has no {CONFIG} ({advice})")
    config = files.read_json(path, config_schema.LARGEST_FILE)
    if not isinstance(config, dict) or not isinstance(config.get("architecture"), dict):
        advice = f"convert the checkpoint with python -m mtlora_jax.convert {folder} OUT"
        raise UserError(f"{path} does not describe a model of mtlora_jax; {advice}")
    if not whole(FORMAT, FORMAT).holds(config.get("format")):
        raise UserError(f"{path} has format {shown(config.get('format'))}; this version reads {FORMAT}")
    try:
        config_schema.check(config)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return config


def refuse_run(folder: pathlib.Path, above: int = 0) -> None:
    """Raises UserError if a folder is the workdir of a run, or at most `above` levels below one.

    The error names the best model of the run.
    """
    if is_model_folder(folder):
        return
    for run in (folder, *folder.absolute().parents[: 0 if folder.name in ("best", "initial") else above]):
        best = run / "best"
        started = (run / "checkpoints").is_dir() and (run / CONFIG).is_file()
        if started or is_model_folder(best) or is_model_folder(run / "initial"):
            what = "is a run" if run == folder else f"is part of the run {run}"
            without = "it has no best model yet, since it has not been evaluated"
            told = f"its best model is {best}" if is_model_folder(best) else without
            raise UserError(f"{folder} {what}; {told}")


def read(folder: str | pathlib.Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(config.json, {path: float32 array}) of a model folder.

    Both belong to the same save, even if the folder is replaced meanwhile. Raises UserError for missing or damaged
    files, for weights that are not finite floats, and for an adapter.
    """
    folder = files.user_path(folder)

    def both() -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        config = read_config(folder)
        if "adapter" in config:
            raise UserError(
                f"{folder} is an adapter of {config['adapter'].get('base')}: open it with --base=BASE or "
                "mtlora_jax.load(ADAPTER, base=BASE), or make it a whole model with "
                f"python -m mtlora_jax.convert {folder} OUT --base=BASE"
            )
        return config, weights.read(folder / WEIGHTS)

    return files.read_consistently(folder, both)


class Model:
    """A loaded model. Calling it runs the forward pass, compiled once per shape and dtype of the (resized) images.

    Attributes:
      config: config.json as a dict.
      architecture: the part of it that the model is built from.
      tasks: task names, in order.
      image_size: (height, width) the model was trained and evaluated at.
      module: the `flax.nnx` module with its weights.
    """

    def __init__(self, config: Mapping[str, Any], module: MultiTaskModel):
        self.config = dict(config)
        self.architecture = config["architecture"]
        self.tasks = tuple(self.architecture["tasks"])
        height, width = self.architecture["image_size"]
        self.image_size = (height, width)
        self.module = module
        self._weights = {path: variable.get_value() for path, variable in parameters.flat_variables(module).items()}
        whole = refilled(module)
        alone = {task: refilled(model_factory.build(only(self.architecture, [task]))) for task in self.tasks}

        def forward(weights: Flat, images: jax.Array, stride: int) -> dict[str, jax.Array]:
            height, width = images.shape[1:3]
            x = pad_to_multiple(normalised(images), stride, stride)
            # Each task as in a model of its own; the compiler merges their equal operations. In one product for all
            # tasks (`TaskLoRALinear.stacked`), the order of summation would depend on the other tasks.
            return {task: model(weights)(x)[task][:, :height, :width] for task, model in alone.items()}

        def features(weights: Flat, images: jax.Array) -> list:
            return [features.projected() for features in whole(weights).backbone(normalised(images))]

        def resize(logits: dict[str, jax.Array], height: int, width: int) -> dict[str, jax.Array]:
            return {task: resize_bilinear(x, height, width) for task, x in logits.items()}

        self._forward = jax.jit(forward, static_argnums=2)
        self._features = jax.jit(features)
        # Separate, so that photographs of many sizes compile nothing large.
        self._resize = jax.jit(resize, static_argnums=(1, 2))

    def __call__(self, images: Any, fit: str = "resize") -> dict[str, jax.Array]:
        """Logits of every task for one image or a batch, at the original size of the images.

        Args:
          images: RGB (H, W, 3) or (B, H, W, 3), any size. uint8 images are normalised here; floats must be normalised
            by the ImageNet mean and standard deviation already.
          fit: how images are fitted to the model. "resize": as in an evaluation at the original size, to `image_size`
            by OpenCV's cubic interpolation, and the logits bilinearly back. "pad": with zeros at the bottom and right
            up to multiples of 32 pixels, cut off again. "none": unchanged; the backbone pads sides that do not fit its
            patches and windows.

        Returns:
          {task: float32 (H, W, C) or (B, H, W, C)}, tasks in order.

        Raises:
          UserError: for a bare backbone, other arrays than images, and an unknown `fit`.
        """
        if not self.tasks:
            advice = "use model.features(images), or fine-tune it first"
            raise UserError(f"this model folder holds a bare backbone without tasks: {advice}")
        if fit not in FITS:
            raise UserError(f"fit = {fit!r} is not one of {', '.join(FITS)}")
        batch, single = as_batch(images)
        height, width = batch.shape[1:3]
        seen = resized(batch, self.image_size) if fit == "resize" else batch
        padded = fit == "pad" and (height % STRIDE or width % STRIDE)
        logits = self._forward(self._weights, seen, STRIDE if padded else 1)
        if seen.shape != batch.shape:
            logits = self._resize(logits, height, width)
        # jit has sorted the keys.
        return {task: logits[task][0] if single else logits[task] for task in self.tasks}

    def features(self, images: Any) -> list:
        """The backbone's `TaskFeatures`, fine to coarse, each with a batch axis.

        Images are those of a call with fit="none".
        """
        return self._features(self._weights, as_batch(images)[0])

    def save(self, folder: str | pathlib.Path) -> None:
        """Writes a model folder atomically; an existing one is replaced."""
        extra = {key: value for key, value in self.config.items() if key not in ("format", "architecture")}
        save(folder, self.architecture, parameters.host_arrays(self.module), extra)


def refilled(module: MultiTaskModel) -> Callable[[Flat], MultiTaskModel]:
    """Returns a function that rebuilds the model from arrays, inside compiled functions; other arrays are ignored."""
    graph, paths = nnx.graphdef(module), tuple(parameters.flat_variables(module))
    return lambda weights: parameters.bind(graph, {path: weights[path] for path in paths})


def normalised(images: jax.Array) -> jax.Array:
    """Inputs of the model, float32, from uint8 images or from images that are normalised already."""
    return normalise(images) if images.dtype == np.uint8 else images


def resized(images: jax.Array | np.ndarray, size: tuple[int, int]) -> jax.Array | np.ndarray:
    """Images (B, H, W, 3) resized to `size` = (H, W) on the host.

    The interpolation is that of evaluations (`mtlora_jax.data.transforms.resize`).
    """
    if images.shape[1:3] == size:
        return images
    return np.stack([cv2.resize(image, size[::-1], interpolation=cv2.INTER_CUBIC) for image in np.asarray(images)])


def as_batch(images: Any) -> tuple[jax.Array | np.ndarray, bool]:
    """((B, H, W, 3) uint8 or float32, whether it was a single image). Raises UserError for other arrays."""
    array = images if isinstance(images, jax.Array) else np.asarray(images)
    floating = jax.numpy.issubdtype(array.dtype, np.floating)
    of_images = array.ndim in (3, 4) and array.shape[-1] == 3 and 0 not in array.shape
    if not of_images or not (floating or array.dtype == np.uint8):
        expected = "images must be RGB, (H, W, 3) or (B, H, W, 3), as uint8 or as normalised floats"
        raise UserError(f"{expected}; got {array.dtype} {tuple(array.shape)}")
    if floating:
        array = array.astype(np.float32)
        if not (largest := float(abs(array).max())) <= BRIGHT:
            advice = "floats must be normalised already; pass uint8 to have images normalised"
            raise UserError(f"images are floats up to {largest:g}: {advice}")
    return (array[None], True) if array.ndim == 3 else (array, False)


def load(folder: str | pathlib.Path) -> Model:
    """Opens a model folder written by the converter, by training or by `Model.save`."""
    config, arrays = read(folder)
    return filled(config, config["architecture"], arrays, str(folder))


def filled(
    config: Mapping[str, Any], architecture: Mapping[str, Any], arrays: Mapping[str, np.ndarray], source: str
) -> Model:
    """The model of an architecture with these arrays. Raises UserError naming `source` if they do not fit."""
    module = model_factory.build(architecture)
    parameters.assign(module, arrays, source)
    return Model({**config, "architecture": architecture}, module)
