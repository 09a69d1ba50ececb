"""Checkpoints are restored bit by bit, or recognised as damaged, file by file."""

import gc
import os
import pathlib
import shutil
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mtlora_jax.errors import UserError
from mtlora_jax.train.checkpoints import Checkpoints
from mtlora_jax.train.step import TrainState, create_state

OPTIMIZER = optax.adam(1e-3)


def state_at(step: int, size: int = 40) -> TrainState:
    """A state whose values all encode the step."""
    weights = {"a.kernel": jnp.arange(size, dtype=jnp.float32) + step, "b.bias": jnp.full((3, 2), step, jnp.bfloat16)}
    state = create_state(weights, {"norm.mean": jnp.full(4, step / 3)}, OPTIMIZER)
    return state._replace(
        step=jnp.int32(step), opt_state=jax.tree.map(lambda leaf: leaf + jnp.asarray(step, leaf.dtype), state.opt_state)
    )


def assert_same(state: TrainState, other: TrainState) -> None:
    assert jax.tree.structure(state) == jax.tree.structure(other)
    for one, two in zip(jax.tree.leaves(state), jax.tree.leaves(other), strict=True):
        assert one.dtype == two.dtype
        assert np.asarray(one).tobytes() == np.asarray(two).tobytes()


def loop_at(step: int) -> dict:
    return {"waiting": [{"step": step, "metrics": {"loss": 0.1 * step, "grad_norm": float("nan")}, "image_ids": ["é"]}]}


def save(workdir: pathlib.Path, *steps: int, keep: int = 2, **options) -> None:
    checkpoints = Checkpoints(workdir, keep, writing=True)
    for step in steps:
        checkpoints.save(step, state_at(step, **options), {"next_batch": step}, loop_at(step))
    checkpoints.close()


def restore(workdir: pathlib.Path, **options):
    checkpoints = Checkpoints(workdir, 2, writing=True)
    try:
        return checkpoints.restore(state_at(0, **options))
    finally:
        checkpoints.close()


def steps_in(workdir: pathlib.Path) -> list[int]:
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> pathlib.Path:
    """A workdir with the checkpoints of steps 1 and 2."""
    workdir = tmp_path_factory.mktemp("saved")
    save(workdir, 1, 2)
    return workdir


def test_what_was_saved_comes_back_bit_by_bit(saved):
    found = restore(saved)
    assert_same(found.state, state_at(2))
    assert found.data == {"next_batch": 2}
    assert str(found.loop) == str(loop_at(2))  # as text, in which NaN equals itself
    step, trainable, batch_stats = Checkpoints(saved, 2).restore_weights(state_at(0).trainable, state_at(0).batch_stats)
    assert step == 2
    np.testing.assert_array_equal(trainable["a.kernel"], state_at(2).trainable["a.kernel"])
    np.testing.assert_array_equal(batch_stats["norm.mean"], state_at(2).batch_stats["norm.mean"])


def test_what_is_altered_after_a_save_is_not_in_it(tmp_path):
    checkpoints, loop = Checkpoints(tmp_path, 2, writing=True), loop_at(1)
    checkpoints.save(1, state_at(1), {"next_batch": 1}, loop)
    loop["waiting"].append({"metrics": object()})  # as the metrics of the next step, which are on the device
    checkpoints.close()
    assert str(restore(tmp_path).loop) == str(loop_at(1))


def test_nothing_saved_is_none(tmp_path):
    assert restore(tmp_path) is None
    assert Checkpoints(tmp_path / "nowhere", 2).latest() is None
    assert not (tmp_path / "nowhere").exists()  # a reader creates nothing


def test_the_last_ones_are_kept_and_none_is_written_twice(tmp_path):
    save(tmp_path, 1, 2, 3, 4, keep=3)
    assert steps_in(tmp_path) == [2, 3, 4]
    before = (tmp_path / "checkpoints" / "4" / "_CHECKPOINT_METADATA").stat().st_mtime_ns
    save(tmp_path, 4, 5, keep=3)
    assert steps_in(tmp_path) == [3, 4, 5]
    assert (tmp_path / "checkpoints" / "4" / "_CHECKPOINT_METADATA").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    "name", ["lr[0.1]", "a*b", "[!x]", "a**b", "a\\b", "gs:", "кошка", "a%41#b", os.fsdecode(b"\xff")]
)
def test_a_folder_of_any_name(tmp_path, name):
    """orbax and tensorstore misread some characters, and then wrote nothing."""
    (tmp_path / "aXb").mkdir()
    save(tmp_path / "aXb", 7)
    save(tmp_path / name, 1, 2, 3)
    assert steps_in(tmp_path / name) == [2, 3]
    restored = restore(tmp_path / name)
    assert restored is not None
    assert_same(restored.state, state_at(3))
    assert not [path for path in pathlib.Path(tempfile.gettempdir()).glob("mtlora_jax-*") if not any(path.iterdir())]


@pytest.mark.parametrize(
    "lost", ["weights/manifest.ocdbt", "weights/d", "optimizer/manifest.ocdbt", "optimizer/d", "contents"]
)
def test_a_save_that_lacks_something_is_told_and_an_older_one_stays(tmp_path, monkeypatch, lost):
    save(tmp_path, 1)
    checkpoints = Checkpoints(tmp_path, 1, writing=True)
    wait = checkpoints._manager.wait_until_finished

    def loses() -> None:
        wait()
        if (path := tmp_path / "checkpoints" / "2" / lost).exists():
            (path.unlink if path.is_file() else lambda: shutil.rmtree(path))()

    monkeypatch.setattr(checkpoints._manager, "wait_until_finished", loses)
    checkpoints.save(2, state_at(2), {"next_batch": 2}, loop_at(2))
    with pytest.raises(UserError, match=f"2/{lost}.* is missing although it was saved"):
        checkpoints.wait()
    assert 1 in steps_in(tmp_path)


def test_only_the_first_process_looks_at_what_it_removes(tmp_path, monkeypatch):
    """Another process would find folders that vanish while it lists them."""
    save(tmp_path, 1, 2)
    checkpoints = Checkpoints(tmp_path, 1, writing=True)
    with monkeypatch.context() as patch:
        patch.setattr(jax, "process_index", lambda: 1)
        patch.setattr(
            checkpoints._manager, "reload", lambda: pytest.fail("a process that removes nothing lists the folder")
        )
        checkpoints._remove_old()
    assert steps_in(tmp_path) == [1, 2]
    checkpoints._remove_old()
    assert steps_in(tmp_path) == [2]
    checkpoints.close()


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")  # orbax alone would print thousands
@pytest.mark.parametrize("damage", [cut, flip])
def test_a_damaged_file_never_gives_wrong_values(saved, tmp_path, damage):
    """Each file of the newest checkpoint in turn: either it does not matter, or the checkpoint before is used."""
    files = [
        path.relative_to(saved)
        for path in (saved / "checkpoints" / "2").rglob("*")
        if path.is_file() and path.stat().st_size
    ]
    assert len(files) > 10
    fell_back = 0
    for number, file in enumerate(files):
        workdir = tmp_path / str(number)
        shutil.copytree(saved, workdir)
        (workdir / file).write_bytes(damage((workdir / file).read_bytes()))
        found = restore(workdir)
        step = int(found.state.step)
        assert step in (1, 2), file
        assert_same(found.state, state_at(step))
        assert found.data == {"next_batch": step}, file
        assert str(found.loop) == str(loop_at(step)), file
        assert steps_in(workdir) == ([1, 2] if step == 2 else [1])
        assert (workdir / "damaged" / "2").exists() == (step == 1)
        fell_back += step == 1
        shutil.rmtree(workdir)
    assert fell_back > 4
    gc.collect()  # abandoned coroutines print their warning then


def test_a_missing_part_is_a_damage_too(saved, tmp_path):
    for part in ("weights", "optimizer", "data", "loop", "contents"):
        shutil.copytree(saved, tmp_path / part)
        shutil.rmtree(tmp_path / part / "checkpoints" / "2" / part)
        assert int(restore(tmp_path / part).state.step) == 1


def test_after_a_fallback_the_run_writes_the_same_steps_again(saved, tmp_path, capsys):
    shutil.copytree(saved, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "2" / "loop")
    restore(tmp_path / "run")
    assert "checkpoint 2 is passed over: it cannot be read" in capsys.readouterr().out
    save(tmp_path / "run", 2)
    assert_same(restore(tmp_path / "run").state, state_at(2))


def test_what_others_left_there_is_passed_over(saved, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(saved, workdir)
    folder = workdir / "checkpoints"
    save(tmp_path / "other", 9, size=41)
    shutil.copytree(tmp_path / "other" / "checkpoints" / "9", folder / "9")  # of another model
    (folder / "11").mkdir()
    (folder / "13").write_text("no folder")
    (folder / "notes").mkdir()
    (folder / "7.orbax-checkpoint-tmp").mkdir()  # of a killed save
    assert_same(restore(workdir).state, state_at(2))
    printed = capsys.readouterr().out
    assert "checkpoint 9 is passed over: of another model" in printed
    assert "a.kernel" in printed
    assert "checkpoint 11 is passed over" in printed
    assert not (folder / "7.orbax-checkpoint-tmp").exists()
    assert (folder / "notes").exists()


def test_only_unusable_checkpoints_are_an_error_that_names_them(saved):
    with pytest.raises(
        UserError, match=r"no checkpoint can be used; 2: of another model.*'a.kernel'.*; 1: of another.*--workdir"
    ) as error:
        restore(saved, size=41)
    assert "\n" not in str(error.value)
    assert steps_in(saved) == [1, 2]
    with pytest.raises(UserError, match="no checkpoint can be used"):
        Checkpoints(saved, 2).restore_weights(state_at(0, size=41).trainable, {})


def test_reading_for_an_evaluation_touches_nothing(saved, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(saved, workdir)
    shutil.rmtree(workdir / "checkpoints" / "2" / "contents")
    (workdir / "checkpoints" / "3.orbax-checkpoint-tmp").mkdir()  # another process is writing it
    step, *_ = Checkpoints(workdir, 1).restore_weights(state_at(0).trainable, state_at(0).batch_stats)
    assert step == 1
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["1", "2", "3.orbax-checkpoint-tmp"]


def test_a_save_that_fails_is_an_error_and_the_last_checkpoint_stays(tmp_path, monkeypatch):
    save(tmp_path, 1, keep=1)
    checkpoints = Checkpoints(tmp_path, 1, writing=True)

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("orbax.checkpoint.JsonCheckpointHandler.async_save", full)

    def save_and_wait():
        checkpoints.save(2, state_at(2), {"next_batch": 2}, {})
        checkpoints.wait()

    with pytest.raises(
        UserError, match=r"could not be written \(no space left on the disk\); the one of step 1 is whole"
    ):
        save_and_wait()
    assert_same(restore(tmp_path).state, state_at(1))
