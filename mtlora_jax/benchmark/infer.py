"""The forward pass alone."""

import argparse
from typing import Any

import jax

from mtlora_jax import architecture as architectures
from mtlora_jax import parameters, sharding
from mtlora_jax.benchmark import cost, random_batch
from mtlora_jax.benchmark.timing import compiled, steps_of
from mtlora_jax.experiment import tasks_of
from mtlora_jax.memory import nbytes
from mtlora_jax.merging import merged_architecture
from mtlora_jax.parameters import Flat
from mtlora_jax.step import normalise


def infer(args: argparse.Namespace) -> dict[str, Any]:
    """Time, memory and cost of a forward pass from uint8 images to logits. Raises UserError for a config that describes no model."""
    config = args.config
    tasks = tasks_of(config)
    architecture = architectures.from_config(config, {name: task.channels for name, task in tasks.items()})
    if args.merged:
        architecture = merged_architecture(architecture)
    model = architectures.build(architecture)
    architectures.configure(model, compute=config.precision.compute)
    parameters.initialise(model, config.seed)
    graph, rest, frozen, stats = parameters.split(model, architectures.method_of(architecture).trainable)
    mesh = sharding.make_mesh()
    sharding.check_batch_size(config.batch_size, mesh, "batch_size")
    weights = sharding.replicate({**rest, **stats, **parameters.narrowed(frozen, config.precision.frozen)}, mesh)
    noise = random_batch({}, config.batch_size // jax.process_count(), tuple(config.image_size))
    images = sharding.put(noise, mesh)["image"]

    def forward(weights: Flat, images: jax.Array) -> dict[str, jax.Array]:
        return parameters.merge(graph, weights)(normalise(images))

    everywhere, split = sharding.replicated(mesh), sharding.by_batch(mesh)
    program = compiled(jax.jit(forward, in_shardings=(everywhere, split), out_shardings=split), weights, images)
    steps = steps_of(lambda: program.run(weights, images), args.steps, mesh.devices.flat[0])
    logits = jax.eval_shape(forward, weights, images)
    least = nbytes(weights.values()) + (images.nbytes + nbytes(logits.values())) // mesh.size  # in and out, each once
    told = cost.measured(program, steps, config, mesh, least)
    return {**told, "merged": args.merged, "gmacs_forward": told["gmacs_step"] / config.batch_size}
