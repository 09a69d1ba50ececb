"""Faults in a long run: files that cannot be read, numbers that are not finite, a config that changed, signals."""

import json
import math
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tiny_data
from ml_collections import ConfigDict

from mtlora_jax.data import FolderDataset
from mtlora_jax.data.pipeline import MAX_ATTEMPTS, eval_batches, train_batches
from mtlora_jax.defaults import of_any_type
from mtlora_jax.distributed import sharding
from mtlora_jax.distributed.preemption import Shutdown, Stopped
from mtlora_jax.errors import UserError
from mtlora_jax.io.files import UNFINISHED, atomic_folder, write_text
from mtlora_jax.tasks import IGNORE, make_tasks
from mtlora_jax.train import run_config
from mtlora_jax.train.fault_tolerance import NonFiniteGuard, UnreadableExamples
from mtlora_jax.train.history import EvalHistory
from mtlora_jax.train.step_log import summarise

TASKS = ["semseg", "sal"]


@pytest.fixture(scope="module")
def damaged(tmp_path_factory) -> pathlib.Path:
    """A data set in which one training label and the second of five validation images cannot be read."""
    root = tiny_data.write_tiny_dataset(tmp_path_factory.mktemp("faults") / "data", TASKS)
    (root / "sal" / "train2.png").write_bytes(b"no PNG")
    (root / "images" / "val001.png").write_bytes(b"")
    return root


def take(batches, count):
    return [next(batches) for _ in range(count)]


def train_of(root, **options):
    return train_batches(FolderDataset(root, "train", TASKS), image_size=(32, 32), batch_size=3, seed=5, **options)


def test_the_next_example_takes_the_place_of_one_that_cannot_be_read(damaged):
    batches = take(train_of(damaged), 4)  # two epochs of six
    ids, bad = (np.concatenate([batch[key] for batch in batches]) for key in ("image_id", "error"))
    assert sorted(ids) == sorted(["train0", "train1", "train3", "train3", "train4", "train5"] * 2)
    assert ["sal/train2.png" in message for message in bad if message] == [True, True]
    assert set(ids[bad != ""]) == {"train3"}
    assert all(batch["mask"].all() for batch in batches)


def test_a_damaged_data_set_gives_the_same_batches_for_any_workers_and_after_a_resume(damaged):
    expected = take(train_of(damaged), 4)
    resumed = train_of(damaged, num_workers=1)
    resumed.set_state({"next_batch": 1})
    for batch, other in zip(take(resumed, 3), expected[1:], strict=True):
        for key in batch:
            np.testing.assert_array_equal(batch[key], other[key], err_msg=key)
    resumed.close()


def test_an_image_that_cannot_be_read_is_left_out_of_the_scores(damaged):
    batches = list(eval_batches(FolderDataset(damaged, "val", TASKS), image_size=(32, 32), batch_size=4))
    mask, ids, bad = (np.concatenate([batch[key] for batch in batches]) for key in ("mask", "image_id", "error"))
    assert mask.tolist() == [True, False, True, True, True, False, False, False]
    assert ids.tolist() == ["val000", "", "val002", "val003", "val004", "", "", ""]
    assert [bool(message) for message in bad] == [False, True] + [False] * 6
    assert np.all(batches[0]["semseg"][1] == IGNORE)
    assert np.all(batches[0]["image"][1] == 0)


def test_a_last_image_that_cannot_be_read_is_counted_once(damaged, tmp_path):
    root = tiny_data.write_tiny_dataset(tmp_path / "data", ["sal"])
    (root / "sal" / "val004.png").write_bytes(b"")
    batches = list(eval_batches(FolderDataset(root, "val", ["sal"]), image_size=(32, 32), batch_size=4))
    assert [bool(message) for message in batches[1]["error"]] == [True, False, False, False]
    assert not batches[1]["mask"].any()


def test_where_nothing_can_be_read_that_is_the_error(tmp_path):
    root = tiny_data.write_tiny_dataset(tmp_path / "data", ["sal"], train=MAX_ATTEMPTS + 2)
    for path in (root / "sal").glob("train*"):
        path.write_bytes(b"")
    with pytest.raises(
        UserError, match=rf"sal/train\d+.png: .*; nor can the {MAX_ATTEMPTS - 1} examples after it be read"
    ):
        next(train_batches(FolderDataset(root, "train", ["sal"]), image_size=(32, 32), batch_size=2, seed=0))


def messages(*texts: str) -> dict[str, np.ndarray]:
    return {"error": np.array(texts)}


def test_bad_examples_are_counted_once_each_and_limited(tmp_path):
    path = tmp_path / "bad_examples.jsonl"
    bad = UnreadableExamples(2, path, {"a.png: broken": 3})
    assert bad.sync() == []
    assert not path.exists()
    bad.record(7, messages("", "a.png: broken", "b.png: cut off"))
    bad.record(8, messages("b.png: cut off"))
    assert bad.sync() == ["b.png: cut off"]
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 3, "error": "a.png: broken"},
        {"step": 7, "error": "b.png: cut off"},
    ]
    assert list(bad.wrap(9, [messages("c.png: gone")]))
    limit = "more than fault_tolerance.max_unreadable_examples = 2"
    with pytest.raises(UserError, match=rf"3 examples .* {limit}; .*bad_examples.jsonl .*: c.png: gone"):
        bad.sync()


@pytest.mark.parametrize(
    ("of", "size", "allowed"),
    [("training", 10, 1), ("evaluation", 10, 1), ("training", 60, 3), ("training", 10**6, 10)],
)
def test_the_limit_is_a_share_where_there_are_few_examples(of, size, allowed):
    def met(count, known=None):
        bad = UnreadableExamples(
            10, None, known, share=0.05, sizes={"training": 10**6, "evaluation": 10**6} | {of: size}
        )
        batch = messages("", *(f"{number}.png: broken" for number in range(count)))
        bad.record(7, batch) if of == "training" else list(bad.wrap(7, [batch]))
        return bad

    assert len(met(allowed).sync()) == allowed
    assert met(allowed, dict(met(allowed).known)).sync()
    expected = rf"^{allowed + 1} of the {size} examples for {of} cannot be read, "
    expected += rf"more than fault_tolerance.max_unreadable_share = 0.05 .*{allowed}.png: broken$"
    if allowed == 10:
        limit = "more than fault_tolerance.max_unreadable_examples = 10"
        expected = rf"^11 examples of 2000000 cannot be read, {limit}; the last: 10.png"
    with pytest.raises(UserError, match=expected):
        met(allowed + 1).sync()
    with pytest.raises(UserError, match="cannot be read, more than"):  # also in a resumed run that knew some of them
        met(allowed + 1, {"0.png: broken": 3}).sync()


def step(skipped: bool, **metrics: float) -> dict[str, float]:
    return {"loss": 1.0, "loss/sal": 1.0, "loss/semseg": 1.0, "grad_norm": 1.0, "skipped": float(skipped)} | metrics


def test_skips_in_a_row_end_the_run_with_what_is_known_of_them(tmp_path):
    nan = float("nan")
    guard = NonFiniteGuard(3, tmp_path)
    for number, skipped in enumerate([True, True, False, True, True], start=1):
        guard.record(number, step(skipped, **{"loss/sal": nan} if skipped else {}), [f"image{number}"])
    assert guard.consecutive == 2
    assert not (tmp_path / "nonfinite.json").exists()
    with pytest.raises(
        UserError, match=r"loss of sal was not finite in 3 steps in a row, the last of them step 6; .*nonfinite.json"
    ):
        guard.record(6, step(True, **{"grad_norm/decoders": float("inf")}), ["image6", "image7"])
    told = json.loads((tmp_path / "nonfinite.json").read_text())
    assert told["step"] == 6
    assert told["tasks"] == ["sal"]
    assert told["image_ids"] == ["image4", "image5", "image6", "image7"]
    assert [entry["step"] for entry in told["steps"]] == [4, 5, 6]
    assert told["steps"][2]["gradients"] == ["decoders"]


def test_skips_go_on_counting_after_a_resume(tmp_path):
    guard = NonFiniteGuard(3, tmp_path, consecutive=2)
    with pytest.raises(UserError, match="the gradient was not finite in 3 steps in a row"):
        guard.record(9, step(True, grad_norm=float("inf")), ["a"])


def test_the_log_has_means_of_what_is_finite():
    nan = float("nan")
    found = summarise(
        [step(False, loss=1.0), step(True, loss=nan, **{"loss/sal": nan}), step(False, loss=2.0, **{"loss/sal": 4.0})]
    )
    assert found["loss"] == 1.5
    assert found["loss/sal"] == 2.5
    assert found["skipped"] == 1
    assert "loss" not in summarise([step(True, loss=nan)])


def test_one_process_is_all_processes():
    assert sharding.allgather_json({"a": ["é"]}) == [{"a": ["é"]}]


def config(**values) -> ConfigDict:
    start = {
        "epochs": 8,
        "size": (4, 4),
        "method": of_any_type({"name": "mtlora", "rank": 2}),
        "data": {"root": "here", "num_workers": 2},
    }
    return ConfigDict(start | values).lock()


def test_a_config_that_contradicts_the_saved_one_is_refused_by_its_keys(tmp_path):
    run_config.check_same_config(tmp_path, config())  # nothing was started yet
    run_config.save(tmp_path, config())
    run_config.check_same_config(tmp_path, config())
    run_config.check_same_config(tmp_path, config(new="option"))  # a key that came later
    other = config(
        epochs=9, size=(4, 6), method=of_any_type({"name": "mtlora"}), data={"root": "there", "num_workers": 2}
    )
    with pytest.raises(UserError, match="--override_config") as error:
        run_config.check_same_config(tmp_path, other)
    told = str(error.value)
    for part in (
        "epochs was 8 and is 9",
        "size was [4, 4] and is [4, 6]",
        'data.root was "here" and is "there"',
        "method was",
    ):
        assert part in told
    assert "num_workers" not in told
    for text, odd in (("{", "not valid JSON"), ("[1]", "expected an object")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(UserError, match=odd):
            run_config.check_same_config(tmp_path, config())


def test_where_the_data_lies_does_not_matter_but_what_is_in_it_does(tmp_path):
    moved = config(data={"root": "there", "num_workers": 3})
    run_config.save(tmp_path, config(), {"ids of train": "a1", "number of images of train": 6})
    run_config.check_same_config(tmp_path, moved)
    run_config.check_same_data(tmp_path, {"ids of train": "a1", "number of images of train": 6})
    with pytest.raises(
        UserError, match=r'holds a run on other data: ids of train was "a1" and is "b2"\. .* --override_config'
    ):
        run_config.check_same_data(tmp_path, {"ids of train": "b2", "number of images of train": 6})
    (tmp_path / "data.json").unlink()  # a run of an earlier version
    run_config.check_same_data(tmp_path, {"ids of train": "b2"})
    with pytest.raises(UserError, match="data.root was"):
        run_config.check_same_config(tmp_path, moved)


def test_the_history_is_what_the_log_tells(tmp_path):
    tasks = make_tasks(["sal"])
    log = tmp_path / "log.jsonl"
    lines = [{"step": 2, "loss": 1.0}, {"step": 4, "eval/sal/mIoU": 50.0}, {"step": 8, "eval/sal/mIoU": 60.0}]
    lines += [{"step": 12, "eval/sal/mIoU": 55.0, "eval/sal/maxF": None}, {"step": 16, "eval/sal/mIoU": 99.0}]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 20, "eval/s')
    history = EvalHistory(tasks, {})
    history.restore(log, until_step=12)
    assert (history.last_step, history.best) == (12, pytest.approx(0.6))
    assert history.scores["mean_score"] == pytest.approx(0.55)
    assert history.delta_m is None
    assert np.isnan(history.scores["sal/maxF"])
    assert not history.add(13, {"sal/mIoU": 60.0})
    assert history.add(14, {"sal/mIoU": 61.0})
    assert history.to_log() == {"eval/sal/mIoU": 61.0, "eval/mean_score": pytest.approx(0.61)}
    odd = EvalHistory(tasks, {"sal": 50.0})
    scores = [math.nan, math.nan, 40.0, math.nan, 39.0, 41.0, math.inf]
    best = [odd.add(step, {"sal/mIoU": score}) for step, score in enumerate(scores)]
    # Until a score is a number, the newest model is the best; then never one whose score is not a number.
    assert best == [True, True, True, False, False, True, True]
    assert odd.describe_non_finite() == ["sal has the score inf"]
    fresh = EvalHistory(tasks, {"sal": 50.0})
    fresh.restore(tmp_path / "none", until_step=12)
    assert fresh.last_step is None
    assert fresh.add(0, {"sal/mIoU": 40.0})  # the first is always the best
    assert fresh.to_log()["eval/delta_m"] == pytest.approx(-20.0)


def test_evaluations_of_an_older_version_are_ranked_anew(tmp_path):
    """That version ranked by the gain over the first evaluation, which a small gain in a poor task could dominate."""
    steps = [(0, 1.0, 20.0, 0.0), (4, 2.0, 20.0, 50.0), (8, 1.5, 60.0, 125.0), (12, 3.0, 20.0, 100.0)]
    lines = [
        {"step": step, "eval/semseg/mIoU": a, "eval/sal/mIoU": b, "eval/gain_over_first": gain}
        for step, a, b, gain in steps
    ]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    history = EvalHistory(make_tasks(["semseg", "sal"]), {})
    history.restore(tmp_path / "log.jsonl", until_step=12)
    assert history.best == pytest.approx((0.015 + 0.6) / 2)
    assert history.scores == {"semseg/mIoU": 3.0, "sal/mIoU": 20.0, "mean_score": pytest.approx(0.115)}
    assert not history.add(16, {"semseg/mIoU": 1.4, "sal/mIoU": 60.0})
    assert history.add(20, {"semseg/mIoU": 1.6, "sal/mIoU": 60.0})


def test_a_file_and_a_folder_are_replaced_whole_or_not_at_all(tmp_path):
    write_text(tmp_path / "file", "old")
    write_text(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "new"
    abandoned = tmp_path / f".best{UNFINISHED}killed"
    abandoned.mkdir()
    for content in ("old", "new"):
        with atomic_folder(tmp_path / "best") as folder:
            (folder / "model").write_text(content)
    assert not abandoned.exists()

    def fails():
        with atomic_folder(tmp_path / "best") as folder:
            (folder / "model").write_text("worse")
            raise OSError

    with pytest.raises(UserError):
        fails()
    assert (tmp_path / "best" / "model").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "file"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_at_the_next_check_and_leaves_no_trace(number, capsys):
    mesh = sharding.make_mesh()
    before = signal.getsignal(number)

    def program():
        with Shutdown(grace_seconds=60) as shutdown:
            shutdown.check(mesh)
            assert not shutdown.asked
            os.kill(os.getpid(), number)
            while not shutdown.asked:
                time.sleep(0.01)
            shutdown.check(mesh)

    with pytest.raises(Stopped) as stopped:
        program()
    assert stopped.value.code == 128 + number
    assert signal.getsignal(number) is before
    assert signal.set_wakeup_fd(-1) == -1
    assert signal.Signals(number).name in capsys.readouterr().out


BUSY = """
import ctypes, os, signal, threading, time
from mtlora_jax.distributed.preemption import Shutdown

def send(number, *seconds):
    for pause in seconds:
        time.sleep(pause)
        os.kill(os.getpid(), number)

with Shutdown(grace_seconds=GRACE) as shutdown:
    shutdown.before_exit = lambda: print("finished what was being written", flush=True)
    threading.Thread(target=send, args=(SIGNALS), daemon=True).start()
    mutex = ctypes.create_string_buffer(64)
    for _ in range(2):  # like XLA: no bytecode runs until this returns, and the second one never does
        ctypes.CDLL(None).pthread_mutex_lock(mutex)
"""


@pytest.mark.parametrize(
    ("grace", "signals", "code", "told"),
    [
        (1.0, "signal.SIGTERM, 0.2, 0.1", 143, "no step ended within 1 s"),
        (30.0, "signal.SIGINT, 0.2, 0.1, 1.5", 130, "interrupted again"),
    ],
)
def test_a_busy_program_ends_all_the_same(grace, signals, code, told):
    source = BUSY.replace("GRACE", str(grace)).replace("SIGNALS", signals)
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stderr
    assert told in done.stderr
    assert ("finished what was being written" in done.stdout) == (code == 143)
    assert time.monotonic() - start < 50


def test_a_step_that_ends_in_time_is_not_cut_short():
    with Shutdown(grace_seconds=0.3) as shutdown:
        os.kill(os.getpid(), signal.SIGTERM)
        while not shutdown.asked:
            time.sleep(0.01)
        with pytest.raises(Stopped):
            shutdown.stop()
        time.sleep(0.6)  # saving takes longer than the grace period of the step
