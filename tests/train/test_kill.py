"""Killed, stopped and starved runs end as if nothing had happened. Each start takes seconds: `make test-slow`."""

import contextlib
import fcntl
import os
import pathlib
import pty
import shutil
import signal
import subprocess
import termios
import threading
import time

import numpy as np
import psutil
import pytest
from tiny_runs import (
    STEPS,
    assert_same_end,
    command,
    kill,
    lines_of,
    log_of,
    prepare,
    printed_by,
    run,
    running,
    unfinished,
    wait_until,
)

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("kill")]
KILLS = 20
GRACE = 5.0


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> pathlib.Path:
    return prepare(tmp_path_factory.mktemp("kill"), log_every_steps=4, fault_tolerance__grace_seconds=GRACE)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """A compilation cache of its own for all programs, so that only the first start compiles."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("compiled")))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        yield


@pytest.fixture(scope="module")
def whole(base, cache) -> tuple[pathlib.Path, float]:
    """(workdir, seconds) of an undisturbed run that found everything compiled."""
    run(base, "first")
    start = time.monotonic()
    run(base, "whole")
    assert_same_end(base / "whole", base / "first")
    return base / "whole", time.monotonic() - start


@pytest.mark.xdist_group("random")  # takes as long as all the others of this file together
def test_killed_at_random_moments(base, whole):
    """Twenty kills at moments spread evenly over the duration of a run, at most six of them in one run."""
    workdir, seconds = whole
    rng = np.random.default_rng(4)
    kills = runs = 0
    while kills < KILLS:
        runs += 1
        name = f"random{runs}"
        for _ in range(min(6, KILLS - kills)):
            with running(base, name) as process:
                try:
                    process.wait(rng.uniform(0, seconds))
                    break  # it ended before that
                except subprocess.TimeoutExpired:
                    kill(process)
                    kills += 1
        run(base, name)
        assert_same_end(base / name, workdir)
        shutil.rmtree(base / name)
    print(f"{kills} kills in {runs} runs")


def test_killed_inside_a_save(base, whole):
    with running(base, "saving") as process:
        wait_until(lambda: bool(unfinished(base / "saving")), process, pause=0)
        kill(process)
    assert unfinished(base / "saving")
    run(base, "saving")
    assert not unfinished(base / "saving")
    assert_same_end(base / "saving", whole[0])


def in_evaluation(workdir: pathlib.Path, step: int = 12) -> bool:
    """Whether the evaluation of a step is due and not done."""
    lines = lines_of(workdir)
    logged = bool(lines) and lines[-1].startswith(f'{{"step": {step}, "') and "eval/" not in lines[-1]
    checkpoints = (workdir / "checkpoints").iterdir()
    return logged and any(path.name.startswith(str(step)) for path in checkpoints)  # saved before the evaluation


def test_killed_inside_an_evaluation(base, whole):
    with running(base, "evaluating") as process:
        wait_until(lambda: in_evaluation(base / "evaluating"), process, pause=0)
        kill(process)
    assert in_evaluation(base / "evaluating")
    run(base, "evaluating")
    assert_same_end(base / "evaluating", whole[0])


def starts_to_compile(base: pathlib.Path, name: str) -> bool:
    return len(lines_of(base / name)) == 1 and "first step after" not in printed_by(base, name)  # step 0 is evaluated


def test_killed_inside_the_first_compilation(base, whole):
    with running(base, "compiling", "--compile_cache=") as process:
        wait_until(lambda: starts_to_compile(base, "compiling"), process)
        time.sleep(2)
        kill(process)
    assert "first step after" not in printed_by(base, "compiling")
    run(base, "compiling")
    assert_same_end(base / "compiling", whole[0])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_between_steps_saves_and_ends(base, whole, number):
    name = number.name
    with running(base, name) as process:
        wait_until(lambda: len(lines_of(base / name)) == 3, process)
        process.send_signal(number)
        assert process.wait(GRACE + 30) == 128 + number
    stopped = log_of(base / name)[-1]["step"]
    saved = max(int(path.name) for path in (base / name / "checkpoints").iterdir() if path.name.isdigit())
    assert stopped <= saved < STEPS
    printed = run(base, name)
    assert f"step {saved} to {STEPS}" in printed  # nothing was lost
    assert_same_end(base / name, whole[0])


def test_sigterm_inside_an_evaluation(base, whole):
    with running(base, "stopped_evaluating") as process:
        wait_until(lambda: in_evaluation(base / "stopped_evaluating"), process, pause=0)
        process.send_signal(signal.SIGTERM)
        assert process.wait(GRACE + 30) == 143
    assert f"step 12 to {STEPS}" in run(base, "stopped_evaluating")
    assert_same_end(base / "stopped_evaluating", whole[0])


def test_sigterm_inside_the_first_compilation(base, whole):
    with running(base, "stopped_compiling", "--compile_cache=") as process:
        wait_until(lambda: starts_to_compile(base, "stopped_compiling"), process)
        start = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(GRACE + 30) == 143
        assert time.monotonic() - start < GRACE + 5
    assert "SIGTERM" in printed_by(base, "stopped_compiling")
    run(base, "stopped_compiling")
    assert_same_end(base / "stopped_compiling", whole[0])


def workers_of(process: subprocess.Popen) -> list[psutil.Process]:
    """Processes that prepare batches; multiprocessing also starts helpers of its own."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if any("spawn_main" in word for word in child.cmdline()):
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


def test_a_killed_worker_is_an_error_and_a_killed_run_leaves_no_worker(base, whole):
    with running(base, "worker", "--config.data.num_workers=2", "--override_config") as process:
        wait_until(lambda: len(lines_of(base / "worker")) == 2, process)
        workers_of(process)[0].send_signal(signal.SIGKILL)
        assert process.wait(60) == 2
    assert "error: a data worker ended by itself" in printed_by(base, "worker")
    with running(base, "worker", "--config.data.num_workers=2") as process:
        wait_until(lambda: len(workers_of(process)) == 2, process)
        time.sleep(2)
        workers = workers_of(process)
        kill(process)
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive
    run(base, "worker", "--config.data.num_workers=2")
    assert_same_end(base / "worker", whole[0])  # for any number of workers


def contents_of(folder: pathlib.Path) -> dict[pathlib.Path, tuple[int, bytes]]:
    """The time of change and the contents of each file."""
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_second_start_changes_nothing_and_an_evaluation_may_run_beside(base, whole):
    with running(base, "twice") as process:
        wait_until(lambda: len(lines_of(base / "twice")) == 4, process)
        process.send_signal(signal.SIGSTOP)  # so that nothing changes but by the second
        before = contents_of(base / "twice")
        second = subprocess.run(command(base, "twice"), capture_output=True, text=True)
        assert second.returncode == 2
        error = second.stderr.splitlines()[-1]
        assert error.startswith(f"error: {base / 'twice'}: another program writes there (host ")
        assert f"process {process.pid}, since 2" in error
        assert contents_of(base / "twice") == before
        run(base, "twice", "--mode=evaluate")
        after = contents_of(base / "twice")
        assert {path.name for path in after.keys() - before.keys()} == {"evaluation.json"}
        assert all(after[path] == before[path] for path in before)
        process.send_signal(signal.SIGCONT)
        assert process.wait(120) == 0
    assert_same_end(base / "twice", whole[0])


@pytest.mark.parametrize("name", ["lr[0.1]", "кошка ?[x]"])
def test_a_workdir_of_any_name_is_saved_and_goes_on(base, whole, name):
    with running(base, f"odd/{name}") as process:
        wait_until(lambda: len(lines_of(base / "odd" / name)) == 4, process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(GRACE + 30) == 143
    run(base, f"odd/{name}", "--mode=evaluate")
    assert "step 0 to" not in run(base, f"odd/{name}")
    assert_same_end(base / "odd" / name, whole[0])


def test_a_closed_terminal_is_a_signal_like_others(base, whole):
    """The system sends SIGHUP, and from then on any output is an error."""
    ours, theirs = pty.openpty()

    def take_terminal() -> None:
        os.setsid()
        fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(
        command(base, "hung_up"), stdin=theirs, stdout=theirs, stderr=theirs, preexec_fn=take_terminal
    )
    os.close(theirs)
    drain = threading.Thread(target=lambda: [None for _ in iter(lambda: read_some(ours), b"")], daemon=True)
    drain.start()
    try:
        wait_until(lambda: len(lines_of(base / "hung_up")) == 3, process)
        os.close(ours)
        assert process.wait(GRACE + 30) == 128 + signal.SIGHUP
    finally:
        process.kill()
    assert "step 0 to" not in run(base, "hung_up")
    assert_same_end(base / "hung_up", whole[0])


def read_some(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # it was closed
        return b""


def fill(path: pathlib.Path) -> None:
    """Writes a file until no space is left."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def test_a_full_disk_is_one_line_and_the_last_checkpoint_stays(base, whole):
    disk = base / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("this user may not mount a small disk")
    try:
        with running(base, disk / "full") as process:
            wait_until(lambda: (disk / "full" / "checkpoints" / "5").exists(), process)
            fill(disk / "filler")
            assert process.wait(120) == 2
        printed = printed_by(base, "full")
        assert printed.count("error") == 1  # no library prints anything
        assert printed.splitlines()[-1].startswith(f"error: {disk / 'full'}")
        assert "no space left on the disk" in printed.splitlines()[-1]
        (disk / "filler").unlink()
        printed = run(base, disk / "full")
        assert "step 0 to" not in printed
        assert_same_end(disk / "full", whole[0])
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_two_processes_stop_at_the_same_step_though_only_one_was_asked(base, whole):
    port = 20000 + int(np.random.default_rng().integers(20000))
    flags = [f"--coordinator_address=localhost:{port}", "--num_processes=2"]
    with running(base, "both", *flags, "--process_id=0") as first:
        wait_until(lambda: (base / "both.out").exists(), first)
        (base / "both.out").rename(base / "first.out")
        with running(base, "both", *flags, "--process_id=1") as second:
            wait_until(lambda: len(lines_of(base / "both")) == 3, first)
            second.send_signal(signal.SIGTERM)
            assert second.wait(GRACE + 60) == 143
            assert first.wait(GRACE + 60) == 143
    saved = max(int(path.name) for path in (base / "both" / "checkpoints").iterdir() if path.name.isdigit())
    assert 8 <= saved < STEPS
    printed = run(base, "both")  # goes on with a single process
    assert f"step {saved} to {STEPS}" in printed
    assert [line["step"] for line in log_of(base / "both") if "loss" in line] == list(range(4, STEPS + 1, 4))
