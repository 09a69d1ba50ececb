"""Build everything that a config describes: data sets, tasks, model, first weights on the devices."""

import dataclasses
import json
import pathlib
import shlex
import sys
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from mtlora_jax import model_factory
from mtlora_jax.data import DATASETS
from mtlora_jax.data.pipeline import Batches, Dataset, eval_batches, train_batches
from mtlora_jax.data.transforms import Augmentation
from mtlora_jax.defaults import Config
from mtlora_jax.distributed import agreement, sharding
from mtlora_jax.errors import UserError
from mtlora_jax.methods.base import Method
from mtlora_jax.model_io import class_names, initial_weights, model_folder
from mtlora_jax.models import parameters
from mtlora_jax.models.multitask import MultiTaskModel
from mtlora_jax.models.parameters import Flat
from mtlora_jax.tasks.task import Task


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A model on the devices, split into trainable and frozen parameters and BatchNorm statistics."""

    mesh: Mesh
    tasks: dict[str, Task]
    architecture: dict[str, Any]
    method: Method
    graph: nnx.GraphDef
    trainable: Flat
    frozen: Flat
    batch_stats: Flat
    # entries of config.json for the model card: the origin of the model
    record: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def save(self, where: pathlib.Path, trainable: Flat, batch_stats: Flat, extra: Mapping[str, Any]) -> None:
        """Write the model with these trained weights as a model folder that `mtlora_jax.load` opens.

        Process 0 writes, all wait for it. Raises UserError if another process does not see the folder afterwards.
        """
        if jax.process_index() == 0:
            values = jax.device_get({**self.frozen, **trainable, **batch_stats})
            # bfloat16 on the devices becomes float32 in files, which every reader understands.
            arrays = {path: np.asarray(value, np.float32) for path, value in values.items()}
            entries = {"classes": class_names.of(self.tasks), **self.record, **extra}
            model_folder.save(where, self.architecture, arrays, entries)
        sharding.barrier(str(where))
        sharding.assert_equal_across_processes(where.exists(), not_shared(where))


def not_shared(where: pathlib.Path) -> str:
    """Return the error message for a path that not all processes see."""
    return (
        f"{where} exists for some of the processes and not for others: "
        "--workdir must be on a file system that all hosts share"
    )


def open_dataset(config: Config, split: str) -> Dataset:
    """Open a split of the config's data set. Raises UserError for an unknown data set or bad files."""
    return dataset_class(config)(config.data.root, split, tuple(config.tasks))


def open_datasets(config: Config, *splits: str) -> list[Dataset]:
    """Open splits of the config's data set, the same in all processes.

    Raises UserError in all processes if one has bad files, or other data.
    """
    opened = agreement.run_together(lambda: [open_dataset(config, split) for split in splits])
    if jax.process_count() > 1:
        found: dict[str, Any] = {}
        for describe in (agreement.describe_data, agreement.describe_samples):
            for data, split in zip(opened, splits, strict=True):
                found |= describe(data, split)
        agreement.require_same(found, "give all hosts the same data")
    return opened


def build_tasks(config: Config) -> dict[str, Task]:
    """Build the config's tasks with the classes of its data set, whose files may be missing."""
    return dataset_class(config).make_tasks(config.data.root, tuple(config.tasks))


def dataset_class(config: Config) -> type[Dataset]:
    """Return the class that `config.data.name` names. Raises UserError for an unknown name."""
    if config.data.name not in DATASETS:
        raise UserError(f"data.name = {config.data.name!r} is not one of {', '.join(DATASETS)}")
    return DATASETS[config.data.name]


def make_train_batches(config: Config, data: Dataset) -> Batches:
    """Make an endless iterator over this process's share of shuffled, augmented batches."""
    return train_batches(
        data,
        image_size=tuple(config.image_size),
        batch_size=config.batch_size,
        seed=config.seed,
        num_workers=config.data.num_workers,
        augmentation=Augmentation(**config.data.augmentation),
        reference_transforms=config.data.reference_transforms,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def make_eval_batches(config: Config, data: Dataset) -> Batches:
    """Make an iterator over this process's share of a split, once from its first image to its last."""
    return eval_batches(
        data,
        image_size=tuple(config.image_size),
        batch_size=config.eval_batch_size,
        num_workers=config.data.num_workers,
        reference_transforms=config.data.reference_transforms,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def build_experiment(
    config: Config, tasks: dict[str, Task], workdir: pathlib.Path, complete: bool = False
) -> Experiment:
    """Build the config's model with its first weights, and place it on the devices.

    Args:
      config: see `mtlora_jax.defaults`.
      tasks: of the data set.
      workdir: of the run; if it has begun, WORKDIR/initial holds the first weights.
      complete: whether `config.init_from` must hold every weight, as an evaluation needs.

    Raises:
      UserError: for a config that describes no model, sizes that do not fit the devices, or weights that do not fit the
        model.
    """
    mesh = sharding.make_mesh()
    check_batch_sizes(config, mesh)
    architecture = describe_architecture(config, tasks, workdir, complete)
    model, origin = build_with_weights(config, architecture, tasks, workdir, complete)
    return place_on_devices(config, architecture, tasks, model, origin, mesh)


def check_batch_sizes(config: Config, mesh: Mesh) -> None:
    """Check that the devices can share the config's batches, and that each share divides into micro-batches.

    Raises UserError otherwise.
    """
    sharding.check_batch_size(config.batch_size, mesh, "batch_size")
    check_encoder_microbatches(config.encoder_microbatches, config.batch_size, mesh.size)
    sharding.check_batch_size(config.eval_batch_size, mesh, "eval_batch_size")


def describe_architecture(
    config: Config, tasks: Mapping[str, Task], workdir: pathlib.Path, complete: bool
) -> dict[str, Any]:
    """Return the architecture of the config's model. Raises UserError.

    For an evaluation without training (`complete`), it may be a merged one.
    """
    architecture = model_factory.from_config(config, {name: task.channels for name, task in tasks.items()})
    initial = workdir / "initial"
    if (
        not sharding.assert_equal_across_processes(initial.exists(), not_shared(initial))
        and complete
        and config.init_from
    ):
        architecture |= agreement.run_together(lambda: initial_weights.merged_method(config.init_from))
    return architecture


def build_with_weights(
    config: Config, architecture: Mapping[str, Any], tasks: Mapping[str, Task], workdir: pathlib.Path, complete: bool
) -> tuple[MultiTaskModel, dict[str, str] | None]:
    """Build the model with its first weights. Returns it and their origin, None for random ones.

    The weights are those of WORKDIR/initial if a run began there, else of `config.init_from`, else random. Raises
    UserError.
    """
    model = model_factory.build(architecture)
    model_factory.configure(model, compute=config.compute_dtype, remat=config.remat, fused=config.fused)
    origin = agreement.run_together(lambda: load_first_weights(model, config, architecture, tasks, workdir, complete))
    return model, origin


def place_on_devices(
    config: Config,
    architecture: dict[str, Any],
    tasks: dict[str, Task],
    model: MultiTaskModel,
    origin: Mapping[str, str] | None,
    mesh: Mesh,
) -> Experiment:
    """Split a model by what is trained, and replicate its weights.

    Raises UserError if the weights differ between processes.
    """
    method = model_factory.method_of(architecture)
    graph, trainable, frozen, batch_stats = parameters.partition(model, method.is_trainable)
    if jax.process_count() > 1:
        agreement.require_same(agreement.describe_arrays({**trainable, **frozen, **batch_stats}, "first weights of"))
    parts = trainable, parameters.cast_matrices(frozen, config.frozen_dtype), batch_stats
    trainable, frozen, batch_stats = sharding.replicate(parts, mesh)
    record = {"training": describe_training(config), **({"started_from": origin} if origin else {})}
    return Experiment(mesh, tasks, architecture, method, graph, trainable, frozen, batch_stats, record)


def load_first_weights(
    model: nnx.Module,
    config: Config,
    architecture: Mapping[str, Any],
    tasks: Mapping[str, Task],
    workdir: pathlib.Path,
    complete: bool,
) -> dict[str, str] | None:
    """Fill a model in place, as `build_with_weights` says.

    Returns the origin of the weights; None for random ones.
    """
    initial = workdir / "initial"
    if initial.exists():
        started, values = model_folder.read(initial)
        class_names.check(
            started.get("classes", {}),
            tasks,
            f"the run in {workdir}",
            "choose another --workdir, or the data it was trained on",
        )
        initial_weights.refuse_differences(
            started["architecture"], architecture, f"{workdir} holds a run of another model", "choose another --workdir"
        )
        parameters.assign(model, values, str(initial))
        origin = started.get("started_from")
    elif config.init_from:
        initial_weights.load(model, config.init_from, architecture, tasks, complete, config.get("init_strict", True))
        origin = initial_weights.origin_of(config.init_from)
    else:
        origin = None
    parameters.initialise(model, config.seed)
    return origin


def describe_training(config: Config) -> dict[str, Any]:
    """Return the command of this process, if it is one of this package, and the config, JSON-able."""
    ours = any(argument.startswith("mtlora_jax.") for argument in sys.orig_argv)
    command = shlex.join(["python", *sys.orig_argv[1:]]) if ours else ""
    return {"command": command, "config": json.loads(config.to_json_best_effort())}


def check_encoder_microbatches(parts: int, batch_size: int, devices: int) -> None:
    """Check that each device's share of a global batch can be cut into `parts` equal parts.

    Raises UserError otherwise.
    """
    if parts < 1 or batch_size % (parts * devices):
        raise UserError(
            f"encoder_microbatches = {parts} must be at least 1 and divide the {batch_size // devices} images "
            "of each device's batch"
        )
