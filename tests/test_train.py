"""Training as a user runs it: whole commands on a tiny data set, killed, resumed, evaluated, and given bad input."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
import safetensors.numpy
from tiny_data import write_tiny_dataset

import mtlora_jax
from mtlora_jax import main
from mtlora_jax.config import load
from mtlora_jax.errors import UserError
from mtlora_jax.evaluate import evaluate_only

CONFIG = """
from mtlora_jax.defaults import default, of_any_type


def get_config(method="mtlora"):
    config = default(method)
    with config.unlocked():
        config.backbone = {"name": "swin", "embed_dim": 8, "depths": (1, 2), "num_heads": (1, 2), "window_size": 4, "drop_path_rate": 0.1}
    if method == "mtlora":
        config.method.update({"rank": 2, "task_rank": 1})
    config.tasks = ("semseg", "sal")
    config.image_size = (32, 32)
    config.decoder.channels = (4, 6)
    config.data.name = "folder"
    config.data.root = ROOT
    config.data.workers = 0
    config.epochs = 8
    config.batch_size = 2
    config.eval_batch_size = 4
    config.eval_every = 4
    config.eval_first = True
    config.optimizer.reference_batch_size = 2
    config.optimizer.learning_rate = 3e-3
    config.optimizer.warmup_epochs = 1.0
    config.log_every = 1
    config.checkpoint_steps = 5
    config.single_task = of_any_type({})
    return config
"""
STEPS = 24  # 8 epochs of 6 images in batches of 2


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> pathlib.Path:
    """A folder with a data set and a config."""
    folder = tmp_path_factory.mktemp("train")
    write_tiny_dataset(folder / "data")
    (folder / "micro.py").write_text(CONFIG.replace("ROOT", repr(str(folder / "data"))))
    return folder


def command(base: pathlib.Path, workdir: str, *more: str) -> list[str]:
    return [sys.executable, "-m", "mtlora_jax.main", f"--config={base / 'micro.py'}", f"--workdir={base / workdir}", *more]


def run(base: pathlib.Path, workdir: str, *more: str) -> str:
    done = subprocess.run(command(base, workdir, *more), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def log_of(workdir: pathlib.Path) -> list[dict]:
    return [json.loads(line, parse_constant=pytest.fail) for line in (workdir / "log.jsonl").read_text().splitlines()]


def without_speed(lines: list[dict]) -> list[dict]:
    return [{key: value for key, value in line.items() if key != "images_per_second"} for line in lines]


@pytest.fixture(scope="module")
def finished(base) -> tuple[pathlib.Path, str]:
    """(workdir, what it printed) of a run that nobody disturbed."""
    return base / "whole", run(base, "whole")


def test_a_run_leaves_its_records(finished):
    workdir, printed = finished
    log = log_of(workdir)
    assert [line["step"] for line in log if "loss" in line] == list(range(1, STEPS + 1))
    assert [line["step"] for line in log if "eval/semseg/mIoU" in line] == [0, 12, 24]
    assert {"loss/semseg", "loss/sal", "grad_norm", "learning_rate", "images_per_second"} <= log[-2].keys()
    metrics = json.loads((workdir / "metrics.json").read_text())
    assert metrics["step"] == STEPS
    assert metrics["sal/mIoU"] == log[-1]["eval/sal/mIoU"]
    assert list((workdir / "tensorboard").iterdir())
    for told in ("ta_lora", "ts_lora", "position_tables", "trainable, unused", f"Scores after {STEPS} steps", "ETA", "images/s"):
        assert told in printed


def test_it_learns(finished):
    log = log_of(finished[0])
    losses = [line["loss"] for line in log if "loss" in line]
    assert np.mean(losses[-3:]) < 0.8 * np.mean(losses[:3])
    assert log[-1]["eval/gain_over_first"] > 5


def test_best_model_loads(finished):
    workdir, _ = finished
    model = mtlora_jax.load(workdir / "best")
    assert model.config["classes"]["semseg"] == ["background", "red", "green", "blue"]
    logits = model(jnp.zeros((1, 32, 48, 3)))
    assert {name: value.shape for name, value in logits.items()} == {"semseg": (1, 32, 48, 4), "sal": (1, 32, 48, 1)}
    best = max((line for line in log_of(workdir) if "eval/gain_over_first" in line), key=lambda line: line["eval/gain_over_first"])
    assert model.config["step"] == best["step"]


def test_frozen_weights_never_change(finished):
    workdir, _ = finished
    before, after = (safetensors.numpy.load_file(workdir / name / "model.safetensors") for name in ("initial", "best"))
    changed = {path for path in before if not np.array_equal(before[path], after[path])}
    frozen = {path for path in before if path.endswith((".kernel", ".bias")) and (".attn." in path or ".mlp." in path)}
    assert frozen
    assert not frozen & changed
    for trained in ("task_b", "shared_b", "norm1", "classifier"):
        assert any(trained in path for path in changed)


def test_killed_and_restarted_it_ends_as_if_nothing_had_happened(base, finished):
    whole, _ = finished
    workdir = base / "killed"
    process = subprocess.Popen(command(base, "killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not (workdir / "log.jsonl").exists() or len(log_of_living(workdir)) < 9:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert len(log_of_living(workdir)) < STEPS  # it did not reach the end
    printed = run(base, "killed")
    assert "step 0 to" not in printed  # it went on from a checkpoint
    assert without_speed(log_of(workdir)) == without_speed(log_of(whole))
    ours, theirs = (safetensors.numpy.load_file(folder / "best" / "model.safetensors") for folder in (workdir, whole))
    assert all(np.array_equal(ours[path], theirs[path]) for path in theirs)


def log_of_living(workdir: pathlib.Path) -> list[str]:
    """Whole lines so far of a log that is being written."""
    return (workdir / "log.jsonl").read_text().splitlines()


def test_evaluation_alone_gives_the_scores_of_the_run(base, finished):
    workdir, _ = finished
    last = json.loads((workdir / "metrics.json").read_text())
    config = load(str(base / "micro.py"))
    scores = evaluate_only(config, workdir)
    assert scores["semseg/mIoU"] == pytest.approx(last["semseg/mIoU"], rel=1e-6)
    best = json.loads((workdir / "best" / "config.json").read_text())["scores"]
    config.init = str(workdir / "best")
    config.eval_batch_size = 3
    scores = evaluate_only(config, base / "nowhere")
    assert not (base / "nowhere").exists()
    for name, value in scores.items():
        assert best[name] == pytest.approx(value, rel=1e-5, abs=1e-5), name


def call(base: pathlib.Path, *more: str, workdir: str = "bad", config: str = "micro.py") -> None:
    main.main([f"--config={base / config}", f"--workdir={base / workdir}", *more])


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--config.optimiser.clip_norm=1"], "optimiser.clip_norm is unknown; did you mean optimizer.clip_norm?"),
        (["--config.epochs=many"], "epochs=many is not a whole number"),
        (["--config.epochs=0"], "epochs = 0 must be at least 1"),
        (["--config.image_size=16,16"], "image_size"),
        (["--config.tasks=semseg,keypoints"], "keypoints"),
        (["--config.init=weights/none"], "weights/none is not a model folder"),
        (["--config.data.name=cityscapes"], "data.name = 'cityscapes' is not one of folder, pascal_context, nyud"),
        (["--config.data.root=nowhere"], "nowhere: no such folder"),
        (["--config.decoder.name=unet"], "decoder.name = 'unet' is not one of hrnet, segformer, aspp"),
        (["--config.method.rank=0"], "ranks must be at least 1"),
        (["--config.method.rank=2.5"], "whole numbers: rank [2.5, 2.5]"),
        (["--config.seed=-1"], "seed = -1 must be at least 0"),
        (["--config.optimizer.warmup_epochs=20.0"], "warmup_epochs = 20.0 is 60 steps, but training has only 24"),
        (["--config.batch_size=0"], "batch_size = 0"),
        (["--mode=evaluate"], "nothing to evaluate"),
    ],
)
def test_bad_flags_are_one_clear_line_and_write_nothing(base, flags, told):
    with pytest.raises(UserError) as error:
        call(base, *flags)
    assert told in str(error.value)
    assert "\n" not in str(error.value)
    assert not (base / "bad").exists()


def test_absent_labels_are_named(base, tmp_path):
    write_tiny_dataset(tmp_path / "data", tasks=("semseg", "sal"))
    (tmp_path / "data" / "sal" / "train3.png").unlink()
    with pytest.raises(UserError, match=r"sal: no file .*train3"):
        call(base, f"--config.data.root={tmp_path / 'data'}")
    with pytest.raises(UserError, match="no labels for task 'normals'; the data set has semseg, sal"):
        call(base, f"--config.data.root={tmp_path / 'data'}", "--config.tasks=semseg,normals")
    assert not (base / "bad").exists()


def test_another_model_in_the_workdir_is_refused(base, finished):
    with pytest.raises(UserError, match=r"holds a run of another model: method .* choose another --workdir"):
        call(base, "--config.method.rank=4", workdir="whole")


def test_weights_of_another_backbone_are_refused(base, finished):
    with pytest.raises(UserError, match=r"holds another backbone: embed_dim 8 there, 16 in the config"):
        call(base, f"--config.init={finished[0] / 'best'}", "--config.backbone.embed_dim=16")


def test_a_label_out_of_range_ends_the_command_with_one_line(base, tmp_path):
    write_tiny_dataset(tmp_path / "data", tasks=("semseg", "sal"))
    path = tmp_path / "data" / "semseg" / "train1.png"
    label = np.asarray(PIL.Image.open(path)).copy()
    label[0, 0] = 9
    PIL.Image.fromarray(label).save(path)
    flags = [f"--config.data.root={tmp_path / 'data'}", "--config.eval_first=false", "--config.data.workers=1"]
    done = subprocess.run(command(base, "bad_label", *flags), capture_output=True, text=True)
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert "train1.png" in lines[0]
    assert "value 9" in lines[0]
    assert "Traceback" not in done.stderr
