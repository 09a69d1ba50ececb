"""Training as a user runs it: whole commands on a tiny data set, killed, resumed, evaluated, and given bad input."""

import json
import pathlib
import shutil
import subprocess

import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
import safetensors.numpy
from tiny_data import write_tiny_dataset
from tiny_runs import STEPS, assert_same_end, command, kill, lines_of, log_of, prepare, run, running, wait_until

import mtlora_jax
from mtlora_jax import main
from mtlora_jax.config import load
from mtlora_jax.errors import UserError
from mtlora_jax.train.evaluate_run import evaluate_only


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> pathlib.Path:
    """A folder with a data set and a config."""
    return prepare(tmp_path_factory.mktemp("train"))


@pytest.fixture(scope="module")
def finished(base) -> tuple[pathlib.Path, str]:
    """(workdir, output) of an undisturbed run."""
    return base / "whole", run(base, "whole", environment={"JAX_LOG_COMPILES": "1"})


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
    groups = ("ta_lora", "ts_lora", "position_tables", "trainable, unused")
    for told in (*groups, f"Scores after {STEPS} steps", "ETA", "images/s"):
        assert told in printed


def test_nothing_is_compiled_after_the_first_step(finished):
    before, _, after = finished[1].partition("first step after")
    assert "Compiling jit(train_step)" in before
    assert f"step {STEPS}/{STEPS}" in after
    assert [line for line in after.splitlines() if "Compiling" in line] == []


def test_it_learns(finished):
    log = log_of(finished[0])
    losses = [line["loss"] for line in log if "loss" in line]
    assert np.mean(losses[-3:]) < 0.8 * np.mean(losses[:3])
    scores = [line["eval/mean_score"] for line in log if "eval/mean_score" in line]
    assert all(0 <= score <= 1 for score in scores)
    assert scores[-1] > 1.05 * scores[0]


def test_best_model_loads(finished):
    workdir, _ = finished
    model = mtlora_jax.load(workdir / "best")
    assert model.config["classes"]["semseg"] == ["background", "red", "green", "blue"]
    logits = model(jnp.zeros((1, 32, 48, 3)))
    assert {name: value.shape for name, value in logits.items()} == {"semseg": (1, 32, 48, 4), "sal": (1, 32, 48, 1)}
    best = max(
        (line for line in log_of(workdir) if "eval/mean_score" in line), key=lambda line: line["eval/mean_score"]
    )
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
    with running(base, "killed") as process:
        wait_until(lambda: len(lines_of(base / "killed")) >= 9, process)
        kill(process)
    assert len(lines_of(base / "killed")) < STEPS  # it did not reach the end
    printed = run(base, "killed")
    assert "step 0 to" not in printed  # it continued from a checkpoint
    assert_same_end(base / "killed", finished[0])


def test_another_config_is_refused_unless_that_is_wanted(base, finished):
    with pytest.raises(
        UserError, match=r"holds a run with another config: epochs was 8 and is 9; seed was 0 and is 2\."
    ):
        call(base, "--config.epochs=9", "--config.log_every_steps=2", "--config.seed=2", workdir="whole")
    shutil.copytree(finished[0], base / "longer")
    run(base, "longer", "--config.epochs=9", "--override_config")
    before = log_of(base / "longer")
    assert before[-1]["step"] == STEPS + 3
    # That is its config from then on, and a finished run does nothing.
    call(base, "--config.epochs=9", workdir="longer")
    assert log_of(base / "longer") == before


def test_values_that_do_not_affect_the_results_may_change(base, finished, tmp_path):
    """The data may also move; a finished run then has nothing to do."""
    shutil.copytree(base / "data", tmp_path / "moved")
    before = {path.name for path in finished[0].rglob("*")}
    shutil.copytree(finished[0] / "initial", tmp_path / "first_weights")
    flags = [
        f"init_from={tmp_path / 'first_weights'}",
        "data.num_workers=1",
        "log_every_steps=7",
        "keep_checkpoints=5",
        "remat=block",
        "eval_batch_size=2",
        f"data.root={tmp_path / 'moved'}",
    ]
    call(base, *(f"--config.{flag}" for flag in flags), workdir="whole")
    assert {path.name for path in finished[0].rglob("*") if "tfevents" not in path.name} <= before
    with pytest.raises(UserError, match="another config: init_from was"):
        call(base, f"--config.init_from={finished[0] / 'best'}", workdir="whole")
    split = tmp_path / "moved" / "splits" / "train.txt"
    split.write_text("".join(reversed(split.read_text().splitlines(keepends=True))))
    with pytest.raises(UserError, match="holds a run on other data: ids of train was"):
        call(base, f"--config.data.root={tmp_path / 'moved'}", workdir="whole")


def test_fewer_epochs_than_were_trained_are_refused(base, finished):
    before = [(finished[0] / name).read_text() for name in ("metrics.json", "config.json")]
    with pytest.raises(
        UserError, match=r"holds a run of 24 steps already, more than the 12 of epochs = 4; give more --config.epochs"
    ):
        call(base, "--config.epochs=4", "--override_config", workdir="whole")
    assert [(finished[0] / name).read_text() for name in ("metrics.json", "config.json")] == before


def test_evaluating_something_else_than_asked_for_is_refused(base, finished):
    with pytest.raises(
        UserError, match=r"whole holds a run, which would be evaluated instead of init_from = \S*best; leave out"
    ):
        call(base, "--mode=evaluate", f"--config.init_from={finished[0] / 'best'}", workdir="whole")


@pytest.mark.parametrize("mode", ["train", "evaluate"])
@pytest.mark.parametrize("workdir", ["micro.py", "micro.py/below", "dangling", "/proc/run"])
def test_a_workdir_that_cannot_be_written_ends_at_once(base, finished, mode, workdir):
    if not (base / "dangling").is_symlink():
        (base / "dangling").symlink_to(base / "nothing")
    with pytest.raises(UserError, match=r"cannot be written .*expected a folder, or a name for a new one"):
        call(base, f"--mode={mode}", f"--config.init_from={finished[0] / 'best'}", workdir=workdir)


def test_home_is_home(base, finished, monkeypatch):
    """The shell leaves `~` alone in the middle of an argument."""
    monkeypatch.setenv("HOME", str(base))
    monkeypatch.chdir(base)
    main.main(["--config=~/micro.py", "--workdir=~/whole", "--config.data.root=~/data"])
    assert not (base / "~").exists()


def test_a_run_none_of_whose_steps_trained_is_an_error(base):
    flags = [
        "--config.loss_weights.semseg=3e38",
        "--config.fault_tolerance.max_consecutive_nonfinite_steps=99",
        "--config.optimizer.warmup_epochs=0.0",
    ]
    with pytest.raises(UserError, match="not finite in all 3 steps, so nothing was trained"):
        call(base, *flags, "--config.epochs=1", "--config.eval_first=false", workdir="nothing_trained")


def test_what_cannot_be_read_is_left_out_and_told(base, tmp_path):
    write_tiny_dataset(tmp_path / "data", tasks=("semseg", "sal"))
    for name in ("semseg/train1.png", "images/val002.png"):
        (tmp_path / "data" / name).write_bytes(b"")
    flags = [f"--config.data.root={tmp_path / 'data'}", "--config.epochs=2", "--config.optimizer.warmup_epochs=0.0"]
    printed = run(base, "some_bad", *flags)
    assert printed.count("left out: ") == 2
    told = [json.loads(line) for line in (base / "some_bad" / "bad_examples.jsonl").read_text().splitlines()]
    assert [name for name in ("val002", "train1") if any(name in entry["error"] for entry in told)] == [
        "val002",
        "train1",
    ]
    assert len(told) == 2
    assert "4 images in" in run(base, "some_bad", *flags, "--mode=evaluate")


def test_losses_that_are_not_finite_end_the_run_with_their_images_written_down(base):
    flags = [
        "--config.optimizer.learning_rate=1e38",
        "--config.fault_tolerance.max_consecutive_nonfinite_steps=3",
        "--config.eval_first=false",
    ]
    done = subprocess.run(command(base, "diverged", *flags), capture_output=True, text=True)
    assert done.returncode == 2
    assert "was not finite in 3 steps in a row" in done.stderr
    told = json.loads((base / "diverged" / "nonfinite.json").read_text())
    assert len(told["steps"]) == 3
    assert {"semseg", "sal"} >= set(told["tasks"])
    assert {f"train{i}" for i in range(6)} >= set(told["image_ids"])
    assert len(told["image_ids"]) >= 2


def test_evaluation_alone_gives_the_scores_of_the_run(base, finished):
    workdir, _ = finished
    last = json.loads((workdir / "metrics.json").read_text())
    config = load(str(base / "micro.py"))
    scores = evaluate_only(config, workdir)
    assert scores["semseg/mIoU"] == pytest.approx(last["semseg/mIoU"], rel=1e-6)
    best = json.loads((workdir / "best" / "config.json").read_text())["scores"]
    config.init_from = str(workdir / "best")
    config.eval_batch_size = 3
    scores = evaluate_only(config, base / "nowhere")
    assert [path.name for path in (base / "nowhere").iterdir()] == ["evaluation.json"]
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
        (
            ["--config.fault_tolerance.max_consecutive_nonfinite_steps=0"],
            "fault_tolerance.max_consecutive_nonfinite_steps = 0 must be at least 1",
        ),
        (["--config.image_size=16,16"], "image_size"),
        (["--config.tasks=semseg,keypoints"], "keypoints"),
        (["--config.init_from=weights/none"], "weights/none is not a model folder"),
        (["--config.data.name=cityscapes"], "data.name = 'cityscapes' is not one of folder, pascal_context, nyud"),
        (["--config.data.root=nowhere"], "nowhere: no such folder"),
        (["--config.decoder.name=unet"], "decoder.name = 'unet' is not one of hrnet, segformer, aspp"),
        (["--config.method.rank=0"], "ranks must be at least 1"),
        (["--config.method.rank=2.5"], "method.rank = 2.5 must be a whole number"),
        (["--config.seed=-1"], "seed = -1 must be at least 0"),
        (["--config.optimizer.warmup_epochs=20.0"], "warmup_epochs = 20.0 is 60 steps, but training has only 24"),
        (["--config.batch_size=0"], "batch_size = 0"),
        (
            ["--config.batch_size=1", "--config.decoder.name=aspp"],
            "batch_size = 1: the decoder aspp normalises over the batch",
        ),
        (["--config.optimizer.learning_rate=nan"], "optimizer.learning_rate = nan must be finite"),
        (["--config.optimizer.learning_rate=-1"], "optimizer.learning_rate = -1.0 must be above 0"),
        (["--config.loss_weights.sal=nan"], "loss_weights.sal = nan must be finite"),
        (["--config.loss_weights.sal=-5"], "loss_weights.sal = -5.0 must be at least 0"),
        (["--config.tasks="], "the config names no task"),
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


def permuted(base, folder: pathlib.Path) -> str:
    """The flag for a copy of the data set with the same classes in another order."""
    root = shutil.copytree(base / "data", folder / "permuted")
    classes = json.loads((root / "classes.json").read_text())
    (root / "classes.json").write_text(
        json.dumps({task: [names[i] for i in (0, 2, 1, 3)] for task, names in classes.items()})
    )
    return f"--config.data.root={root}"


@pytest.mark.parametrize("mode", ["train", "evaluate"])
@pytest.mark.parametrize("start", ["run", "init"])
def test_classes_in_another_order_are_refused(base, finished, tmp_path, mode, start):
    flags = [f"--mode={mode}", permuted(base, tmp_path)] + [f"--config.init_from={finished[0] / 'best'}"] * (
        start == "init"
    )
    workdir = "whole" if start == "run" else "bad"
    done = subprocess.run(command(base, workdir, *flags), capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    lines = done.stderr.splitlines()
    assert lines[-1].startswith("error: ")
    assert "class 1 is 'red' there, 'green' here" in lines[-1]
    assert not (base / "bad").exists()


def test_a_start_from_a_model_of_other_classes_and_ranks(base, finished, tmp_path):
    """Its decoders are kept, except the classifier; its low-rank factors do not fit."""
    best = finished[0] / "best"
    flags = [
        permuted(base, tmp_path),
        f"--config.init_from={best}",
        "--config.init_strict=False",
        "--config.method.rank=3",
        "--config.epochs=2",
    ]
    printed = " ".join(run(base, "again", *flags).split())
    assert f"left out of {best}: low-rank factors: rank 2 there, 3 here" in printed
    assert "decoders.semseg.head.classifier: class 1 is 'red' there, 'green' here" in printed
    there, here = (
        safetensors.numpy.load_file(path / "model.safetensors") for path in (best, base / "again" / "initial")
    )
    differing = {path for path in here if path not in there or not np.array_equal(there[path], here[path])}
    classifier = {f"decoders.semseg.head.classifier.{name}" for name in ("kernel", "bias")}
    assert {path for path in differing if "shared_" not in path} == classifier


def test_weights_of_another_backbone_are_refused(base, finished):
    with pytest.raises(UserError, match=r"holds another backbone: embed_dim 8 there, 16 in the config"):
        call(base, f"--config.init_from={finished[0] / 'best'}", "--config.backbone.embed_dim=16")


def test_a_label_out_of_range_ends_the_command_with_one_line(base, tmp_path):
    write_tiny_dataset(tmp_path / "data", tasks=("semseg", "sal"))
    path = tmp_path / "data" / "semseg" / "train1.png"
    label = np.asarray(PIL.Image.open(path)).copy()
    label[0, 0] = 9
    PIL.Image.fromarray(label).save(path)
    flags = [
        f"--config.data.root={tmp_path / 'data'}",
        "--config.eval_first=false",
        "--config.data.num_workers=1",
        "--config.fault_tolerance.max_unreadable_examples=0",
    ]
    done = subprocess.run(command(base, "bad_label", *flags), capture_output=True, text=True)
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert "train1.png" in lines[0]
    assert "value 9" in lines[0]
    assert "Traceback" not in done.stderr
