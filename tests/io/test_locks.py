"""One writer per folder."""

import os
import signal
import subprocess
import sys

import pytest

from mtlora_jax.errors import UserError
from mtlora_jax.io import locks

HOLD = """
import pathlib, sys, time
from mtlora_jax.io import locks
with getattr(locks, sys.argv[1])(pathlib.Path(sys.argv[2])):
    print("mine", flush=True)
    time.sleep(600)
"""
KINDS = ["hold_lock", "hold_lock_beside"]


def holder(kind: str, folder) -> subprocess.Popen:
    """Another process that has the lock."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, kind, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "mine\n"
    return process


def state_of(folder) -> dict:
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in sorted(folder.rglob("*"))
    }


@pytest.mark.parametrize("kind", KINDS)
def test_the_second_is_told_who_writes_and_changes_nothing(tmp_path, kind):
    process = holder(kind, tmp_path / "run")
    try:
        before = state_of(tmp_path)
        writer = rf"host \S+, process {process.pid}, since 2\d\d\d-.*"
        told = rf"run: another program writes there \({writer}\); wait for its end"
        for _ in range(2):
            with pytest.raises(UserError, match=told), getattr(locks, kind)(tmp_path / "run"):
                pass
        assert state_of(tmp_path) == before
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("kind", KINDS)
def test_a_lock_dies_with_its_process(tmp_path, kind):
    process = holder(kind, tmp_path / "run")
    process.send_signal(signal.SIGKILL)
    process.wait()
    with getattr(locks, kind)(tmp_path / "run"):
        pass
    assert not [name for name in os.listdir(tmp_path) if name.endswith(locks.NAME)]


def test_what_was_made_and_stayed_empty_vanishes(tmp_path):
    with locks.hold_lock(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b").is_dir()
    assert not os.listdir(tmp_path)
    with locks.hold_lock(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "x").write_text("")
    assert [path.name for path in sorted(tmp_path.rglob("*"))] == ["a", "b", "x"]
    (tmp_path / "empty").mkdir()
    with locks.hold_lock(tmp_path / "empty"):
        pass
    assert (tmp_path / "empty").is_dir()  # it was there before


def test_one_after_the_other(tmp_path):
    for _ in range(3):
        with locks.hold_lock(tmp_path):
            pass


def test_a_file_system_that_cannot_lock(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(locks.NOT_SUPPORTED[1], "Operation not supported")

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    with locks.hold_lock(tmp_path):
        pass
