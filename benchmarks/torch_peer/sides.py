"""The two sides of `benchmarks/peer.py`, our step and that of the PyTorch peer, checked to be equal."""

import argparse
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import torch

from mtlora_jax import model_factory
from mtlora_jax.benchmark.train import start
from mtlora_jax.data.synthetic import random_batch
from mtlora_jax.errors import UserError
from mtlora_jax.experiment import build_tasks
from mtlora_jax.model_io.merging import merged_arrays
from mtlora_jax.models import parameters
from mtlora_jax.models.inputs import normalise
from mtlora_jax.models.parameters import Flat
from mtlora_jax.tasks.task import Task
from torch_peer import check, training
from torch_peer.model import MTLoRA
from torch_peer.timing import Side

Arrays = Mapping[str, np.ndarray]
Forward = Callable[[jax.Array], dict[str, jax.Array]]  # normalised images -> logits


@dataclasses.dataclass(frozen=True)
class Job:
    """The computation of both sides.

    Attributes:
      arrays: the weights of the (unmerged) architecture.
      batch: as our pipeline yields it.
    """

    args: argparse.Namespace
    tasks: dict[str, Task]
    architecture: dict[str, Any]
    arrays: Arrays
    batch: Arrays


def compared_sides(args: argparse.Namespace) -> tuple[dict[str, float], Side, Side]:
    """(differences in float32, ours, the peer). Raises UserError if they are not the same model."""
    config = args.config
    tasks = build_tasks(config)
    architecture = model_factory.from_config(config, {name: task.channels for name, task in tasks.items()})
    if jax.device_count() > 1:
        raise UserError(
            f"jax has {jax.device_count()} devices, the peer uses one: hide the others, as with CUDA_VISIBLE_DEVICES=0"
        )
    batch = random_batch(tasks, args.batch_size, tuple(config.image_size))
    job = Job(args, tasks, architecture, check.random_arrays(architecture, config.seed), batch)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    set_float32_products(device, "highest")
    forward = forward_of(job, "float32", "float32")
    with jax.default_matmul_precision("highest"):
        differences = compare(job, forward, device)
    check.refuse(differences)
    set_float32_products(device, "high" if args.tf32 else "highest")
    if args.what == "train":
        return differences, our_training(job), peer_training(job, device)
    numbers = config.compute_dtype, config.frozen_dtype
    if numbers != ("float32", "float32"):
        forward = forward_of(job, *numbers)
    return differences, our_inference(job, forward), peer_inference(job, device)


def set_float32_products(device: torch.device, precision: str) -> None:
    """Sets the precision of the peer's products: "highest", or "high" for TF32. On a CPU they stay float32."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = precision == "high"
        torch.backends.cudnn.benchmark = True  # sizes do not change


def compare(job: Job, forward: Forward, device: torch.device) -> dict[str, float]:
    """Differences of the logits, and in training of loss and gradients."""
    some = {name: value[: check.IMAGES] for name, value in job.batch.items()}
    differences = check.compare_logits(forward(normalise(some["image"])), peer_of(job, device), some)
    if job.args.what == "train":
        differences |= check.compare_training(job.architecture, job.arrays, some, job.tasks, device)
    return differences


def forward_of(job: Job, compute: str, frozen: str) -> Forward:
    """Our forward pass from normalised images to logits; weights are arguments of the compiled program."""
    architecture, arrays = (
        merged_arrays(job.architecture, job.arrays) if job.args.merged else (job.architecture, job.arrays)
    )
    model = model_factory.build(architecture)
    model_factory.configure(model, compute=compute)
    parameters.assign(model, arrays, "the random weights")
    graph, trainable, rest, stats = parameters.partition(model, model_factory.method_of(architecture).is_trainable)
    weights = {**trainable, **stats, **parameters.cast_matrices(rest, frozen)}
    run = jax.jit(lambda weights, images: parameters.bind(graph, weights)(images))
    return lambda images: run(weights, images)


def our_products(args: argparse.Namespace) -> Any:
    """Context in which our programs are compiled."""
    return jax.default_matmul_precision("default" if args.tf32 else "highest")


def our_side(step: Callable[[], Any], compile_seconds: float = 0.0) -> Side:
    """Our side, for a `step` whose arrays may still be being computed when it returns."""
    device = jax.devices()[0]

    def peak() -> int | None:
        return (device.memory_stats() or {}).get("peak_bytes_in_use")

    return Side(
        device.device_kind,
        f"jax {jax.__version__}",
        lambda: jax.block_until_ready(step()),
        peak_bytes=peak,
        compile_seconds=compile_seconds,
    )


def our_training(job: Job) -> Side:
    """The training step of `mtlora_jax.benchmark` on the job's random weights."""
    with our_products(job.args):
        run = start(job.args.config)
    experiment = run.experiment
    run.experiment = dataclasses.replace(experiment, frozen=filled(experiment.frozen, job.arrays))
    trainable, stats = (filled(values, job.arrays) for values in (run.state.trainable, run.state.batch_stats))
    run.state = run.state._replace(trainable=trainable, batch_stats=stats)
    return our_side(run.step, sum(run.program.times[f"{what}_seconds"] for what in ("tracing", "lowering", "compile")))


def filled(values: Flat, arrays: Arrays) -> Flat:
    """The values of `arrays` with the dtypes and shardings of `values`."""
    return {path: jax.device_put(arrays[path].astype(value.dtype), value.sharding) for path, value in values.items()}


def our_inference(job: Job, forward: Forward) -> Side:
    """Our compiled forward pass."""
    images = normalise(job.batch["image"])

    def step() -> dict[str, jax.Array]:
        with our_products(job.args):
            return forward(images)

    return our_side(step)


def peer_training(job: Job, device: torch.device) -> Side:
    """A step of the usual PyTorch training loop."""
    model = peer_of(job, device).train()
    images, labels = training.tensors(job.batch, device)
    weights, options = {name: task.weight for name, task in job.tasks.items()}, job.args.config.optimizer
    optimizer = training.optimizer_of(model, options)
    total = compiled(lambda images: training.total_loss(model(images), labels, weights), job)

    def loss() -> torch.Tensor:
        with autocast(job, device):
            return total(images)

    return peer_side(lambda: training.update(model, loss, optimizer, options.clip_norm), device)


def peer_inference(job: Job, device: torch.device) -> Side:
    """The peer's forward pass."""
    model = compiled(peer_of(job, device).eval(), job)
    images, _ = training.tensors(job.batch, device)

    def step() -> None:
        with torch.inference_mode(), autocast(job, device):
            model(images)

    return peer_side(step, device)


def peer_of(job: Job, device: torch.device) -> MTLoRA:
    """The peer with the job's random weights."""
    return check.peer_of(job.architecture, job.arrays).to(device)


def autocast(job: Job, device: torch.device) -> torch.autocast:
    """Context in which the peer's products are bfloat16 if that was requested."""
    return torch.autocast(device.type, torch.bfloat16, enabled=job.args.precision == "bfloat16")


def compiled(fn: Any, job: Job) -> Any:
    """`fn` through torch.compile if that was requested."""
    return torch.compile(fn, dynamic=False) if job.args.compiled else fn


def peer_side(step: Callable[[], Any], device: torch.device) -> Side:
    """The peer's side, for a `step` that may return before its work on a GPU is done."""
    version = f"torch {torch.__version__}"
    if device.type == "cpu":
        return Side(f"cpu, {torch.get_num_threads()} threads", version, step)

    def whole() -> None:
        step()
        torch.cuda.synchronize()

    forget_peak, peak = torch.cuda.reset_peak_memory_stats, torch.cuda.max_memory_allocated
    return Side(torch.cuda.get_device_name(), version, whole, forget_peak, peak)
