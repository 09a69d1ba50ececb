"""Timing of two programs in turns."""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from mtlora_jax.benchmark.timing import compute_rates

WARM_UP = 2  # steps of each before the first round


class Side(NamedTuple):
    """One of the two sides of a comparison.

    Attributes:
      step: makes one step and waits for it.
      forget_peak: called before the rounds.
      peak_bytes: returns the peak of the device's memory since then, None if unknown.
      compile_seconds: time of compilation before the first step.
    """

    device: str
    version: str
    step: Callable[[], Any]
    forget_peak: Callable[[], Any] = lambda: None
    peak_bytes: Callable[[], int | None] = lambda: None
    compile_seconds: float = 0.0


def alternated(ours: Side, peer: Side, count: int, steps: int, images: int) -> dict[str, Any]:
    """Times `count` rounds, each of `steps` steps of both sides, with `images` images in a step.

    `python benchmarks/peer.py --help` explains the keys of the result.
    """
    sides = {"ours": ours, "peer": peer}
    first = {name: side.compile_seconds + seconds_of(side.step) for name, side in sides.items()}
    for side in sides.values():
        for _ in range(WARM_UP - 1):
            side.step()
        side.forget_peak()
    rounds: dict[str, list[list[float]]] = {name: [] for name in sides}
    for _ in range(count):
        for name, side in sides.items():
            rounds[name].append([seconds_of(side.step) for _ in range(steps)])
    measured = {}
    for name, side in sides.items():
        seconds = [s for one in rounds[name] for s in one]
        told = {"seconds": statistics.median(seconds), **compute_rates(images, seconds), "first_seconds": first[name]}
        measured[name] = told | {"peak_bytes": side.peak_bytes(), "device": side.device, "version": side.version}
    ratios = [statistics.median(b) / statistics.median(a) for a, b in zip(rounds["ours"], rounds["peer"], strict=True)]
    peaks = measured["ours"]["peak_bytes"], measured["peer"]["peak_bytes"]
    return {
        "ratio": measured["peer"]["seconds"] / measured["ours"]["seconds"],
        "ratio_lowest": min(ratios),
        "ratio_highest": max(ratios),
        "memory_ratio": peaks[0] / peaks[1] if all(peaks) else None,
        **measured,
    }


def seconds_of(step: Callable[[], Any]) -> float:
    """Duration of a call in seconds."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start
