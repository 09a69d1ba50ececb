"""Training runs of a tiny model as a user starts them, for tests that disturb them."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import safetensors.numpy
from tiny_data import write_tiny_dataset

STEPS = 24  # 8 epochs of 6 images in batches of 2
# Entries of the log that differ between equal runs.
CLOCK = ("images_per_second", "input_wait", "memory/host_gb", "memory/device_gb")
CONFIG = """
from mtlora_jax.defaults import default, of_any_type

SIZES = {"embed_dim": 8, "depths": (1, 2), "num_heads": (1, 2), "window_size": 4}


def get_config(method="mtlora"):
    config = default(method)
    with config.unlocked():
        config.backbone = {"name": "swin", **SIZES, "drop_path_rate": 0.1}
    if method == "mtlora":
        config.method.update({"rank": 2, "task_rank": 1})
    config.tasks = ("semseg", "sal")
    config.image_size = (32, 32)
    config.decoder.channels = (4, 6)
    config.data.name = "folder"
    config.data.root = ROOT
    config.data.num_workers = 0
    config.epochs = 8
    config.batch_size = 2
    config.eval_batch_size = 4
    config.eval_every_epochs = 4
    config.eval_first = True
    config.optimizer.reference_batch_size = 2
    config.optimizer.learning_rate = 3e-3
    config.optimizer.warmup_epochs = 1.0
    config.log_every_steps = 1
    config.checkpoint_every_steps = 5
    config.delta_m_baseline = of_any_type({})
    return config
"""


def prepare(folder: pathlib.Path, **changes: Any) -> pathlib.Path:
    """Writes a data set and a config, `micro.py`, with some keys changed; returns `folder`."""
    write_tiny_dataset(folder / "data")
    lines = "".join(f"    config.{key.replace('__', '.')} = {value!r}\n" for key, value in changes.items())
    text = CONFIG.replace("ROOT", repr(str(folder / "data")))
    (folder / "micro.py").write_text(text.replace("    return config\n", f"{lines}    return config\n"))
    return folder


def command(base: pathlib.Path, workdir: str | pathlib.Path, *more: str) -> list[str]:
    files = [f"--config={base / 'micro.py'}", f"--workdir={base / workdir}"]
    return [sys.executable, "-m", "mtlora_jax.main", *files, *more]


def run(base: pathlib.Path, workdir: str | pathlib.Path, *more: str, environment: dict[str, str] | None = None) -> str:
    """Runs to the end and returns the output, including errors and warnings of the libraries."""
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    environment = os.environ | {"PYTHONUNBUFFERED": "1"} | (environment or {})
    done = subprocess.run(command(base, workdir, *more), **pipe, env=environment)
    assert done.returncode == 0, done.stdout
    return done.stdout


@contextlib.contextmanager
def running(base: pathlib.Path, workdir: str | pathlib.Path, *more: str) -> Iterator[subprocess.Popen]:
    """A run in a process of its own that does not outlive the block; its output goes to WORKDIR.out."""
    with (base / f"{pathlib.Path(workdir).name}.out").open("w") as printed:
        process = subprocess.Popen(command(base, workdir, *more), stdout=printed, stderr=subprocess.STDOUT)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def printed_by(base: pathlib.Path, workdir: str | pathlib.Path) -> str:
    """Output so far of the last `running` of this workdir."""
    return (base / f"{pathlib.Path(workdir).name}.out").read_text()


def wait_until(
    happened: Callable[[], bool], process: subprocess.Popen | None = None, seconds: float = 300, pause: float = 0.002
) -> None:
    """Waits until `happened` returns True; fails if the process ends before, or after `seconds`."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert process is None or process.poll() is None, f"the process ended with {process.returncode}"
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(pause)


def kill(process: subprocess.Popen) -> None:
    """Sends SIGKILL, as the system does; a power cut has the same effect."""
    process.send_signal(signal.SIGKILL)
    process.wait()


def lines_of(workdir: pathlib.Path) -> list[str]:
    """Lines so far of a log that is being written."""
    path = workdir / "log.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def log_of(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """The log, which must be strict JSON."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} in the log")

    return [json.loads(line, parse_constant=refuse) for line in lines_of(workdir)]


def without_clock(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A log without the entries that depend on the speed or memory of the machine."""
    return [{key: value for key, value in line.items() if key not in CLOCK} for line in lines]


def arrays_of(checkpoint: pathlib.Path) -> dict[str, np.ndarray]:
    """Every array of a checkpoint: parameters, BatchNorm statistics, optimizer, counters."""
    handler = ocp.StandardCheckpointer()
    found = {}
    for item in ("weights", "optimizer"):
        leaves, _ = jax.tree.flatten_with_path(handler.restore(checkpoint / item))
        found |= {f"{item}{path}": np.asarray(leaf) for path, leaf in leaves}
    return found


def assert_same_end(workdir: pathlib.Path, whole: pathlib.Path) -> None:
    """Asserts that two runs ended alike, bit by bit: trained state, log, best model and final scores."""
    assert without_clock(log_of(workdir)) == without_clock(log_of(whole))
    ours, theirs = (arrays_of(folder / "checkpoints" / str(STEPS)) for folder in (workdir, whole))
    assert ours.keys() == theirs.keys()
    assert any("opt_state" in name for name in ours)
    assert any("batch_stats" in name for name in ours)
    different = [name for name in ours if ours[name].tobytes() != theirs[name].tobytes()]
    assert not different
    ours, theirs = (safetensors.numpy.load_file(folder / "best" / "model.safetensors") for folder in (workdir, whole))
    assert all(ours[path].tobytes() == theirs[path].tobytes() for path in theirs)
    assert (workdir / "metrics.json").read_text() == (whole / "metrics.json").read_text()


def unfinished(workdir: pathlib.Path) -> list[str]:
    """Checkpoints that were being written when the run was killed."""
    folder = workdir / "checkpoints"
    return [name for name in os.listdir(folder) if "tmp" in name] if folder.exists() else []
