"""Ends a run on request: by a signal, as clusters send before they take a machine away, or by Ctrl-C."""

import collections
import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mtlora_jax.console import console
from mtlora_jax.distributed import sharding
from mtlora_jax.errors import UserError

# Besides SIGTERM and Ctrl-C: SIGHUP of a closed terminal, and the warnings of SLURM, LSF and Grid Engine before a time
# limit.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)
IMPATIENT = 1.0  # seconds after which a second Ctrl-C counts, since launchers pass the first one on twice
LAG = 2  # steps between the question to all processes and the use of its answer, so that none has to wait for it


class Stopped(SystemExit):
    """Stops a run on request, at a place where it can be resumed.

    The exit code is 128 + the signal's number, such as 143 or 130.
    """


class Shutdown:
    """Listens for `SIGNALS` inside `with`; the program calls `check()` wherever it can stop.

    Python runs signal handlers in the main thread between two bytecodes, so not while XLA compiles. Here a thread
    receives the signal, whatever the main thread does. If no `check` follows within the grace period, the thread ends
    the process, because clusters kill processes that do not end by themselves; the run then resumes from its newest
    checkpoint. A second Ctrl-C ends the process at once.

    Args:
      grace_seconds: shorter than the cluster's (Kubernetes and SLURM: 30), since a checkpoint may have to be finished
        afterwards.

    Attributes:
      before_exit: called by the thread before it ends the process, to finish files that are being written.
    """

    def __init__(self, grace_seconds: float):
        self.before_exit: Callable[[], None] = lambda: None
        self._grace = grace_seconds
        self._signal: int | None = None
        self._stopping = False
        self._flags: collections.deque[jax.Array] = collections.deque()
        self._any = jax.jit(jnp.max)

    def __enter__(self) -> Self:
        self._terminals = [number for number in (1, 2) if os.isatty(number)]
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._wakeup_before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        heard = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]  # nohup has SIGHUP ignored
        self._handlers_before = {number: signal.signal(number, lambda *_: None) for number in heard}
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *trace: object) -> None:
        for number, handler in self._handlers_before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        os.close(self._write)
        self._thread.join()
        os.close(self._read)
        if self.asked and not self._stopping and isinstance(error, UserError):
            # A data worker that was just starting gets the signal too; that it ends is not an error of the run.
            print(error, file=sys.stderr)
            self.stop()

    @property
    def asked(self) -> bool:
        """Whether this process got a signal."""
        return self._signal is not None

    def check(self, mesh: Mesh) -> None:
        """Raises Stopped if any process was asked to stop.

        Several processes do so at the same call; all of them must make the same number of calls.
        """
        if self.asked if jax.process_count() == 1 else self._any_process_asked(mesh):
            self.stop()

    def stop(self) -> None:
        """Raises Stopped. From then on, the main thread may take as long as it needs."""
        self._stopping = True
        raise Stopped(128 + (self._signal or signal.SIGTERM))

    def _any_process_asked(self, mesh: Mesh) -> bool:
        mine = np.full(jax.local_device_count(), self.asked, np.int32)
        self._flags.append(self._any(jax.make_array_from_process_local_data(sharding.batch_sharding(mesh), mine)))
        return len(self._flags) > LAG and bool(self._flags.popleft())

    def _listen(self) -> None:
        number = self._hear(SIGNALS, None)
        if number is None:
            return
        self._signal = number
        if number == signal.SIGHUP:  # the terminal is gone, so printing to it would fail
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for terminal in self._terminals:
                os.dup2(nowhere, terminal)
        name, grace = signal.Signals(number).name, f"{self._grace:.0f} s"
        console.print(f"{name}: the run is saved and ends after this step ({grace} at most)")
        heard = time.monotonic()
        while self._hear([signal.SIGINT], heard + self._grace) == signal.SIGINT:
            if time.monotonic() - heard > IMPATIENT:
                self._exit(130, "interrupted again: ended at once")
        if time.monotonic() >= heard + self._grace and not self._stopping:
            with contextlib.suppress(Exception):
                self.before_exit()
            self._exit(128 + number, f"no step ended within {grace}; the run goes on from its newest checkpoint")

    def _hear(self, numbers: Collection[int], deadline: float | None) -> int | None:
        """The next signal of `numbers`; None at the deadline, and at the end of `with`."""
        while True:
            timeout = None if deadline is None else max(deadline - time.monotonic(), 0)
            ready, _, _ = select.select([self._read], [], [], timeout)
            byte = os.read(self._read, 1) if ready else b""
            if not byte:
                return None
            if byte[0] in numbers:
                return byte[0]

    def _exit(self, code: int, message: str) -> None:
        print(message, file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(code)
