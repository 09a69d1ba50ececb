"""The contract of a backbone."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
from flax import nnx

from mtlora_jax.models.remat import no_remat, remat
from mtlora_jax.models.task_features import TaskFeatures


class Stage(nnx.Module):
    """Blocks in a row; a subclass may add layers before or after them.

    Attributes:
      blocks: called as (`TaskFeatures`, rngs) -> `TaskFeatures`.
      downsample: joins neighbours after the blocks, with the linear layer `downsample.reduction`; None if nothing does.
      remat_blocks: set by `model_factory.configure`.
    """

    blocks: nnx.List
    downsample: Any = None
    remat_blocks: bool = False

    def run_blocks(self, x: TaskFeatures, rngs: nnx.Rngs | None = None) -> TaskFeatures:
        """Call the blocks one after the other, each with `remat` if `remat_blocks` is set."""
        run = remat if self.remat_blocks else no_remat
        for block in self.blocks:
            x = run(type(block).__call__, block, x, rngs)
        return x


class Backbone(nnx.Module):
    """An encoder from images to one `TaskFeatures` per stage, fine to coarse.

    Its constructor takes plain numbers, the options of a config. Its layers are subclasses of `models.layers.Layer`,
    called by `forward`, so that methods can replace them.

    Attributes:
      OPTIONS: {option: check} of the constructor, by the checks of `mtlora_jax.schema`.
      VARIANTS: {variant: options} of the named sizes.
      LINEAR_LAYERS: {location: dotted paths inside a block} of the linear layers that methods adapt: qkv (queries, keys
        and values), proj (the output of attention), fc1 and fc2 (of `models.layers.MLP`, which is the block's `mlp`).
      PARAM_GROUPS: {group of `methods.param_groups`: pattern}. The pattern matches the whole path of a parameter below
        the backbone.
      layers: its stages, fine to coarse, each a `Stage`; tables of parameters have a row for each.
      out_channels: channels of each stage's features.
      strides: strides of each stage's features in pixels.
      carry_tasks: whether the next stage gets features of tasks, instead of shared ones alone.
      remat_stages: set by `model_factory.configure`.
    """

    OPTIONS: ClassVar[Mapping[str, Any]] = {}
    VARIANTS: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    LINEAR_LAYERS: ClassVar[Mapping[str, Sequence[str]]] = {}
    PARAM_GROUPS: ClassVar[Mapping[str, str]] = {}

    layers: nnx.List
    out_channels: tuple[int, ...]
    strides: tuple[int, ...]
    carry_tasks: bool = True
    remat_stages: bool = False

    @property
    def stages(self) -> Sequence[Any]:
        """The stages, fine to coarse: `layers`, unless a subclass keeps them elsewhere."""
        return self.layers

    def run_stages(self, x: TaskFeatures, rngs: nnx.Rngs | None = None) -> list[TaskFeatures]:
        """Call the stages one after the other; return the features of each.

        Obeys `carry_tasks` and `remat_stages`.
        """
        run = remat if self.remat_stages else no_remat
        features = []
        for stage in self.stages:
            x = run(type(stage).__call__, stage, x, rngs)
            features.append(x)
            if not self.carry_tasks:
                x = TaskFeatures(x.shared)
        return features

    def block_layers(self, block: nnx.Module) -> dict[str, list[tuple[Any, str]]]:
        """Return {location: [(module, attribute that holds the layer)]} of the linear layers of a block."""
        return {location: [_place(block, path) for path in paths] for location, paths in self.LINEAR_LAYERS.items()}

    @property
    def smallest_open_side(self) -> int:
        """The smallest image side, in pixels, whose program also serves all larger sides.

        `jax.export` needs it for open sizes.
        """
        raise NotImplementedError

    def __call__(self, images: jax.Array, rngs: nnx.Rngs | None = None) -> list[TaskFeatures]:
        """Normalised images (B, H, W, 3) -> features (..., B, H_i, W_i, C_i) of each stage."""
        raise NotImplementedError

    @classmethod
    def title(cls, options: Mapping[str, Any]) -> str:
        """Return a name for people, with the variant of these options: "Swin tiny"."""
        for name, variant in cls.VARIANTS.items():
            if all(_listed(options.get(key)) == _listed(value) for key, value in variant.items()):
                return f"{cls.__name__} {name}"
        return f"{cls.__name__} of its own size"

    @classmethod
    def hub_name(cls, file: str, format: str) -> str:
        """Return the name on the Hugging Face Hub of a converted checkpoint's model; empty if unknown.

        Args:
          file: name of the checkpoint file.
          format: the format it was converted from, a key of `mtlora_jax.convert.FORMATS`.
        """
        return ""


def _place(block: nnx.Module, path: str) -> tuple[Any, str]:
    *parents, name = path.split(".")
    return functools.reduce(getattr, parents, block), name


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple | list) else value
