"""The forward pass alone."""

import argparse
from typing import Any

import jax

from mtlora_jax import model_factory
from mtlora_jax.benchmark import roofline
from mtlora_jax.benchmark.memory import nbytes
from mtlora_jax.benchmark.timing import compiled, time_steps
from mtlora_jax.data.synthetic import random_batch
from mtlora_jax.distributed import sharding
from mtlora_jax.experiment import build_tasks
from mtlora_jax.model_io.merging import merged_architecture
from mtlora_jax.models import parameters
from mtlora_jax.models.inputs import normalise
from mtlora_jax.models.parameters import Flat


def infer(args: argparse.Namespace) -> dict[str, Any]:
    """Time, memory and cost of a forward pass from uint8 images to logits.

    Raises UserError for a config that describes no model.
    """
    config = args.config
    tasks = build_tasks(config)
    architecture = model_factory.from_config(config, {name: task.channels for name, task in tasks.items()})
    if args.merged:
        architecture = merged_architecture(architecture)
    model = model_factory.build(architecture)
    model_factory.configure(model, compute=config.compute_dtype)
    parameters.initialise(model, config.seed)
    graph, rest, frozen, stats = parameters.partition(model, model_factory.method_of(architecture).is_trainable)
    mesh = sharding.make_mesh()
    sharding.check_batch_size(config.batch_size, mesh, "batch_size")
    weights = sharding.replicate({**rest, **stats, **parameters.cast_matrices(frozen, config.frozen_dtype)}, mesh)
    noise = random_batch({}, config.batch_size // jax.process_count(), tuple(config.image_size))
    images = sharding.shard_batch(noise, mesh)["image"]

    def forward(weights: Flat, images: jax.Array) -> dict[str, jax.Array]:
        return parameters.bind(graph, weights)(normalise(images))

    everywhere, split = sharding.replicated_sharding(mesh), sharding.batch_sharding(mesh)
    program = compiled(jax.jit(forward, in_shardings=(everywhere, split), out_shardings=split), weights, images)
    steps = time_steps(lambda: program.run(weights, images), args.steps, mesh.devices.flat[0])
    logits = jax.eval_shape(forward, weights, images)
    least = (
        nbytes(weights.values()) + (images.nbytes + nbytes(logits.values())) // mesh.size
    )  # each read or written once
    told = roofline.measured(program, steps, config, mesh, least)
    return {**told, "merged": args.merged, "gmacs_forward": told["gmacs_step"] / config.batch_size}
