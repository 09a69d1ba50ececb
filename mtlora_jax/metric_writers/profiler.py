"""What the machine is doing: memory, and a trace of some steps."""

import pathlib

import jax
import jax.numpy as jnp
import psutil

from mtlora_jax.console import console


def memory() -> dict[str, float]:
    """{"memory/host_gb": resident in this process, "memory/device_gb": the most that one of its devices held so far}, in 10^9 bytes.

    The second is absent where the backend does not tell, as on the CPU.
    """
    used = {"memory/host_gb": psutil.Process().memory_info().rss / 1e9}
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in jax.local_devices()]
    told = [peak for peak in peaks if peak is not None]
    return used | ({"memory/device_gb": max(told) / 1e9} if told else {})


class Profiler:
    """A profile of `steps` steps from `first_step` on, in WORKDIR/trace, for TensorBoard's profile plugin, XProf or Perfetto."""

    def __init__(self, workdir: pathlib.Path, first_step: int, steps: int):
        self._folder = workdir / "trace"
        self._first, self._end = first_step, first_step + steps
        self._running = False

    def step(self, step: int) -> None:
        """To be called before each step with its number; starts or ends the trace where it is due."""
        if self._running and step >= self._end:
            self.close()
        elif not self._running and self._first <= step < self._end:
            self._folder.mkdir(parents=True, exist_ok=True)
            jax.profiler.start_trace(str(self._folder))
            self._running = True

    def close(self) -> None:
        """Ends the trace if it is running, as at the end of a run that has fewer steps."""
        if not self._running:
            return
        self._running = False
        jax.block_until_ready(
            [jnp.zeros((), device=device) + 0 for device in jax.local_devices()]
        )  # devices lag behind the host
        jax.profiler.stop_trace()
        console.print(f"trace of steps {self._first} to {self._end - 1}: {self._folder}")
