"""Programs compiled with a watch in hand, and steps of them that are waited for."""

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

WARM_UP = 2  # steps that come before those that are measured: the first of all fills caches and allocates
CACHE_HIT = "/jax/compilation_cache/cache_hits"  # an event of jax.monitoring


@dataclasses.dataclass(frozen=True)
class Program:
    """A function compiled for some arguments.

    Attributes:
      run: takes such arguments.
      jaxpr: what was traced.
      times: {"tracing_seconds", "lowering_seconds", "compile_seconds": float, "compile_cached": whether jax's cache on disk had it}.
    """

    run: jax.stages.Compiled
    jaxpr: Any
    times: dict[str, float | bool]

    def planned(self) -> dict[str, int | None]:
        """Bytes on each device as the compiler plans them; None for what it does not tell.

        "argument_bytes", "temporary_bytes", "output_bytes" (without what takes the place of arguments), "accessed_bytes" (what the
        operations of the compiled program read and write, each array once for every operation).
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
    """Seconds of each measured step, and what memory they took at most, see `peak_memory`; nothing where none was made."""

    seconds: list[float]
    memory: dict[str, int | None]

    @property
    def median(self) -> float | None:
        """Seconds."""
        return statistics.median(self.seconds) if self.seconds else None


def time_steps(step: Callable[[], Any], count: int, device: Any) -> Steps:
    """Calls `count` times, each result waited for, after the calls of the warm-up; not at all where `count` is 0."""
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
    """Lets `peak_memory` tell of this process what comes from here on, so that compiling is not in it. Works on Linux alone."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what the compiler gave back is still resident otherwise
        pathlib.Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: Any) -> dict[str, int | None]:
    """{"peak_bytes": of the device, as it has counted since the process began, "peak_resident_bytes": of the process, if it is a CPU}.

    None for what there is not.
    """
    counted = (device.memory_stats() or {}).get("peak_bytes_in_use")
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"peak_bytes": counted, "peak_resident_bytes": resident if device.platform == "cpu" else None}


def compute_rates(images: int, seconds: Sequence[float]) -> dict[str, float | None]:
    """Images per second of rounds or steps of so many images each: "images_per_second" (median), "slowest", "fastest"; None without any.

    "spread" is the distance between the quartiles of the seconds as a share of their median; None of fewer than two.
    """
    pick = {"images_per_second": statistics.median, "slowest": max, "fastest": min}
    told: dict[str, float | None] = {name: images / fn(seconds) if seconds else None for name, fn in pick.items()}
    if len(seconds) > 1:
        low, middle, high = statistics.quantiles(seconds, n=4, method="inclusive")
        return told | {"spread": (high - low) / middle}
    return told | {"spread": None}
