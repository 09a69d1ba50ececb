"""What a compiled program costs beside what it must cost: operations, bytes, and the least time that a device needs for them."""

from typing import Any

import jax
from jax.interpreters import partial_eval
from jax.sharding import Mesh

from mtlora_jax.analysis.macs import Macs, count
from mtlora_jax.benchmark.device_peaks import peak_of
from mtlora_jax.benchmark.timing import WARM_UP, Program, Steps, compute_rates


def products(jaxpr: Any) -> int:
    """Multiply-accumulates of a traced program's matrix products and convolutions, without what no output depends on.

    Interpolation is not in it, be it a product in JAX. What a step computes twice (`config.remat`) counts twice.
    """
    needed, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    counted = Macs()
    count(needed, [None] * len(needed.invars), counted)
    return counted.products


def measured(program: Program, steps: Steps, config: Any, mesh: Mesh, least_bytes: int) -> dict[str, Any]:
    """What is told of a program and its steps, JSON-able; see `python -m mtlora_jax.benchmark --help` for what the keys mean.

    Args:
      program: takes batches of the config.
      steps: of it.
      config: of a run.
      mesh: of the devices it runs on.
      least_bytes: that one device must read and write for a step.
    """
    macs, planned = products(program.jaxpr), program.planned()
    return {
        **compute_rates(config.batch_size, steps.seconds),
        "seconds": steps.median,
        "steps": len(steps.seconds),
        "warm_up": WARM_UP,
        **program.times,
        "gmacs_step": macs / 1e9,
        **planned,
        **steps.memory,
        **floor(
            macs / mesh.size,
            least_bytes,
            planned["accessed_bytes"],
            steps.median,
            mesh.devices.flat[0],
            config.compute_dtype,
        ),
        "batch_size": config.batch_size,
        "image_size": list(config.image_size),
        "tasks": list(config.tasks),
        "method": config.method.name,
        "compute": config.compute_dtype,
        "frozen": config.frozen_dtype,
        "device": mesh.devices.flat[0].device_kind,
        "devices": mesh.size,
        "jax": jax.__version__,
    }


def floor(
    macs: float, least_bytes: int, accessed_bytes: int | None, seconds: float | None, device: Any, compute: str
) -> dict[str, float | str | None]:
    """The seconds that a `jax.Device` needs at least for so many operations and bytes, and the share of its peak that a step reaches.

    All is None where no step was made: then there is nothing to compare.
    """
    told: dict[str, float | str | None] = {"least_bytes": least_bytes}
    if seconds is None:
        keys = (
            "peak_flops",
            "peak_bandwidth",
            "peak_precision",
            "peak_from",
            "mfu",
            "floor_products",
            "floor_bytes",
            "floor_accessed",
        )
        return told | dict.fromkeys((*keys, "times_floor"))
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
