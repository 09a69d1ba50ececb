"""The training step alone."""

import argparse
import dataclasses
import functools
import pathlib
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from mtlora_jax import model_factory
from mtlora_jax.analysis.param_counts import group_of_each
from mtlora_jax.benchmark import roofline
from mtlora_jax.benchmark.memory import estimate, nbytes
from mtlora_jax.benchmark.timing import Program, compiled, time_steps
from mtlora_jax.data.synthetic import random_batch
from mtlora_jax.distributed import sharding
from mtlora_jax.experiment import Experiment, build_experiment, build_tasks
from mtlora_jax.models import parameters
from mtlora_jax.train.optimizer import make_optimizer
from mtlora_jax.train.step import TrainState, create_state, train_step


@dataclasses.dataclass
class Training:
    """A training run's compiled step, with random weights.

    Attributes:
      batch: noise, on the devices.
    """

    experiment: Experiment
    program: Program
    state: TrainState
    batch: dict[str, jax.Array]
    key: jax.Array

    @property
    def device(self) -> Any:
        """The first of the devices that it runs on."""
        return self.experiment.mesh.devices.flat[0]

    def step(self, batch: dict[str, jax.Array] | None = None) -> tuple[TrainState, dict[str, jax.Array]]:
        """Makes one update with the given batch, else with the noise.

        Returns (state, metrics), which may still be being computed.
        """
        self.state, metrics = self.program.run(
            self.state, self.experiment.frozen, self.batch if batch is None else batch, self.key
        )
        return self.state, metrics


def start(config: Any) -> Training:
    """Sets up and compiles the step of a training run, without data and files.

    Raises UserError for a config that describes no model.
    """
    config.init_from = ""
    tasks = build_tasks(config)
    with tempfile.TemporaryDirectory() as nothing:
        experiment = build_experiment(config, tasks, pathlib.Path(nothing))
    mesh = experiment.mesh
    everywhere, split = sharding.replicated_sharding(mesh), sharding.batch_sharding(mesh)
    optimizer = make_optimizer(config.optimizer, optax.constant_schedule(1e-4), frozenset(experiment.trainable))
    update = jax.jit(
        functools.partial(
            train_step,
            graph=experiment.graph,
            tasks=tasks,
            weights={name: task.weight for name, task in tasks.items()},
            optimizer=optimizer,
            encoder_microbatches=config.encoder_microbatches,
            groups=group_of_each(model_factory.build(experiment.architecture)),
        ),
        in_shardings=(everywhere, everywhere, split, everywhere),
        out_shardings=everywhere,
        donate_argnums=0,
    )
    state = jax.device_put(create_state(experiment.trainable, experiment.batch_stats, optimizer), everywhere)
    batch = sharding.shard_batch(
        random_batch(tasks, config.batch_size // jax.process_count(), tuple(config.image_size)), mesh
    )
    key = jax.random.key(config.seed)
    return Training(experiment, compiled(update, state, experiment.frozen, batch, key), state, batch, key)


def train(args: argparse.Namespace) -> dict[str, Any]:
    """Time, memory and cost of the training step. Raises UserError for a config that describes no model."""
    config = args.config
    training = start(config)
    steps = time_steps(training.step, args.steps, training.device)
    return {
        **roofline.measured(training.program, steps, config, training.experiment.mesh, least_bytes(config, training)),
        "encoder_microbatches": config.encoder_microbatches,
        "remat": config.remat,
        "gmacs_forward": forward_products(training.experiment) / 1e9,
    }


def least_bytes(config: Any, training: Training) -> int:
    """Bytes that any step on one device must read and write.

    Inputs are read once, the state is also written, and activations kept for the backward pass are written and read.
    """
    experiment = training.experiment
    own = config.batch_size // experiment.mesh.size
    kept = estimate(config, experiment.architecture, experiment.tasks, own)["activations"]
    state = nbytes(jax.tree.leaves(training.state))
    return (
        2 * state
        + nbytes(experiment.frozen.values())
        + nbytes(training.batch.values()) // experiment.mesh.size
        + 2 * kept
    )


def forward_products(experiment: Experiment) -> int:
    """Multiply-accumulates of the traced forward pass of one image in training."""
    values = {**experiment.trainable, **experiment.frozen, **experiment.batch_stats}
    shapes = {path: jax.ShapeDtypeStruct(value.shape, value.dtype) for path, value in values.items()}
    image = jax.ShapeDtypeStruct((1, *experiment.architecture["image_size"], 3), jnp.float32)

    def forward(values: parameters.Flat, image: jax.Array) -> dict[str, jax.Array]:
        return parameters.bind(experiment.graph, values)(image, train=True, rngs=nnx.Rngs(dropout=0))

    return roofline.products(jax.make_jaxpr(forward)(shapes, image).jaxpr)
