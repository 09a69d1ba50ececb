"""Outputs of a run: the log and its resumption, TensorBoard, Weights & Biases, timers, tables."""

import json
import math
import resource
import sys
import threading
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mtlora_jax.console import print_columns, print_scores
from mtlora_jax.metric_writers import DataWaitTimer, MetricWriter, Profiler, StepTimer, memory
from mtlora_jax.metric_writers import weights_and_biases as guest
from mtlora_jax.metric_writers.writer import forget_after


def lines_of(workdir):
    return [json.loads(line, parse_constant=pytest.fail) for line in (workdir / "log.jsonl").read_text().splitlines()]


def test_lines_and_events(tmp_path):
    records = MetricWriter(tmp_path, 0, True)
    records.write(1, {"loss": 2.5, "grad_norm": math.nan})
    assert lines_of(tmp_path) == [{"step": 1, "loss": 2.5, "grad_norm": None}]  # at once, and strict JSON
    picture = np.zeros((8, 12, 3), np.uint8)
    picture[:, 6:] = (255, 0, 0)
    records.images(1, {"semseg/cat": picture})
    records.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 2.5)]
    image = events.Images("semseg/cat")[0]
    assert (image.step, image.height, image.width) == (1, 8, 12)


def test_what_tensorboard_cannot_write_is_an_error_of_the_caller(tmp_path):
    records = MetricWriter(tmp_path, 0, True)
    records.open()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            records.images(1, {f"picture {number}": np.zeros((8, 8, 3), np.uint8) for number in range(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "log.jsonl").read_text() == ""


def test_a_resumed_run_forgets_what_it_will_write_again(tmp_path):
    records = MetricWriter(tmp_path, 0, True)
    for step in (1, 2, 3):
        records.write(step, {"loss": step})
    records.close()
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"step": 4, "lo')
    time.sleep(1)  # files of events are named by the second
    records = MetricWriter(tmp_path, 2, True)
    records.write(3, {"loss": 30})
    records.close()
    assert [(line["step"], line["loss"]) for line in lines_of(tmp_path)] == [(1, 1), (2, 2), (3, 30)]
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 1), (2, 2), (3, 30)]


def test_a_run_that_begins_again_forgets_everything(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 0, "eval/a": 1}\n{"step": 1, "loss": 1}\n')
    forget_after(path, 0)
    assert path.read_text() == ""


def test_a_kill_while_the_log_is_shortened_leaves_it_whole(tmp_path, monkeypatch):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n')
    monkeypatch.setattr("os.replace", lambda *names: pytest.fail("killed"))
    with pytest.raises(pytest.fail.Exception):
        forget_after(path, 1)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_only_the_first_process_writes(tmp_path):
    records = MetricWriter(tmp_path / "absent", 0, False, wandb={"project": "p", "mode": "online"})
    records.write(1, {"loss": 1.0})
    records.images(1, {"a": np.zeros((2, 2, 3), np.uint8)})
    records.close()
    assert not list(tmp_path.iterdir())


class FakeWandb(types.ModuleType):
    """Records the calls that it gets."""

    def __init__(self, fails=None):
        super().__init__("wandb")
        self.logged, self.finished, self.fails = [], False, fails or (lambda: None)
        self.Settings = dict
        self.Image = lambda array: ("image", array.shape)

    def init(self, **options):
        self.fails()
        self.options = options
        return types.SimpleNamespace(log=lambda values, step: self.logged.append((step, values)), finish=self.finish)

    def finish(self):
        self.finished = True


WANDB = {"project": "mtl", "mode": "offline"}


def run_with(fake, workdir, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", fake)
    records = MetricWriter(workdir, 0, True, wandb=WANDB)
    records.write(1, {"loss": 2.0})
    records.images(1, {"a": np.zeros((2, 4, 3), np.uint8)})
    records.close()


def test_weights_and_biases(tmp_path, monkeypatch):
    fake = FakeWandb()
    run_with(fake, tmp_path, monkeypatch)
    assert fake.logged == [(1, {"loss": 2.0}), (1, {"a": ("image", (2, 4, 3))})]
    assert fake.finished
    assert (fake.options["project"], fake.options["mode"], fake.options["resume"]) == ("mtl", "offline", "allow")
    again = FakeWandb()
    run_with(again, tmp_path, monkeypatch)
    assert again.options["id"] == fake.options["id"]  # a resumed run is the same run


def fail(error):
    raise error


@pytest.mark.parametrize(
    ("fake", "told"),
    [
        (None, "the package is missing: pip install mtlora_jax[wandb]"),
        (FakeWandb(lambda: fail(RuntimeError("no network\nat all"))), "no network at all"),
        (FakeWandb(lambda: fail(SystemExit(1))), "1"),
        (FakeWandb(lambda: fail(KeyboardInterrupt())), "KeyboardInterrupt"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_trouble_with_weights_and_biases_is_one_line(tmp_path, monkeypatch, capsys, fake, told):
    run_with(fake, tmp_path, monkeypatch)
    assert capsys.readouterr().out == f"Weights & Biases is left out: {told}\n"
    assert lines_of(tmp_path) == [{"step": 1, "loss": 2.0}]


def test_a_hanging_network_holds_nothing_up(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(guest, "PATIENCE", 0.05)
    monkeypatch.setattr(guest, "WAITING", 3)
    release = threading.Event()
    monkeypatch.setitem(sys.modules, "wandb", FakeWandb(lambda: release.wait(60)))
    records = MetricWriter(tmp_path, 0, True, wandb=WANDB)
    began = time.monotonic()
    for step in range(20):  # far more than can wait
        records.write(step, {"loss": 1.0})
    records.close()
    assert time.monotonic() - began < 20
    assert "not everything was sent" in capsys.readouterr().out
    assert len(lines_of(tmp_path)) == 20
    release.set()


def test_without_a_project_there_is_no_weights_and_biases(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", FakeWandb(lambda: pytest.fail("asked for")))
    records = MetricWriter(tmp_path, 0, True, wandb={"project": "", "mode": "online"})
    records.write(1, {"loss": 2.0})
    records.close()
    assert not (tmp_path / "wandb_id").exists()


class Clock:
    """A clock that tests set."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def seconds_of(told):
    hours, minutes, seconds = map(int, told.split(":"))
    return 3600 * hours + 60 * minutes + seconds


def stretch(timer, clock, steps=20, each=0.5, pause=0.0):
    timer.start()
    for _ in range(steps):
        clock.now += each
        timer.count_step()
    clock.now += pause
    return timer.steps_per_second()


def test_rate_and_remaining_time():
    clock = Clock()
    timer = StepTimer(clock=clock)
    assert timer.format_remaining(10, 0) == "?"
    assert timer.steps_per_second() is None
    assert stretch(timer, clock) == 2
    assert timer.format_remaining(1000, 0) == "0:08:20"
    timer.add_evaluation(30.0)
    assert timer.format_remaining(1000, 4) == "0:10:20"
    assert timer.format_remaining(7200, 0) == "1:00:00"


def test_a_pause_of_an_hour_does_not_change_the_remaining_time():
    clock = Clock()
    timer = StepTimer(clock=clock)
    for _ in range(3):
        stretch(timer, clock)
    before = seconds_of(timer.format_remaining(1000, 0))
    stretch(timer, clock, pause=3600.0)
    assert seconds_of(timer.format_remaining(1000, 0)) == before
    stretch(timer, clock)
    assert seconds_of(timer.format_remaining(1000, 0)) == before


def test_a_pause_early_in_a_run_does_not_change_the_remaining_time():
    clock = Clock()
    timer = StepTimer(clock=clock)
    stretch(timer, clock)
    stretch(timer, clock, pause=3600.0)
    assert timer.format_remaining(1000, 0) == "0:08:20"


def test_remaining_time_follows_a_change_that_lasts():
    clock = Clock()
    timer = StepTimer(clock=clock)
    for _ in range(9):
        stretch(timer, clock)
    for _ in range(6):
        stretch(timer, clock, each=1.0)
    assert timer.format_remaining(1000, 0) == "0:16:40"


def test_an_evaluation_does_not_change_the_remaining_time():
    clock = Clock()
    timer = StepTimer(evaluation_steps=50, clock=clock)
    stretch(timer, clock)
    before = seconds_of(timer.format_remaining(1000, 10))
    assert before == 500 + 10 * 25
    clock.now += 26.0
    timer.add_evaluation(26.0)
    stretch(timer, clock)
    assert abs(seconds_of(timer.format_remaining(1000, 10)) - before) == 10
    timer.add_evaluation(3000.0)  # a pause in the middle of one
    assert seconds_of(timer.format_remaining(1000, 10)) == before + 10


def test_input_wait():
    clock = Clock()
    wait = DataWaitTimer(clock)
    for _ in range(4):
        with wait:
            clock.now += 0.25
        clock.now += 1.0
    assert wait.take_share(5.0) == pytest.approx(0.2)
    assert wait.take_share(5.0) == 0
    assert wait.take_share(0.0) == 0


def test_input_wait_counts_also_when_data_ends():
    clock = Clock()
    wait = DataWaitTimer(clock)

    def data_ends():
        with wait:
            clock.now += 1.0
            raise StopIteration

    with pytest.raises(StopIteration):
        data_ends()
    assert wait.take_share(2.0) == 0.5


def test_memory(monkeypatch):
    assert 0.01 < memory()["memory/host_gb"] < 1000
    devices = [types.SimpleNamespace(memory_stats=lambda peak=peak: {"peak_bytes_in_use": peak}) for peak in (3e9, 5e9)]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    assert memory()["memory/device_gb"] == 5
    monkeypatch.setattr(jax, "local_devices", lambda: [types.SimpleNamespace(memory_stats=lambda: None)])
    assert memory().keys() == {"memory/host_gb"}


def test_trace_of_some_steps(tmp_path):
    trace = Profiler(tmp_path, 2, 2)
    for step in range(6):
        trace.step(step)
        assert (tmp_path / "trace").exists() == (step >= 2)
        jnp.ones(3).sum().block_until_ready()
    trace.close()
    assert len(list((tmp_path / "trace").rglob("*.xplane.pb"))) == 1


def test_trace_of_a_run_that_ends_before(tmp_path):
    trace = Profiler(tmp_path, 0, 100)
    trace.step(0)
    trace.close()
    trace.close()
    assert list((tmp_path / "trace").rglob("*.xplane.pb"))


def test_tables(capsys):
    scores = {"semseg/mIoU": 50.0, "semseg/IoU/cat": 20.0, "semseg/IoU/cat/dog": 80.0}
    scores |= {"normals/mean": 17.0, "delta_m": math.nan}
    columns = {"at 448x448": scores, "at original size": {"semseg/mIoU": 51.25}}
    print_columns(columns, "Scores of it", {"normals/mean": "degrees"})
    printed = capsys.readouterr().out
    rows = [line.replace("│", " ").replace("┃", " ").split() for line in printed.splitlines()]
    expected = "semseg/mIoU 50.00 51.25", "normals/mean 17.00 degrees", "delta_m nan", "cat 20.00", "cat/dog 80.00"
    assert all(row.split() in rows for row in expected)
    assert "semseg/IoU per class" in printed
    print_scores(scores, "Once more")
    assert "note" not in capsys.readouterr().out
