"""One training step once more, to find out where its first number that is not finite comes from."""

import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from flax import nnx

from mtlora_jax import config_checks, model_factory
from mtlora_jax import experiment as experiments
from mtlora_jax.analysis import nonfinite
from mtlora_jax.analysis.param_counts import group_of_each
from mtlora_jax.console import console, print_table
from mtlora_jax.defaults import Config
from mtlora_jax.distributed import agreement, sharding
from mtlora_jax.errors import UserError
from mtlora_jax.experiment import Experiment
from mtlora_jax.models import parameters
from mtlora_jax.models.parameters import Flat
from mtlora_jax.train import run_config
from mtlora_jax.train.checkpoints import Checkpoints
from mtlora_jax.train.intervals import Intervals
from mtlora_jax.train.loop_state import LoopState
from mtlora_jax.train.optimizer import make_optimizer, make_schedule
from mtlora_jax.train.run import check_same_config, compile_train_step, loss_weights
from mtlora_jax.train.step import TrainState, compute_losses_of_step, create_state

SHOWN = 8  # modules of a table


@dataclasses.dataclass(frozen=True)
class Report:
    """What a step looks like inside.

    Attributes:
      image_ids: of the batch.
      losses: {"loss" or "loss/TASK": value}, executed in the plain form.
      weights: {path: values that are not finite} of the parameters and batch statistics before the step.
      outputs: the same of the modules' outputs, in the order of execution, inner modules before those around them.
      output_gradients: the same of the gradients with respect to those outputs, in the order of the backward pass.
      weight_gradients: the same of the gradients of the trained parameters.
      backward: {path: path of the module that the backward pass came from}.
    """

    image_ids: list[str]
    losses: dict[str, float]
    weights: dict[str, int]
    outputs: dict[str, int]
    output_gradients: dict[str, int]
    weight_gradients: dict[str, int]
    backward: dict[str, str]


def replay(config: Config, workdir: pathlib.Path, step: int) -> Report:
    """Repeat update number `step` of a run, and print where it stops being finite.

    Starts from the newest checkpoint before that update, or from the first weights, and repeats the updates between
    with the run's own program. The step itself gets exactly its batch and its random numbers, and is executed in the
    plain form (`fused=False`, `remat="none"`). Nothing is written.

    Raises:
      UserError: there is no such run, it was started with another config or on other data, or has no such step.
    """
    config_checks.check(config)
    if jax.process_count() > 1:
        raise UserError("--mode=replay works in one process; give --num_processes=1")
    if not (workdir / "initial").exists():
        raise UserError(f"nothing to replay: {workdir} holds no run")
    check_same_config(workdir, config)
    split = config.data.train_split
    (data,) = experiments.open_datasets(config, split)
    run_config.check_same_data(workdir, agreement.describe_data(data, split))
    intervals = Intervals(config, max(len(data) // config.batch_size, 1))
    if not 1 <= step <= intervals.steps:
        raise UserError(f"--step={step} must be from 1 to {intervals.steps}, the last step of the run")

    experiment = experiments.build_experiment(config, data.tasks, workdir)
    schedule = make_schedule(config.optimizer, config.batch_size, intervals.steps_per_epoch, intervals.steps)
    optimizer = make_optimizer(config.optimizer, schedule, frozenset(experiment.trainable))
    state = create_state(experiment.trainable, experiment.batch_stats, optimizer)
    state = sharding.replicate(state, experiment.mesh)
    checkpoints = Checkpoints(workdir, config.keep_checkpoints)
    restored = checkpoints.restore(state, until_step=step - 1)
    checkpoints.close()
    loop_state = LoopState()
    if restored is not None:
        state, loop_state = restored.state, LoopState.from_json(restored.data, restored.loop)
    first = int(state.step)
    console.print(f"step {step} once more, from {f'the checkpoint of step {first}' if first else 'the first weights'}")

    groups = group_of_each(model_factory.build(experiment.architecture))
    train_step = compile_train_step(config, experiment, optimizer, schedule, groups)
    batches = experiments.make_train_batches(config, data)
    try:
        batches.set_state(loop_state.data)
        for number in range(first + 1, step):
            state, metrics = train_step(state, next(batches))
            if number == first + 1 or number % config.log_every_steps == 0 or number == step - 1:
                console.print(f"step {number} of {step - 1} before it: loss {float(metrics['loss']):.6g}")
        batch = next(batches)
    finally:
        batches.close()
    report = inspect_step(config, experiment, state, batch)
    _, metrics = train_step(state, batch)
    print_report(report, step, {name: float(value) for name, value in metrics.items()})
    return report


def inspect_step(config: Config, experiment: Experiment, state: TrainState, batch: Mapping[str, np.ndarray]) -> Report:
    """Execute one step in the plain form and count what is not finite; `state` is left as it is."""
    model = model_factory.build(experiment.architecture)
    model_factory.configure(model, compute=config.compute_dtype, remat="none", fused=False)
    graph, zeros, order = nnx.graphdef(model), nonfinite.zero_counts(model), []
    tasks = experiment.tasks
    weights = loss_weights(config, tasks)
    key = jax.random.key(config.seed)

    def losses(trainable: Flat, counts: nonfinite.Counts, batch: Mapping[str, jax.Array]):
        model = parameters.bind(graph, trainable, experiment.frozen, state.batch_stats)
        nonfinite.watch(model, counts, order)
        return compute_losses_of_step(model, batch, key, state.step, tasks, weights, config.encoder_microbatches)

    run = jax.jit(jax.value_and_grad(losses, argnums=(0, 1), has_aux=True))
    (total, each), (gradients, counts) = run(state.trainable, zeros, sharding.shard_batch(batch, experiment.mesh))
    found = {path: np.asarray(counts[path]) for path in order}
    backward = order[::-1]
    return Report(
        image_ids=batch["image_id"].tolist(),
        losses={"loss": float(total), **{f"loss/{name}": float(loss) for name, loss in each.items()}},
        weights=nonfinite.name_nonfinite({**experiment.frozen, **state.trainable, **state.batch_stats}),
        outputs={path: int(found[path][0]) for path in order if found[path][0]},
        output_gradients={path: int(found[path][1]) for path in backward if found[path][1]},
        weight_gradients=nonfinite.name_nonfinite(gradients),
        backward=dict(zip(backward, ["the losses", *backward], strict=False)),
    )


def print_report(report: Report, step: int, metrics: Mapping[str, float]) -> None:
    """Print a report, and beside it the metrics of the step as the run computes it."""
    console.print(f"images of step {step}: {', '.join(report.image_ids)}")
    rows = [(name, f"{value:.6g}", f"{metrics[name]:.6g}") for name, value in report.losses.items()]
    print_table(f"Step {step}", ("loss", "plain form", "in the run"), rows)
    console.print("\n".join(diagnose(report)))
    found = {
        "Outputs in the order of execution": report.outputs,
        "Gradients of outputs in the order of the backward pass": report.output_gradients,
        "Gradients of parameters": report.weight_gradients,
    }
    for title, counts in found.items():
        if counts:
            more = f", {SHOWN} of {len(counts)}" if len(counts) > SHOWN else ""
            rows = [(path, f"{count:,}") for path, count in list(counts.items())[:SHOWN]]
            print_table(f"{title}{more}", ("module", "values not finite"), rows)
    if metrics["skipped"] and math.isfinite(report.losses["loss"]) and not report.weight_gradients:
        console.print("The run skipped this step, and the plain form is finite: try --config.fused=False")


def diagnose(report: Report) -> Sequence[str]:
    """Return one line: the first weight, output, loss or gradient that is not finite, or that all are."""
    if report.weights:
        return [f"not finite before the step: {_first(report.weights)} (a weight)"]
    if report.outputs:
        return [f"first not finite: the output of {_first(report.outputs)}"]
    bad = [name for name, value in report.losses.items() if not math.isfinite(value)]
    if bad:
        return [f"first not finite: {bad[-1]}, of logits that are finite"]
    if report.output_gradients:
        path = next(iter(report.output_gradients))
        return [
            f"first not finite: the gradient of the output of {_first(report.output_gradients)}, "
            f"in the backward pass of {report.backward[path]}"
        ]
    if report.weight_gradients:
        return [f"first not finite: the gradient of {_first(report.weight_gradients)}"]
    return ["everything is finite: losses, outputs of modules and gradients"]


def _first(counts: Mapping[str, int]) -> str:
    path, count = next(iter(counts.items()))
    return f"{path}, {count:,} values"
