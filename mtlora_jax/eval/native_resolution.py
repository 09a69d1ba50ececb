"""Scores at the size of each image file.

Predictions are resized to the labels; the other evaluation resizes labels to the predictions.
"""

import contextlib
import functools
import multiprocessing
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import cast

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from mtlora_jax.data.native_resolution import NativeLabels, band_height, group_rows, native_sizes, place_on_canvas
from mtlora_jax.data.pipeline import Batches, Dataset
from mtlora_jax.defaults import Config
from mtlora_jax.distributed import sharding
from mtlora_jax.eval.aggregate import Totals, add
from mtlora_jax.eval.visualize import logits_of
from mtlora_jax.experiment import Experiment, make_eval_batches
from mtlora_jax.models.parameters import Flat
from mtlora_jax.tasks.task import Task


class NativeResolutionEvaluator:
    """Evaluates weights on one split at the original sizes of its images.

    Logits are interpolated bilinearly to the image's size, and then processed as usual (half-pixel centres, no
    antialiasing: PyTorch's align_corners=False, OpenCV's INTER_LINEAR). The public evaluation of the PASCAL_MT papers
    resizes processed predictions instead: the chosen classes by nearest neighbours, everything else bilinearly.

    With `config.evaluation.boundaries` it also computes slow scores, such as odsF of edges; `config.data.num_workers`
    processes share the images.
    """

    def __init__(self, config: Config, experiment: Experiment, data: Dataset):
        self._experiment = experiment
        everywhere, split = sharding.replicated_sharding(experiment.mesh), sharding.batch_sharding(experiment.mesh)
        self._forward = jax.jit(
            functools.partial(logits_of, graph=experiment.graph),
            in_shardings=(everywhere, everywhere, everywhere, split),
            out_shardings=split,
        )
        tasks = experiment.tasks
        shardings = {"in_shardings": (split, split, everywhere), "out_shardings": everywhere}
        self._score = jax.jit(functools.partial(statistics, tasks=tasks), **shardings)
        self._pick = jax.jit(picked, static_argnums=2, in_shardings=(split, everywhere), out_shardings=split)
        self._slow = {
            name: task
            for name, task in tasks.items()
            if config.evaluation.boundaries and task.has_native_resolution_metrics
        }
        self._tolerance = config.evaluation.boundary_tolerance
        self._workers = config.data.num_workers
        self._batches = functools.partial(make_eval_batches, config, cast(Dataset, NativeLabels(data)))

    def __call__(
        self,
        trainable: Flat,
        batch_stats: Flat,
        watched: Callable[[Batches], Iterable[Mapping[str, np.ndarray]]] = iter,
    ) -> tuple[dict[str, float], float]:
        """Return {"TASK/SCORE": value}, and seconds. `watched` passes the batches on, and may look at them or raise."""
        start = time.monotonic()
        mesh, tasks = self._experiment.mesh, self._experiment.tasks
        totals: Totals = {}
        slow_totals = {name: nothing(task) for name, task in self._slow.items()}
        with several(self._workers if self._slow else 0) as run, contextlib.closing(self._batches()) as batches:
            for batch in watched(batches):
                originals, mask = list(batch["native_labels"]), batch["mask"]
                images = sharding.shard_batch({"image": batch["image"]}, mesh)["image"]
                logits = self._forward(trainable, batch_stats, self._experiment.frozen, images)
                for sums in self._statistics(logits, originals, mask):
                    add(totals, sums)
                for name, task in self._slow.items():
                    own = local_rows(logits[name])
                    counted = [(task, own[row], originals[row][name], self._tolerance) for row in np.flatnonzero(mask)]
                    for sums in run(slow_statistics, counted):
                        add(slow_totals, {name: sums})
        scores = {
            f"{name}/{score}": value
            for name, task in tasks.items()
            for score, value in task.compute_metrics(totals[name]).items()
        }
        for name, task in self._slow.items():
            scores |= {
                f"{name}/{score}": value
                for score, value in task.compute_native_resolution_metrics(over_processes(slow_totals[name])).items()
            }
        return scores, time.monotonic() - start

    def _statistics(
        self, logits: Mapping[str, jax.Array], originals: Sequence[Mapping[str, np.ndarray]], mask: np.ndarray
    ) -> Iterator[dict[str, dict[str, jax.Array]]]:
        """Yield {task: {name: sum}} of parts of a batch, each small enough for the memory.

        All processes make the same parts.
        """
        mesh = self._experiment.mesh
        sizes, devices = native_sizes(originals), len(mesh.local_devices)
        everywhere = np.concatenate(sharding.allgather_json(sizes.tolist())).reshape(mesh.size, -1, 2)
        count, channels = everywhere.shape[1], {name: values.shape[-1] for name, values in logits.items()}
        for rows, canvas in group_rows(everywhere, sum(channels.values())):
            own = [device * count + row for device in range(devices) for row in rows]
            whole = band_height(canvas, len(rows), sum(channels.values())) == canvas[0]
            for names in [list(channels)] if whole else [[name] for name in channels]:
                labels = place_on_canvas([{name: originals[row][name] for name in names} for row in own], canvas)
                some = {name: logits[name] for name in names}
                if len(rows) < count:
                    some = self._pick(some, np.array(rows), mesh.size)
                height = band_height(canvas, len(rows), sum(channels[name] for name in names))
                for top in range(0, canvas[0], height):
                    band = {name: labels[name][:, top : top + height] for name in names}
                    batch = sharding.shard_batch(band | {"size": sizes[own], "mask": mask[own]}, mesh)
                    yield self._score(some, batch, None if height == canvas[0] else np.float32(top))


def statistics(
    logits: Mapping[str, jax.Array], batch: Mapping[str, jax.Array], top: jax.Array | None, *, tasks: Mapping[str, Task]
) -> dict[str, dict[str, jax.Array]]:
    """Compute {task: {name: sum}} over some images.

    Args:
      logits: {task: (B, H, W, C)}.
      batch: labels of these tasks as `place_on_canvas` places them, or a band of those, "size" (B, 2) int32 of each,
        "mask" (B,).
      top: first line of the band; None if it is the whole canvas.
      tasks: static; those of `logits` or more.
    """
    found = {}
    for name, values in logits.items():
        resize = functools.partial(resize_into, canvas=batch[name].shape[1:3], top=top)
        found[name] = tasks[name].metric_sums(jax.vmap(resize)(values, batch["size"]), batch[name], batch["mask"])
    return found


def resize_into(logits: jax.Array, size: jax.Array, canvas: tuple[int, ...], top: jax.Array | None = None) -> jax.Array:
    """Interpolate (H, W, C) to `size` (2,), in the upper left corner of (*canvas, C).

    `size` is only known at run time. With `top` the canvas begins so many lines below the upper edge.
    """
    scale = size.astype(np.float32) / np.array(logits.shape[:2], np.float32)
    shape = (*canvas, logits.shape[2])
    moved = np.zeros(2, np.float32) if top is None else jnp.stack([-top, jnp.zeros_like(top)])
    return jax.image.scale_and_translate(logits, shape, (0, 1), scale, moved, method="linear", antialias=False)


def picked(logits: Mapping[str, jax.Array], rows: jax.Array, devices: int) -> dict[str, jax.Array]:
    """Select the same `rows` of each device's share of (B, H, W, C)."""
    shares = {name: values.reshape(devices, -1, *values.shape[1:]) for name, values in logits.items()}
    return {name: share[:, rows].reshape(-1, *share.shape[2:]) for name, share in shares.items()}


def slow_statistics(job: tuple[Task, np.ndarray, np.ndarray, float]) -> dict[str, np.ndarray]:
    """Compute the statistics of one image. `job` is (task, logits (H, W, C), label, tolerance)."""
    task, logits, label, tolerance = job
    large = cv2.resize(logits, label.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    return task.native_resolution_sums(large.reshape(*label.shape[:2], -1), label, tolerance)


def nothing(task: Task) -> dict[str, np.ndarray]:
    """Return the sums of `native_resolution_sums` over no image: zeros of the same shapes."""
    blank = task.native_resolution_sums(
        np.zeros((16, 16, task.channels), np.float32), np.zeros((16, 16), np.uint8), 0.1
    )
    return {name: np.zeros_like(value) for name, value in blank.items()}


@contextlib.contextmanager
def several(workers: int) -> Iterator[Callable]:
    """Yield a `map` shared by so many processes; for 0 the ordinary one."""
    if not workers:
        yield map
        return
    # Spawned, since a fork of a process that runs JAX may hang.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        yield pool.map


def local_rows(array: jax.Array) -> np.ndarray:
    """Return the rows of a batch that lie on this process's devices, float32."""
    shards = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    return np.concatenate([np.asarray(shard.data, np.float32) for shard in shards])


def over_processes(totals: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Sum over the processes."""
    parts = sharding.allgather_json({name: value.tolist() for name, value in totals.items()})
    return {name: np.sum([part[name] for part in parts], axis=0) for name in totals}
