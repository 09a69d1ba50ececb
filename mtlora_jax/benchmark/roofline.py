"""Operations and bytes of a compiled program, and the least time that a device needs for them."""

from typing import Any

import jax
from jax.interpreters import partial_eval
from jax.sharding import Mesh

from mtlora_jax.analysis.macs import Macs, count
from mtlora_jax.benchmark.device_peaks import peak_of
from mtlora_jax.benchmark.timing import WARM_UP, Program, Steps, compute_rates


def products(jaxpr: Any) -> int:
    """Multiply-accumulates of the matrix products and convolutions that a traced program's outputs depend on.

    Interpolation does not count, although JAX computes it as a product. What a step computes twice (`config.remat`)
    counts twice.
    """
    needed, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    counted = Macs()
    count(needed, [None] * len(needed.invars), counted)
    return counted.products


def measured(program: Program, steps: Steps, config: Any, mesh: Mesh, least_bytes: int) -> dict[str, Any]:
    """Measurements of a program and its steps; JSON-able.

    `python -m mtlora_jax.benchmark --help` explains the keys.

    Args:
      program: takes batches of the config.
      steps: of the program.
      config: of a run.
      mesh: of the devices that run the program.
      least_bytes: bytes that one device must read and write per step.
    """
    macs, planned, device = products(program.jaxpr), program.planned(), mesh.devices.flat[0]
    return {
        **compute_rates(config.batch_size, steps.seconds),
        "seconds": steps.median,
        "steps": len(steps.seconds),
        "warm_up": WARM_UP,
        **program.times,
        "gmacs_step": macs / 1e9,
        **planned,
        **steps.memory,
        **floor(macs / mesh.size, least_bytes, planned["accessed_bytes"], steps.median, device, config.compute_dtype),
        "batch_size": config.batch_size,
        "image_size": list(config.image_size),
        "tasks": list(config.tasks),
        "method": config.method.name,
        "compute": config.compute_dtype,
        "frozen": config.frozen_dtype,
        "device": device.device_kind,
        "devices": mesh.size,
        "jax": jax.__version__,
    }


def floor(
    macs: float, least_bytes: int, accessed_bytes: int | None, seconds: float | None, device: Any, compute: str
) -> dict[str, float | str | None]:
    """The least seconds that a `jax.Device` needs for a step, and the share of its peak that the step reaches.

    All values but "least_bytes" are None if no step was timed, since then there is nothing to compare.
    """
    told: dict[str, float | str | None] = {"least_bytes": least_bytes}
    if seconds is None:
        peaks = ("peak_flops", "peak_bandwidth", "peak_precision", "peak_from")
        floors = ("floor_products", "floor_bytes", "floor_accessed", "times_floor")
        return told | dict.fromkeys((*peaks, "mfu", *floors))
    peak = peak_of(device, compute)
    by_products, by_bytes = 2 * macs / peak.flops, least_bytes / peak.bandwidth
    return told | {
        "peak_flops": peak.flops,
        "peak_bandwidth": peak.bandwidth,
        "peak_precision": peak.precision,
        "peak_from": peak.source,
        "mfu": by_products / seconds,
        "floor_products": by_products,
        "floor_bytes": by_bytes,
        "floor_accessed": None if accessed_bytes is None else accessed_bytes / peak.bandwidth,
        "times_floor": seconds / max(by_products, by_bytes),
    }
