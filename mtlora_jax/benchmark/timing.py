"""Timing of compilation and of steps."""

import contextlib
import ctypes
import dataclasses
import gc
import pathlib
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

WARM_UP = 2  # steps before those that are measured: the first one fills caches and allocates
CACHE_HIT = "/jax/compilation_cache/cache_hits"  # an event of jax.monitoring


@dataclasses.dataclass(frozen=True)
class Program:
    """A function compiled for some arguments.

    Attributes:
      run: takes such arguments.
      jaxpr: the traced program.
      times: {"tracing_seconds", "lowering_seconds", "compile_seconds": float, "compile_cached": whether jax's cache on
        disk had the program}.
    """

    run: jax.stages.Compiled
    jaxpr: Any
    times: dict[str, float | bool]

    def planned(self) -> dict[str, int | None]:
        """Bytes on each device as the compiler plans them; None where it does not say.

        Keys are "argument_bytes", "temporary_bytes", "output_bytes" (without outputs that reuse the memory of
        arguments) and "accessed_bytes" (read and written by the operations of the compiled program, each array once per
        operation).
        """
        plan, costs = self.run.memory_analysis(), self.run.cost_analysis() or {}
        accessed = costs.get("bytes accessed")
        return {
            "argument_bytes": plan and plan.argument_size_in_bytes,
            "temporary_bytes": plan and plan.temp_size_in_bytes,
            "output_bytes": plan and plan.output_size_in_bytes - plan.alias_size_in_bytes,
            "accessed_bytes": None if accessed is None else int(accessed),
        }


def compiled(fn: Any, *arguments: Any) -> Program:
    """Compiles a jitted function for these arguments."""
    hits = []

    def listen(event: str, **_: Any) -> None:
        if event == CACHE_HIT:
            hits.append(event)

    jax.monitoring.register_event_listener(listen)
    try:
        began = time.perf_counter()
        traced = fn.trace(*arguments)
        seen = time.perf_counter()
        lowered = traced.lower()
        low = time.perf_counter()
        run = lowered.compile()
        done = time.perf_counter()
    finally:
        jax.monitoring.unregister_event_listener(listen)
    times = {
        "tracing_seconds": seen - began,
        "lowering_seconds": low - seen,
        "compile_seconds": done - low,
        "compile_cached": bool(hits),
    }
    return Program(run, traced.jaxpr.jaxpr, times)


@dataclasses.dataclass(frozen=True)
class Steps:
    """Seconds of each measured step, and their `peak_memory`; empty and None if there was no step."""

    seconds: list[float]
    memory: dict[str, int | None]

    @property
    def median(self) -> float | None:
        """Median seconds of a step; None if there was none."""
        return statistics.median(self.seconds) if self.seconds else None


def time_steps(step: Callable[[], Any], count: int, device: Any) -> Steps:
    """Times `count` calls of `step` after those of the warm-up, and waits for each result.

    Makes no call at all if `count` is 0.
    """
    if not count:
        return Steps([], {"peak_bytes": None, "peak_resident_bytes": None})
    forget_peak_memory()
    seconds = []
    for _ in range(count + WARM_UP):
        start = time.perf_counter()
        jax.block_until_ready(step())
        seconds.append(time.perf_counter() - start)
    return Steps(seconds[WARM_UP:], peak_memory(device))


def forget_peak_memory() -> None:
    """Restarts the peak of this process in `peak_memory`, so that compilation does not count. Works only on Linux."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # otherwise memory that the compiler freed is still resident
        pathlib.Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: Any) -> dict[str, int | None]:
    """Peak memory: "peak_bytes" of the device since the process began, "peak_resident_bytes" of the process.

    The latter is given only if `device` is a CPU. A value that is not known is None.
    """
    counted = (device.memory_stats() or {}).get("peak_bytes_in_use")
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"peak_bytes": counted, "peak_resident_bytes": resident if device.platform == "cpu" else None}


def compute_rates(images: int, seconds: Sequence[float]) -> dict[str, float | None]:
    """Images per second over rounds or steps of `images` images each.

    "images_per_second" (median), "slowest" and "fastest" are None if `seconds` is empty. "spread" is the distance
    between the quartiles of the seconds as a share of their median, None for fewer than two.
    """
    pick = {"images_per_second": statistics.median, "slowest": max, "fastest": min}
    told: dict[str, float | None] = {name: images / fn(seconds) if seconds else None for name, fn in pick.items()}
    if len(seconds) > 1:
        low, middle, high = statistics.quantiles(seconds, n=4, method="inclusive")
        return told | {"spread": (high - low) / middle}
    return told | {"spread": None}
