"""The training run, top to bottom."""

import dataclasses
import functools
import json
import math
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import jax
import optax
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mtlora_jax import architecture as architectures
from mtlora_jax import folder, parameters, sharding
from mtlora_jax.accounting import summarise
from mtlora_jax.checkpoint import Checkpoints
from mtlora_jax.data import DATASETS
from mtlora_jax.data.pipeline import Dataset, eval_batches, train_batches
from mtlora_jax.data.transforms import Augmentation
from mtlora_jax.errors import UserError
from mtlora_jax.evaluate import evaluate, with_delta_m
from mtlora_jax.methods import Method
from mtlora_jax.models.lora import SharedLoRA, TaskLoRA
from mtlora_jax.optim import make_optimizer, make_schedule
from mtlora_jax.parameters import Flat
from mtlora_jax.records import Records, Speed, console, print_parameters, print_scores
from mtlora_jax.step import TrainState, create_state, eval_step, train_step
from mtlora_jax.tasks import make_tasks
from mtlora_jax.tasks.task import Task


@dataclasses.dataclass(frozen=True)
class Setup:
    """What training and evaluation have in common."""

    mesh: Mesh
    tasks: dict[str, Task]
    architecture: dict[str, Any]
    method: Method
    graph: nnx.GraphDef
    trainable: Flat
    frozen: Flat
    batch_stats: Flat


def open_dataset(config: ConfigDict, split: str) -> Dataset:
    """A split of the config's data set. Raises UserError for an unknown data set or bad files."""
    if config.data.name not in DATASETS:
        raise UserError(f"data.name = {config.data.name!r} is not one of {', '.join(DATASETS)}")
    return DATASETS[config.data.name](config.data.root, split, tuple(config.tasks))


def tasks_of(config: ConfigDict) -> dict[str, Task]:
    """The config's tasks with the classes of its data set, or with their usual ones where the data set is not at hand."""
    if pathlib.Path(config.data.root).is_dir():
        return open_dataset(config, config.data.train_split).tasks
    return make_tasks(config.tasks)


def set_up(config: ConfigDict, tasks: dict[str, Task], workdir: pathlib.Path) -> Setup:
    """Builds the model and gives it its first weights: those of WORKDIR/initial if a run was started there, else those of `config.init`."""
    mesh = sharding.make_mesh()
    architecture = architectures.from_config(config, {name: task.channels for name, task in tasks.items()})
    model = architectures.build(architecture)
    method = architectures.method_of(architecture)
    initial = workdir / "initial"
    if initial.exists():
        started, values = folder.read(initial)
        differing = [key for key in architecture if started[key] != architecture[key]]
        if differing:
            told = "; ".join(f"{key} {started[key]} there, {architecture[key]} in the config" for key in differing)
            raise UserError(f"{workdir} holds a run of another model ({told}); choose another --workdir")
        parameters.assign(model, values, str(initial))
    elif config.init:
        load_init(model, config.init, architecture)
    parameters.initialise(model, config.seed)
    graph, *parts = parameters.split(model, method.trainable)
    trainable, frozen, batch_stats = jax.device_put(parts, sharding.replicated(mesh))
    return Setup(mesh, tasks, architecture, method, graph, trainable, frozen, batch_stats)


def load_init(model: nnx.Module, source: str, architecture: Mapping[str, Any]) -> None:
    """Assigns the weights of a model folder; low-rank factors and decoders it does not have keep their initial values."""
    there, values = folder.read(source)
    differing = [k for k, v in architecture["backbone"].items() if k != "drop_path_rate" and there["backbone"].get(k, v) != v]
    if differing:
        told = "; ".join(f"{key} {there['backbone'][key]} there, {architecture['backbone'][key]} in the config" for key in differing)
        raise UserError(f"init = {source} holds another backbone: {told} (see --config.backbone.variant)")

    def may_miss(path: str, variable: nnx.Variable) -> bool:
        return path.startswith("decoders.") or isinstance(variable, SharedLoRA | TaskLoRA)

    missing = parameters.assign(model, values, source, may_miss)
    console.print(
        f"weights of {source}; {len(missing)} tensors are new (low-rank factors, decoders)" if missing else f"weights of {source}"
    )


def loss_weights(config: ConfigDict, tasks: Mapping[str, Task]) -> dict[str, float]:
    """{task: weight of its loss}. Raises UserError for a weight of a task that is not trained."""
    for name in config.loss_weights:
        if name not in tasks:
            raise UserError(f"loss_weights.{name}: the config trains {', '.join(tasks)}")
    return {name: float(config.loss_weights.get(name, task.weight)) for name, task in tasks.items()}


def train(config: ConfigDict, workdir: pathlib.Path) -> dict[str, float]:
    """Trains to the end, from the newest checkpoint of `workdir` if there is one. Returns the scores of the last evaluation.

    Raises UserError for a config, data set or weights that cannot be used, before anything is written.
    """
    train_data, eval_data = open_dataset(config, config.data.train_split), open_dataset(config, config.data.eval_split)
    setup = set_up(config, train_data.tasks, workdir)
    mesh, first_process = setup.mesh, jax.process_index() == 0
    sharding.check_batch_size(config.batch_size, mesh, "batch_size")
    sharding.check_batch_size(config.eval_batch_size, mesh, "eval_batch_size")
    steps_per_epoch = max(len(train_data) // config.batch_size, 1)
    steps = check_positive(config.epochs, "epochs") * steps_per_epoch
    weights = loss_weights(config, setup.tasks)
    schedule = make_schedule(config.optimizer, config.batch_size, steps_per_epoch, steps)
    optimizer = make_optimizer(config.optimizer, schedule, frozenset(setup.trainable))
    batches = train_batches(
        train_data,
        image_size=tuple(config.image_size),
        batch_size=config.batch_size,
        seed=config.seed,
        workers=config.data.workers,
        augmentation=Augmentation(**config.data.augmentation),
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    print_parameters(summarise(parameters.merge(setup.graph, *values_of(setup)), setup.method, tuple(config.image_size)))

    if first_process and not (workdir / "initial").exists():
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / "config.json").write_text(config.to_json_best_effort(indent=2) + "\n")
        save_model(workdir / "initial", setup, setup.trainable, setup.batch_stats, {})
    checkpoints = Checkpoints(workdir, config.keep_checkpoints)
    state = jax.device_put(create_state(setup.trainable, setup.batch_stats, optimizer), sharding.replicated(mesh))
    progress: dict[str, Any] = {"best_delta_m": None, "reference": dict(config.single_task), "scores": {}}
    if checkpoints.latest() is not None:
        state, position, progress = checkpoints.restore(state)
        batches.set_state(position)
    step = int(state.step)
    batches.start_prefetch()

    key = jax.random.key(config.seed)
    update = jax.jit(
        functools.partial(train_step, graph=setup.graph, tasks=setup.tasks, weights=weights, optimizer=optimizer), donate_argnums=0
    )
    score = compile_eval(setup)
    records = Records(workdir, step, first_process)
    speed = Speed()

    def run_evaluation() -> None:
        scores, seconds = evaluate_split(score, config, setup, eval_data, state)
        speed.evaluated(seconds)
        progress["reference"] = progress["reference"] or {n: scores[f"{n}/{t.primary}"] for n, t in setup.tasks.items()}
        scores = with_delta_m(scores, setup.tasks, progress["reference"])
        progress["scores"] = scores
        records.write(step, {f"eval/{name}": value for name, value in scores.items()})
        told = ", ".join(f"{n} {t.primary} {scores[f'{n}/{t.primary}']:.2f}" for n, t in setup.tasks.items())
        console.print(f"step {step}: {told}, delta_m {scores.get('delta_m', math.nan):+.2f} ({seconds:.0f} s)")
        best = progress["best_delta_m"]
        if "delta_m" in scores and (best is None or scores["delta_m"] > best):
            progress["best_delta_m"] = scores["delta_m"]
            if first_process:
                save_model(workdir / "best", setup, state.trainable, state.batch_stats, {"step": step, "scores": scores})

    if step == 0 and config.eval_first:
        run_evaluation()
    console.print(
        f"training from step {step} to {steps}, {steps_per_epoch} steps an epoch, on {mesh.size} x {jax.devices()[0].device_kind}"
    )
    waiting: list[dict[str, jax.Array]] = []  # metrics still on the device
    first_step = step
    speed.start()
    while step < steps:
        state, metrics = update(state, setup.frozen, sharding.put(next(batches), mesh), key)
        step += 1
        waiting.append(metrics)
        if step == first_step + 1:  # compiles; its time says nothing about the others
            jax.block_until_ready(metrics)
            console.print(f"first step after {speed.since_start():.1f} s, compilation included")
            speed.start()
        else:
            speed.step()
        epoch_ends = step % steps_per_epoch == 0
        epoch = step // steps_per_epoch
        if step % config.log_every == 0 or step == steps:
            scalars = mean_of(jax.device_get(waiting))
            waiting = []
            scalars["learning_rate"] = float(schedule(step - 1))
            scalars["images_per_second"] = config.batch_size / speed.step_seconds()
            records.write(step, scalars)
            evaluations = math.ceil(config.epochs / config.eval_every) - epoch // config.eval_every
            told = " ".join(f"{name.removeprefix('loss/')} {value:.3f}" for name, value in scalars.items() if name.startswith("loss"))
            console.print(
                f"epoch {step / steps_per_epoch:.2f}/{config.epochs} step {step}/{steps} {told} "
                f"{scalars['images_per_second']:.1f} images/s ETA {speed.remaining(steps - step, evaluations)}"
            )
        if step == steps or (epoch_ends and epoch % config.eval_every == 0):
            run_evaluation()
            speed.start()
        on_step = config.checkpoint_steps and step % config.checkpoint_steps == 0
        if step == steps or on_step or (epoch_ends and epoch % config.checkpoint_every == 0):
            checkpoints.save(step, state, batches.get_state(), progress)
            speed.start()
    checkpoints.close()
    records.close()
    batches.close()
    scores = progress["scores"]
    print_scores(scores, f"Scores after {steps} steps")
    if first_process:
        (workdir / "metrics.json").write_text(json.dumps({"step": steps, **scores}, indent=2) + "\n")
        console.print(f"best model: {workdir / 'best'}")
    return scores


def evaluate_only(config: ConfigDict, workdir: pathlib.Path) -> dict[str, float]:
    """Scores of the newest checkpoint of `workdir`, or of the model folder `config.init` where there is none."""
    data = open_dataset(config, config.data.eval_split)
    if not (workdir / "initial").exists() and not config.init:
        raise UserError(f"nothing to evaluate: {workdir} has no checkpoints and config.init names no model folder")
    setup = set_up(config, data.tasks, workdir)
    sharding.check_batch_size(config.eval_batch_size, setup.mesh, "eval_batch_size")
    optimizer = make_optimizer(config.optimizer, optax.constant_schedule(0.0), frozenset(setup.trainable))
    state = jax.device_put(create_state(setup.trainable, setup.batch_stats, optimizer), sharding.replicated(setup.mesh))
    if (workdir / "checkpoints").exists() and (checkpoints := Checkpoints(workdir, config.keep_checkpoints)).latest() is not None:
        state, _, _ = checkpoints.restore(state)
    scores, _ = evaluate_split(compile_eval(setup), config, setup, data, state)
    scores = with_delta_m(scores, setup.tasks, config.single_task)
    print_scores(scores, f"Scores on {config.data.eval_split}, step {int(state.step)}")
    return scores


def compile_eval(setup: Setup) -> Any:
    """The evaluation step with everything static bound."""
    return jax.jit(functools.partial(eval_step, graph=setup.graph, tasks=setup.tasks))


def evaluate_split(score: Any, config: ConfigDict, setup: Setup, data: Dataset, state: TrainState) -> tuple[dict[str, float], float]:
    """(scores, seconds) of a state on a data set."""
    start = time.monotonic()
    batches = eval_batches(
        data,
        image_size=tuple(config.image_size),
        batch_size=config.eval_batch_size,
        workers=config.data.workers,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    compute = functools.partial(score, state.trainable, state.batch_stats, setup.frozen)
    scores = evaluate(compute, batches, setup.tasks, setup.mesh)
    return scores, time.monotonic() - start


def save_model(where: pathlib.Path, setup: Setup, trainable: Flat, batch_stats: Flat, extra: Mapping[str, Any]) -> None:
    """Writes a model folder that `mtlora_jax.load` opens."""
    arrays = jax.device_get({**setup.frozen, **trainable, **batch_stats})
    classes = {name: list(task.classes) for name, task in setup.tasks.items() if task.classes}
    folder.save(where, setup.architecture, arrays, {"classes": classes, **extra})


def values_of(setup: Setup) -> tuple[Flat, Flat, Flat]:
    """All arrays the model starts from."""
    return setup.trainable, setup.frozen, setup.batch_stats


def mean_of(metrics: list[dict[str, Any]]) -> dict[str, float]:
    """Mean of each scalar over steps."""
    return {name: float(sum(m[name] for m in metrics) / len(metrics)) for name in metrics[0]}


def check_positive(value: int, key: str) -> int:
    """Raises UserError unless the value is at least 1."""
    if value < 1:
        raise UserError(f"{key} = {value} must be at least 1")
    return value
