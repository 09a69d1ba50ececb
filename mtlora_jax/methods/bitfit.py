"""BitFit (Zaken et al., 2022) per task: each task trains its own biases and position tables of the encoder.

The tasks' encoders differ from the first bias on, so features of tasks run through all of it.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx

from mtlora_jax.errors import UserError
from mtlora_jax.methods.base import AdapterParam, Method
from mtlora_jax.models.backbones.swin import WindowAttention
from mtlora_jax.models.layers import ZEROS, Conv, Layer, LayerNorm, Linear, abstract_param, add_bias
from mtlora_jax.models.multitask import MultiTaskModel
from mtlora_jax.models.task_features import TaskFeatures


class TaskBias(AdapterParam):
    """The difference of a task to a frozen bias or position table; zero at first, as in the pre-trained model."""

    group: ClassVar = "task_biases"
    described: ClassVar = "biases of tasks"
    per_task: ClassVar = True


class TaskBiasLayer(Layer):
    """A layer with a bias of its own for each task.

    Attributes:
      task_bias: {task: (O,)}, added to the output of the frozen layer.
      tasks: their order.
    """

    task_bias: nnx.Dict
    tasks: tuple[str, ...]

    def forward(self, x: TaskFeatures, rngs: nnx.Rngs | None = None) -> TaskFeatures:
        return super().forward(x, rngs).combine(add_bias, stacked(self.task_bias, self.tasks))


class TaskBiasLinear(TaskBiasLayer, Linear):
    """A linear layer with a bias per task."""


class TaskBiasConv(TaskBiasLayer, Conv):
    """A convolution with a bias per task."""


class TaskBiasLayerNorm(TaskBiasLayer, LayerNorm):
    """A LayerNorm with a bias per task."""


class TaskBiasAttention(WindowAttention):
    """Window attention with a position table per task.

    Attributes:
      task_bias: {task: ((2w - 1)^2, heads)}, added to the frozen table.
      tasks: their order.
    """

    task_bias: nnx.Dict
    tasks: tuple[str, ...]

    def position_table(self) -> TaskFeatures:
        return super().position_table() + stacked(self.task_bias, self.tasks)


# {layer: (the name of its bias, the layer that replaces it)}
ADAPTED: dict[type[nnx.Module], tuple[str, type[nnx.Module]]] = {
    Linear: ("bias", TaskBiasLinear),
    Conv: ("bias", TaskBiasConv),
    LayerNorm: ("bias", TaskBiasLayerNorm),
    WindowAttention: ("relative_position_bias_table", TaskBiasAttention),
}


@dataclasses.dataclass(frozen=True)
class BitFit(Method):
    """Trains decoders, and per task every bias and position table of the encoder.

    A bias of a task is stored as its difference to the frozen one. Counts, and steps of an optimizer without weight
    decay, are those of a copy per task; weight decay draws position tables towards the pre-trained ones instead of
    towards zero.
    """

    TITLE: ClassVar = "BitFit"

    def adapt(self, model: MultiTaskModel) -> None:
        """Replace all layers that have a bias by layers with biases of tasks.

        Raises UserError for a model without tasks.
        """
        if not model.tasks:
            raise UserError(
                "method bitfit: the model has no tasks; it needs at least one, which gets biases of its own"
            )
        module: Any
        for _, module in list(nnx.iter_modules(model.backbone)):
            bias, kind = ADAPTED.get(type(module), ("", None))
            if kind is not None and getattr(module, bias) is not None:
                shape = getattr(module, bias).shape
                module.__class__ = kind  # the layer keeps all of its attributes, so only its class changes
                module.task_bias = nnx.Dict({task: abstract_param(shape, ZEROS, TaskBias) for task in model.tasks})
                module.tasks = model.tasks

    def is_trainable(self, path: str, variable: nnx.Variable) -> bool:
        return isinstance(variable, TaskBias) or path.startswith("decoders.")


def stacked(biases: nnx.Dict, tasks: Sequence[str]) -> TaskFeatures:
    """Return the biases as features of tasks, (T, ...).

    A Dict of nnx does not keep the order of its keys, so `tasks` gives it.
    """
    return TaskFeatures(None, jnp.stack([biases[task][...] for task in tasks]))
