"""Output folders are checked before anything is computed, and have one writer at a time."""

import os

import numpy as np
import PIL.Image
import pytest

import mtlora_jax
from mtlora_jax.demo import pretrain
from mtlora_jax.errors import UserError
from mtlora_jax.export.__main__ import main as export
from mtlora_jax.io import locks
from mtlora_jax.io.output_folder import MAX_NAME_BYTES, shorten_name
from mtlora_jax.predict import __main__ as predict

COMMANDS = {
    "predict": lambda base, out: predict.main(["--model=any", f"--images={base / 'a.png'}", f"--output={out}"]),
    "export": lambda base, out: export(["--model=any", f"--output={out}"]),
    "pretrain": lambda base, out: pretrain.main([f"--output={out}"]),
}
LOCKS = {"predict": locks.hold_lock, "export": locks.hold_lock_beside, "pretrain": locks.hold_lock_beside}


@pytest.fixture
def base(tmp_path, monkeypatch):
    """A folder with a photograph and places that cannot be written; loading or computing anything fails."""
    PIL.Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to("nowhere")
    monkeypatch.setattr(mtlora_jax, "load", lambda *names: pytest.fail("loaded"))
    monkeypatch.setattr(pretrain, "render", lambda count: pytest.fail("rendered"))
    return tmp_path


def entries(base):
    return sorted((path, path.lstat().st_mtime_ns) for path in base.rglob("*"))


@pytest.mark.parametrize("out", ["file", "file/out", "dangling", "dangling/out", "/proc/out", "/proc/self/out"])
@pytest.mark.parametrize("command", COMMANDS)
def test_places_that_cannot_be_written(base, command, out):
    before = entries(base)
    with pytest.raises(UserError) as refused:
        COMMANDS[command](base, base / out)
    assert str(base / out) in str(refused.value)
    assert entries(base) == before


@pytest.mark.parametrize("command", COMMANDS)
def test_one_program_at_a_time(base, command):
    with LOCKS[command](base / "out"):
        before = entries(base)
        with pytest.raises(
            UserError, match=rf"out: another program writes there \(host \S+, process {os.getpid()}, since "
        ):
            COMMANDS[command](base, base / "out")
        assert entries(base) == before


def test_a_folder_that_stays_empty_is_removed(tmp_path):
    with locks.hold_lock(tmp_path / "new"):
        pass
    assert not (tmp_path / "new").exists()
    with locks.hold_lock(tmp_path / "new"):
        (tmp_path / "new" / "file").touch()
    (tmp_path / "there").mkdir()
    with locks.hold_lock(tmp_path / "there"):
        pass
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "new", "there"]


def test_long_names():
    assert shorten_name("a" * MAX_NAME_BYTES) == "a" * MAX_NAME_BYTES
    names = ["猫" * 100, "猫" * 99 + "犬", "a" * 300, "a" + "\udcff" * 300]
    assert len({shorten_name(name) for name in names}) == 4
    assert all(len(os.fsencode(shorten_name(name))) <= MAX_NAME_BYTES for name in names)
