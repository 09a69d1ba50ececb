"""Memory use, and a trace of some steps."""

import pathlib

import jax
import jax.numpy as jnp
import psutil

from mtlora_jax.console import console


def memory() -> dict[str, float]:
    """Memory use in 10^9 bytes: "memory/host_gb" and "memory/device_gb".

    The former is resident in this process; the latter is the highest peak so far of its devices. It is absent if the
    backend does not report it, as on the CPU.
    """
    used = {"memory/host_gb": psutil.Process().memory_info().rss / 1e9}
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in jax.local_devices()]
    told = [peak for peak in peaks if peak is not None]
    return used | ({"memory/device_gb": max(told) / 1e9} if told else {})


class Profiler:
    """Traces `steps` steps from `first_step` on to WORKDIR/trace.

    TensorBoard's profile plugin, XProf and Perfetto show the trace.
    """

    def __init__(self, workdir: pathlib.Path, first_step: int, steps: int):
        self._folder = workdir / "trace"
        self._first, self._end = first_step, first_step + steps
        self._running = False

    def step(self, step: int) -> None:
        """Starts or ends the trace if it is due. Call it before each step, with its number."""
        if self._running and step >= self._end:
            self.close()
        elif not self._running and self._first <= step < self._end:
            self._folder.mkdir(parents=True, exist_ok=True)
            jax.profiler.start_trace(str(self._folder))
            self._running = True

    def close(self) -> None:
        """Ends the trace if it is still running, for example in a run with fewer steps."""
        if not self._running:
            return
        self._running = False
        # Devices lag behind the host.
        jax.block_until_ready([jnp.zeros((), device=device) + 0 for device in jax.local_devices()])
        jax.profiler.stop_trace()
        console.print(f"trace of steps {self._first} to {self._end - 1}: {self._folder}")
