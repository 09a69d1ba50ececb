"""Jobs of one or more processes on this machine, started as on a cluster."""

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
    """Environment variables of a process with so many devices; XLA optimises nothing."""
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    return os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def call_with_devices(devices: int, file: str, function: str, *arguments: str) -> str:
    """Calls `function(*arguments)` of a test file with so many devices and returns its output.

    It runs in a process of its own, since the number of devices is fixed when JAX starts.
    """
    path = pathlib.Path(file)
    more = {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": os.pathsep.join(map(str, (path.parent, SUPPORT, ROOT))),
    }
    program = f"import sys, {path.stem}; {path.stem}.{function}(*sys.argv[1:])"
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, env=os.environ | more, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


class Job:
    """The training command in one or more processes, each with its own output."""

    def __init__(self, base: pathlib.Path, workdir: str, devices: int, processes: int, *flags: str):
        self.workdir = base / workdir
        files = [f"--config={base / 'micro.py'}", f"--workdir={self.workdir}"]
        command = [sys.executable, "-m", "mtlora_jax.main", *files, *flags]
        if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
            command.append(f"--compile_cache={base / 'compiled'}")
        if processes > 1:
            command += [f"--coordinator_address=localhost:{free_port()}", f"--num_processes={processes}"]
        self._outputs = [(base / f"{workdir}.{i}.out", base / f"{workdir}.{i}.err") for i in range(processes)]
        self.processes = []
        for i, (out, err) in enumerate(self._outputs):
            own = [*command, f"--process_id={i}"] if processes > 1 else command
            with out.open("w") as stdout, err.open("w") as stderr:
                process = subprocess.Popen(own, env=environment(devices), stdout=stdout, stderr=stderr)
            self.processes.append(process)

    def wait(self, seconds: float = 1500) -> list[int]:
        """Waits for all processes and returns their exit codes."""
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
        """Output of the program itself, without that of the library that connects processes on CPUs."""
        lines = self._outputs[process][0].read_text().splitlines(keepends=True)
        return "".join(line for line in lines if not line.startswith("[Gloo]"))

    def told(self, process: int = 0) -> str:
        return self._outputs[process][1].read_text()

    def log(self) -> list[dict]:
        path = self.workdir / "log.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
