"""Several devices and processes as whole commands over localhost: results, outputs, and how they end."""

import json
import pathlib
import re
import signal
import subprocess
import sys
import time

import micro
import numpy as np
import pytest
import safetensors.numpy
from jobs import Job, environment, free_port
from tiny_data import write_tiny_dataset

from mtlora_jax import experiment as experiments
from mtlora_jax import model_factory
from mtlora_jax.config import load
from mtlora_jax.model_io import model_folder
from mtlora_jax.train.checkpoints import Checkpoints

pytestmark = pytest.mark.xdist_group("distributed")

CONFIG = """
from mtlora_jax.defaults import default, of_any_type

SIZES = {"embed_dim": 8, "depths": (2,), "num_heads": (1,), "window_size": 4}


def get_config():
    config = default("mtlora")
    with config.unlocked():
        config.backbone = {"name": "swin", **SIZES, "drop_path_rate": 0.2}
    config.method.update({"rank": 2, "task_rank": 1})
    config.tasks = ("semseg", "sal")
    config.image_size = (32, 32)
    config.decoder.channels = (4,)
    config.data.name = "folder"
    config.data.root = ROOT
    config.data.num_workers = 0
    config.init_from = INIT
    config.epochs = 5  # of one step
    config.batch_size = 8
    config.eval_batch_size = 8
    config.eval_every_epochs = 1000
    config.eval_first = True
    config.optimizer.reference_batch_size = 8
    config.optimizer.learning_rate = 0.1
    config.optimizer.eps = 1.0  # otherwise Adam would scale up gradients that are only rounding errors
    config.optimizer.warmup_epochs = 1.0
    config.log_every_steps = 1
    config.delta_m_baseline = of_any_type({})
    return config
"""
IMAGES, VALIDATION = 12, 11  # a batch reaches into the next epoch; no number of devices divides 11
STEPS = 60  # of the run that is stopped


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> pathlib.Path:
    """A folder with a data set, a config, and weights as after training, whose scores depend on the images."""
    path = tmp_path_factory.mktemp("distributed")
    write_tiny_dataset(path / "data", train=IMAGES, val=VALIDATION)
    text = CONFIG.replace("ROOT", repr(str(path / "data")))
    (path / "micro.py").write_text(text.replace("INIT", repr(str(path / "weights"))))
    config = load(str(path / "micro.py"))
    outputs = {name: task.channels for name, task in experiments.build_tasks(config).items()}
    architecture = model_factory.from_config(config, outputs)
    model_folder.save(path / "weights", architecture, micro.random_arrays(architecture))
    return path


@pytest.fixture(scope="module")
def one(base) -> Job:
    return Job(base, "one", 1, 1).done()


@pytest.fixture(scope="module", params=[(8, 1), (2, 2)], ids=["8 devices", "2 processes x 2 devices"])
def many(request, base) -> Job:
    devices, processes = request.param
    return Job(base, f"{processes}x{devices}", devices, processes).done()


def assert_same_losses(log: list[dict], expected: list[dict], tolerance: float = 1e-5) -> None:
    def losses(line):
        return {key: value for key, value in line.items() if key.startswith("loss")}

    assert [line["step"] for line in log] == [line["step"] for line in expected]
    for ours, theirs in zip(log, expected, strict=True):
        assert losses(ours) == pytest.approx(losses(theirs), rel=tolerance)


def trained(base: pathlib.Path, workdir: pathlib.Path) -> dict[str, np.ndarray]:
    """Weights and BatchNorm statistics of the newest checkpoint."""
    config = load(str(base / "micro.py"))
    experiment = experiments.build_experiment(config, experiments.build_tasks(config), workdir)
    checkpoints = Checkpoints(workdir, config.keep_checkpoints)
    _, weights, batch_stats = checkpoints.restore_weights(experiment.trainable, experiment.batch_stats)
    checkpoints.close()
    return {path: np.asarray(value) for path, value in (weights | batch_stats).items()}


def assert_same_weights(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray], tolerance: float = 1e-5) -> None:
    """Asserts equality within a tolerance relative to the norm of each array."""
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
    assert np.median(moved) > 1e-3  # far more than the tolerance
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


def start_two(base: pathlib.Path, workdir: pathlib.Path, flags: list[list[str]]) -> list[subprocess.Popen]:
    """Starts the training command in two processes, each with its own further flags."""
    command = [sys.executable, "-m", "mtlora_jax.main", f"--config={base / 'micro.py'}", f"--workdir={workdir}"]
    command += [f"--coordinator_address=localhost:{free_port()}", "--num_processes=2"]
    pipes = {"env": environment(1), "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return [subprocess.Popen([*command, f"--process_id={i}", *more], **pipes) for i, more in enumerate(flags)]


@pytest.mark.slow
def test_what_one_host_lacks_ends_the_job(base):
    """Process 1 of 2 finds no data: both report that and end in time."""
    roots = [base / "data", base / "nowhere"]
    both = start_two(base, base / "lacking", [[f"--config.data.root={root}"] for root in roots])
    told = [process.communicate(timeout=400)[1] for process in both]
    assert [process.returncode for process in both] == [2, 2]
    assert f"error: {base / 'nowhere'}: no such folder" in told[1]
    assert f"error: process 1: {base / 'nowhere'}: no such folder" in told[0]
    assert not (base / "lacking").exists()


def differing(base: pathlib.Path) -> dict[str, tuple[list[str], str]]:
    """{what differs in process 1: (its flags, the error of both processes)}."""
    fewer = write_tiny_dataset(base / "fewer", train=IMAGES, val=VALIDATION)
    split = fewer / "splits" / "val.txt"
    split.write_text("".join(split.read_text().splitlines(keepends=True)[1:]))
    write_tiny_dataset(base / "other", train=IMAGES, val=VALIDATION, seed=1)
    arrays = safetensors.numpy.load_file(base / "weights" / "model.safetensors")
    path = next(path for path in arrays if path.startswith("backbone."))
    config = model_folder.read_config(base / "weights")
    model_folder.save(base / "copy", config["architecture"], {**arrays, path: np.nextafter(arrays[path], 9)})
    rate, root = "--config.optimizer.learning_rate", "--config.data.root"
    return {
        "config": ([f"{rate}=0.2"], "config.optimizer.learning_rate: 0.1 in process 0, 0.2 in process 1"),
        "weights": ([f"--config.init_from={base / 'copy'}"], f"first weights of {path}: "),
        "images": ([f"{root}={base / 'fewer'}"], "number of images of val: 11 in process 0, 10 in process 1"),
        "contents": ([f"{root}={base / 'other'}"], "contents of train train0: "),
        "mode": (["--mode=evaluate"], 'mode: "train" in process 0, "evaluate" in process 1'),
        "a bad value": ([f"{rate}=nan"], "optimizer.learning_rate = nan must be finite"),
    }


@pytest.mark.slow
def test_processes_that_differ_end_together_and_say_in_what(base):
    for what, (flags, told) in differing(base).items():
        workdir = base / f"differ_{what}"
        both = start_two(base, workdir, [[], flags])
        message = rf"^error: (the processes differ in |process 1: |){re.escape(told)}"
        for process, (_, printed) in [(process, process.communicate(timeout=400)) for process in both]:
            assert process.returncode == 2, printed
            assert re.search(message, printed, re.MULTILINE), printed
            assert printed.count("error: ") == 1
        assert not workdir.exists()
