"""Jobs of one process or more on this machine, as a cluster starts them."""

import contextlib
import json
import os
import pathlib
import socket
import subprocess
import sys
import time

from paths import ROOT, SUPPORT


def free_port() -> int:
    with contextlib.closing(socket.socket()) as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]


def environment(devices: int) -> dict[str, str]:
    """Of a process with so many devices; the compiler is asked to try less hard."""
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    return os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def call_with_devices(devices: int, file: str, function: str, *arguments: str) -> str:
    """What `function(*arguments)` of a test file prints where there are so many devices.

    In a process of its own, for the number of devices is settled when JAX starts.
    """
    path = pathlib.Path(file)
    more = {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": os.pathsep.join(map(str, (path.parent, SUPPORT, ROOT))),
    }
    program = f"import sys, {path.stem}; {path.stem}.{function}(*sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], env=os.environ | more, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


class Job:
    """The training command in one process or more, each with its own output."""

    def __init__(self, base: pathlib.Path, workdir: str, devices: int, processes: int, *flags: str):
        self.workdir = base / workdir
        command = [
            sys.executable,
            "-m",
            "mtlora_jax.main",
            f"--config={base / 'micro.py'}",
            f"--workdir={self.workdir}",
            *flags,
        ]
        if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
            command.append(f"--compile_cache={base / 'compiled'}")
        together = (
            [f"--coordinator_address=localhost:{free_port()}", f"--num_processes={processes}"] if processes > 1 else []
        )
        self._outputs = [(base / f"{workdir}.{i}.out", base / f"{workdir}.{i}.err") for i in range(processes)]
        self.processes = []
        for i, (out, err) in enumerate(self._outputs):
            number = [f"--process_id={i}"] if together else []
            with out.open("w") as stdout, err.open("w") as stderr:
                process = subprocess.Popen(
                    [*command, *together, *number], env=environment(devices), stdout=stdout, stderr=stderr
                )
            self.processes.append(process)

    def wait(self, seconds: float = 1500) -> list[int]:
        """Exit codes."""
        deadline = time.monotonic() + seconds
        try:
            return [process.wait(max(deadline - time.monotonic(), 1)) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()

    def done(self) -> "Job":
        codes = self.wait()
        assert not any(codes), [err.read_text()[-2000:] for _, err in self._outputs]
        return self

    def printed(self, process: int = 0) -> str:
        """What the program itself printed; on CPUs, the library that connects the processes prints too."""
        lines = self._outputs[process][0].read_text().splitlines(keepends=True)
        return "".join(line for line in lines if not line.startswith("[Gloo]"))

    def told(self, process: int = 0) -> str:
        return self._outputs[process][1].read_text()

    def log(self) -> list[dict]:
        path = self.workdir / "log.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
