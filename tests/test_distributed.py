"""Several devices and several processes, as whole commands over localhost: what they compute, who writes, and how they end."""

import contextlib
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import micro
import numpy as np
import pytest
import safetensors.numpy
from tiny_data import write_tiny_dataset

from mtlora_jax import architecture as architectures
from mtlora_jax import distributed, folder
from mtlora_jax import experiment as experiments
from mtlora_jax.checkpoint import Checkpoints
from mtlora_jax.config import load
from mtlora_jax.errors import UserError

pytestmark = pytest.mark.xdist_group("distributed")

ROOT = pathlib.Path(__file__).parents[1]
CONFIG = """
from mtlora_jax.defaults import default, of_any_type


def get_config():
    config = default("mtlora")
    with config.unlocked():
        config.backbone = {"name": "swin", "embed_dim": 8, "depths": (2,), "num_heads": (1,), "window_size": 4, "drop_path_rate": 0.2}
    config.method.update({"rank": 2, "task_rank": 1})
    config.tasks = ("semseg", "sal")
    config.image_size = (32, 32)
    config.decoder.channels = (4,)
    config.data.name = "folder"
    config.data.root = ROOT
    config.data.workers = 0
    config.init = INIT
    config.epochs = 5  # of one step
    config.batch_size = 8
    config.eval_batch_size = 8
    config.eval_every = 1000
    config.eval_first = True
    config.optimizer.reference_batch_size = 8
    config.optimizer.learning_rate = 0.1
    config.optimizer.eps = 1.0  # Adam divides gradients that are zero but for rounding by their own size
    config.optimizer.warmup_epochs = 1.0
    config.log_every = 1
    config.single_task = of_any_type({})
    return config
"""
IMAGES, VALIDATION = 12, 11  # a batch reaches into the next epoch; 11 can be divided by no number of devices
STEPS = 60  # of the run that is stopped


# Who takes part


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, None),  # a batch script itself, which srun has not started
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_NUM_NODES": "1", "SLURM_NTASKS": "4"}, None),  # the shell of salloc
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "2"}, {"num_processes": 2, "local_device_ids": []}),
        ({"SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NUM_NODES": "2"}, {"num_processes": 8}),
        ({"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"}, {}),
        ({"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}, None),
        ({"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "MEGASCALE_NUM_SLICES": "2"}, {}),
    ],
)
def test_clusters_are_recognised(environment, expected):
    assert distributed.detect(environment) == expected


def test_flags_say_who_is_who():
    assert distributed.check("node1:12345", 4, 3) == {"coordinator_address": "node1:12345", "num_processes": 4, "process_id": 3}
    assert distributed.check(None, 1, None) is None


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ((None, 2, 0), "several processes need all of --coordinator=HOST:PORT --processes=N --process=I"),
        (("node1:1234", None, None), "several processes need all of"),
        ((None, None, 1), "several processes need all of"),
        (("node1", 2, 0), "--coordinator=node1 must be HOST:PORT, such as node1:12345"),
        (("node1:http", 2, 0), "must be HOST:PORT"),
        (("node1:70000", 2, 0), "must be HOST:PORT"),
        ((":1234", 2, 0), "must be HOST:PORT"),
        (("node1:1234", 0, 0), "--processes=0 must be at least 1"),
        (("node1:1234", 2, 2), "--process=2 must be at least 0 and below --processes=2"),
        (("node1:1234", 2, -1), "--process=-1 must be at least 0"),
    ],
)
def test_half_given_flags_are_refused(flags, told):
    with pytest.raises(UserError) as error:
        distributed.start(*flags)
    assert told in str(error.value)


def test_a_single_task_of_slurm_runs_alone(monkeypatch):
    for name in ("SLURM_STEP_NUM_TASKS", "SLURM_STEP_NUM_NODES", "SLURM_NTASKS"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    distributed.start()
    distributed.start(processes=1)


# Meeting and parting


def free_port() -> int:
    with contextlib.closing(socket.socket()) as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]


def environment(devices: int) -> dict[str, str]:
    """Of a process with so many devices; the compiler is asked to try less hard."""
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    return os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def python(program: str, *arguments: object) -> subprocess.Popen:
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.Popen(command, env=environment(1), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


JOIN = """
import sys
from mtlora_jax import cli, distributed
cli.run(lambda: distributed.start(sys.argv[1], 2, int(sys.argv[2]), timeout=2), distributed.leave)
"""


@pytest.mark.parametrize("process", [0, 1])
def test_waiting_for_the_others_ends_with_one_line(process):
    joining = python(JOIN, f"localhost:{free_port()}", process)
    _, told = joining.communicate(timeout=200)
    assert joining.returncode == 2
    lines = [line for line in told.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert "did not all meet at localhost:" in lines[0]
    assert "within 2 s" in lines[0]
    assert "Traceback" not in told


def test_a_taken_port_is_told():
    with contextlib.closing(socket.socket(socket.AF_INET6)) as taken:
        taken.bind(("::", 0))
        taken.listen()
        joining = python(JOIN, f"localhost:{taken.getsockname()[1]}", 0)
        _, told = joining.communicate(timeout=200)
    assert joining.returncode == 2
    assert told.splitlines()[-1].startswith("error: port ")
    assert "Address already in use" in told


FAIL = """
import sys, time
import jax, numpy as np
from mtlora_jax import cli, distributed, sharding
from mtlora_jax.errors import UserError
distributed.LEAVE_SECONDS = 6
def main():
    distributed.start(sys.argv[1], 2, int(sys.argv[2]))
    sharding.barrier("all are here")
    if sys.argv[2] in sys.argv[3]:
        raise UserError("this host has no data")
    sharding.agreed(True, "never comes")
cli.run(main, distributed.leave)
"""


@pytest.mark.parametrize("failing", ["0", "1", "01"])
def test_a_failing_process_ends_all(failing):
    port = free_port()
    both = [python(FAIL, f"localhost:{port}", process, failing) for process in range(2)]
    told = [process.communicate(timeout=200)[1] for process in both]
    for process, text in enumerate(told):
        failed = str(process) in failing
        assert ("error: this host has no data" in text.splitlines()) == failed
        assert both[process].returncode == 2 if failed else both[process].returncode not in (0, None)


# Whole commands


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> pathlib.Path:
    """A folder with a data set, a config, and weights as after training, which tell images apart."""
    path = tmp_path_factory.mktemp("distributed")
    write_tiny_dataset(path / "data", train=IMAGES, val=VALIDATION)
    text = CONFIG.replace("ROOT", repr(str(path / "data")))
    (path / "micro.py").write_text(text.replace("INIT", repr(str(path / "weights"))))
    config = load(str(path / "micro.py"))
    architecture = architectures.from_config(config, {name: task.channels for name, task in experiments.tasks_of(config).items()})
    folder.save(path / "weights", architecture, micro.random_arrays(architecture))
    return path


class Job:
    """The training command in one process or more, each with its own output."""

    def __init__(self, base: pathlib.Path, workdir: str, devices: int, processes: int, *flags: str):
        self.workdir = base / workdir
        command = [sys.executable, "-m", "mtlora_jax.main", f"--config={base / 'micro.py'}", f"--workdir={self.workdir}", *flags]
        if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
            command.append(f"--compile_cache={base / 'compiled'}")
        together = [f"--coordinator=localhost:{free_port()}", f"--processes={processes}"] if processes > 1 else []
        self._outputs = [(base / f"{workdir}.{i}.out", base / f"{workdir}.{i}.err") for i in range(processes)]
        self.processes = []
        for i, (out, err) in enumerate(self._outputs):
            number = [f"--process={i}"] if together else []
            with out.open("w") as stdout, err.open("w") as stderr:
                process = subprocess.Popen([*command, *together, *number], env=environment(devices), stdout=stdout, stderr=stderr)
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


@pytest.fixture(scope="module")
def one(base) -> Job:
    return Job(base, "one", 1, 1).done()


@pytest.fixture(scope="module", params=[(8, 1), (2, 2)], ids=["8 devices", "2 processes x 2 devices"])
def many(request, base) -> Job:
    devices, processes = request.param
    return Job(base, f"{processes}x{devices}", devices, processes).done()


def assert_same_losses(log: list[dict], expected: list[dict], tolerance: float = 1e-5) -> None:
    kept = [
        [{"step": line["step"]} | {k: v for k, v in line.items() if k.startswith("loss")} for line in lines] for lines in (log, expected)
    ]
    assert [line["step"] for line in kept[0]] == [line["step"] for line in kept[1]]
    for ours, theirs in zip(*kept, strict=True):
        assert ours == pytest.approx(theirs, rel=tolerance)


def trained(base: pathlib.Path, workdir: pathlib.Path) -> dict[str, np.ndarray]:
    """Weights and BatchNorm statistics of the newest checkpoint."""
    config = load(str(base / "micro.py"))
    experiment = experiments.set_up(config, experiments.tasks_of(config), workdir)
    checkpoints = Checkpoints(workdir, config.keep_checkpoints)
    _, weights, batch_stats = checkpoints.restore_weights(experiment.trainable, experiment.batch_stats)
    checkpoints.close()
    return {path: np.asarray(value) for path, value in (weights | batch_stats).items()}


def assert_same_weights(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray], tolerance: float = 1e-5) -> None:
    """Relative to the size of each array."""
    assert ours.keys() == theirs.keys()
    for path, value in theirs.items():
        assert np.linalg.norm(ours[path] - value) <= tolerance * np.linalg.norm(value), path


@pytest.mark.slow
def test_devices_and_processes_change_nothing(many, one, base):
    losses = [line for line in one.log() if "loss" in line]
    assert [line["step"] for line in losses] == [1, 2, 3, 4, 5]
    assert_same_losses(many.log(), one.log())
    after, start = trained(base, one.workdir), safetensors.numpy.load_file(base / "weights" / "model.safetensors")
    moved = [np.linalg.norm(value - start[path]) / np.linalg.norm(value) for path, value in after.items()]
    assert np.median(moved) > 1e-3  # far more than what is tolerated
    assert_same_weights(trained(base, many.workdir), after)


@pytest.mark.slow
def test_scores_depend_on_neither(many, one):
    first, other = (job.log()[0] for job in (one, many))
    assert first["eval/semseg/mIoU"] > 1
    assert other == pytest.approx(first, rel=1e-6)  # of the same weights


@pytest.mark.slow
def test_evaluation_alone_works_on_several_processes(one, base):
    several = Job(base, "one", 2, 2, "--mode=evaluate", "--config.eval_batch_size=4").done()
    found, expected = (json.loads((one.workdir / name).read_text()) for name in ("evaluation.json", "metrics.json"))
    assert found["scores"]["semseg/mIoU"] > 1
    assert found["scores"] == pytest.approx({name: expected[name] for name in found["scores"]}, rel=1e-6)
    assert "Scores of" in several.printed(0)
    assert several.printed(1) == ""


@pytest.mark.slow
def test_only_the_first_process_writes(many):
    if len(many.processes) == 1:
        pytest.skip("one process")
    assert "Scores after 5 steps" in many.printed(0)
    assert many.printed(1) == ""
    assert [line["step"] for line in many.log()] == [0, 1, 2, 3, 4, 5, 5]
    assert len(list((many.workdir / "tensorboard").iterdir())) == 1


@pytest.mark.slow
def test_stopped_on_two_processes_it_goes_on_with_one(base):
    flags = [f"--config.epochs={STEPS}", "--config.eval_first=False"]
    whole = Job(base, "whole", 1, 1, *flags).done()
    stopped = Job(base, "stopped", 2, 2, *flags)
    deadline = time.monotonic() + 1500
    while len(stopped.log()) < 4:
        assert all(process.poll() is None for process in stopped.processes), stopped.told()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    stopped.processes[1].send_signal(signal.SIGTERM)  # to one of them, as when one host is taken away
    assert stopped.wait() == [143, 143]
    steps = len(stopped.log())
    assert 4 <= steps < STEPS
    resumed = Job(base, "stopped", 1, 1, *flags).done()
    assert f"step {steps} to {STEPS}" in resumed.printed()
    assert_same_losses(resumed.log(), whole.log(), 1e-4)  # 60 steps let rounding grow
    assert_same_weights(trained(base, resumed.workdir), trained(base, whole.workdir), 1e-4)


@pytest.mark.slow
def test_what_one_host_lacks_ends_the_job(base):
    """Process 1 of 2 finds no data: it says so and all end, within the time that `leave` grants and what JAX needs."""
    port = free_port()
    command = [sys.executable, "-m", "mtlora_jax.main", f"--config={base / 'micro.py'}", f"--workdir={base / 'lacking'}"]
    command += [f"--coordinator=localhost:{port}", "--processes=2"]
    roots = [base / "data", base / "nowhere"]
    both = [
        subprocess.Popen(
            [*command, f"--process={i}", f"--config.data.root={root}"],
            env=environment(1),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i, root in enumerate(roots)
    ]
    told = [process.communicate(timeout=400)[1] for process in both]
    assert [process.returncode for process in both] == [2, 2]
    assert f"error: {base / 'nowhere'}: no such folder" in told[1]
    assert f"error: process 1: {base / 'nowhere'}: no such folder" in told[0]
    assert not (base / "lacking").exists()


def differing(base: pathlib.Path) -> dict[str, tuple[list[str], str]]:
    """{what differs in process 1: (its flags, what both processes tell)}."""
    fewer = write_tiny_dataset(base / "fewer", train=IMAGES, val=VALIDATION)
    split = fewer / "splits" / "val.txt"
    split.write_text("".join(split.read_text().splitlines(keepends=True)[1:]))
    write_tiny_dataset(base / "other", train=IMAGES, val=VALIDATION, seed=1)
    arrays = safetensors.numpy.load_file(base / "weights" / "model.safetensors")
    path = next(path for path in arrays if path.startswith("backbone."))
    config = folder.read_config(base / "weights")
    folder.save(base / "copy", config["architecture"], {**arrays, path: np.nextafter(arrays[path], 9)})
    return {
        "config": (["--config.optimizer.learning_rate=0.2"], "config.optimizer.learning_rate: 0.1 in process 0, 0.2 in process 1"),
        "weights": ([f"--config.init={base / 'copy'}"], f"first weights of {path}: "),
        "images": ([f"--config.data.root={base / 'fewer'}"], "number of images of val: 11 in process 0, 10 in process 1"),
        "contents": ([f"--config.data.root={base / 'other'}"], "contents of train train0: "),
        "mode": (["--mode=evaluate"], 'mode: "train" in process 0, "evaluate" in process 1'),
        "a bad value": (["--config.optimizer.learning_rate=nan"], "optimizer.learning_rate = nan must be finite"),
    }


@pytest.mark.slow
def test_processes_that_differ_end_together_and_say_in_what(base):
    port = free_port()
    for what, (flags, told) in differing(base).items():
        workdir = base / f"differ_{what}"
        command = [sys.executable, "-m", "mtlora_jax.main", f"--config={base / 'micro.py'}", f"--workdir={workdir}"]
        command += [f"--coordinator=localhost:{port}", "--processes=2"]
        pipes = {"env": environment(1), "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        both = [subprocess.Popen([*command, f"--process={i}", *(flags if i else [])], **pipes) for i in range(2)]
        for process, (_, printed) in [(process, process.communicate(timeout=400)) for process in both]:
            assert process.returncode == 2, printed
            assert re.search(rf"^error: (the processes differ in |process 1: |){re.escape(told)}", printed, re.MULTILINE), printed
            assert printed.count("error: ") == 1
        assert not workdir.exists()
