"""A run from before config keys were renamed, killed in its second epoch, is continued and checked.

`old_workdir` is the folder of that run: it was to train four epochs, and its newest checkpoint is of step 5 of 12.
"""

import json
import pathlib
import shutil
import tarfile

import numpy as np
import pytest
from paths import ROOT
from tiny_runs import arrays_of, lines_of, log_of, prepare, run, without_clock

from mtlora_jax import main
from mtlora_jax.errors import UserError

KILLED, STEPS = 5, 12
RANKING = ("eval/gain_over_first", "eval/mean_score")  # of checkpoints, then and now


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> pathlib.Path:
    """The config of that run under today's names, and its workdir."""
    changes = {"epochs": 4, "eval_every_epochs": 2, "checkpoint_every_epochs": 2, "keep_checkpoints": 1}
    changes["method__dropout"] = 0.0  # drawn on the grid of the attention's output now, in its windows then
    changes |= {"optimizer__learning_rate": 0.1, "optimizer__eps": 1.0}  # with a small eps Adam makes rounding grow
    folder = prepare(tmp_path_factory.mktemp("old"), **changes)
    unpack(folder / "old")
    return folder


def unpack(workdir: pathlib.Path) -> None:
    shutil.copytree(ROOT / "tests" / "train" / "old_workdir", workdir)
    with tarfile.open(workdir / "arrays.tar.xz") as archive:
        archive.extractall(workdir, filter="data")
    (workdir / "arrays.tar.xz").unlink()


def call(base: pathlib.Path, *more: str) -> None:
    main.main([f"--config={base / 'micro.py'}", f"--workdir={base / 'old'}", *more])


@pytest.mark.parametrize(
    ("flag", "told"),
    [
        ("optimizer.learning_rate=0.004", r"optimizer\.learning_rate was 0\.1 and is 0\.004\."),
        ("eval_every_epochs=3", r"eval_every_epochs was 2 and is 3\."),
        ("compute_dtype=bfloat16", r'compute_dtype was "float32" and is "bfloat16"\.'),
        ("data.reference_transforms=true", r"data\.reference_transforms was false and is true\."),
        ("delta_m_baseline.sal=60", r'delta_m_baseline was \{\} and is \{"sal": 60\.0\}\.'),
    ],
)
def test_another_value_is_refused_under_its_new_name(base, flag, told):
    before = {path: path.stat().st_mtime_ns for path in (base / "old").rglob("*")}
    with pytest.raises(UserError, match=f"holds a run with another config: {told}"):
        call(base, f"--config.{flag}")
    assert {path: path.stat().st_mtime_ns for path in (base / "old").rglob("*") if path.name != ".lock"} == before


def test_it_goes_on_as_a_run_of_today_would(base):
    """Bit by bit if this machine rounds like the one that wrote the checkpoint; otherwise up to rounding."""
    any_time = [
        "--config.log_every_steps=1",
        "--config.fault_tolerance.max_unreadable_examples=9",
        "--config.encoder_microbatches=1",
    ]
    assert f"step {KILLED} to {STEPS}" in run(base, "old", *any_time)
    run(base, "whole")
    old, whole = (
        [
            {key: value for key, value in line.items() if key not in RANKING}
            for line in without_clock(log_of(base / name))
        ]
        for name in ("old", "whole")
    )
    assert [line["step"] for line in old] == [line["step"] for line in whole]
    assert [line.keys() for line in old] == [line.keys() for line in whole]
    ours, theirs = (arrays_of(base / name / "checkpoints" / str(STEPS)) for name in ("old", "whole"))
    assert ours.keys() == theirs.keys()
    if old[: KILLED + 1] == whole[: KILLED + 1]:
        assert old == whole
        assert all(ours[name].tobytes() == theirs[name].tobytes() for name in ours)
        assert (base / "old" / "metrics.json").read_text() == (base / "whole" / "metrics.json").read_text()
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-3, atol=1e-4, err_msg=name)
    assert json.loads((base / "whole" / "config.json").read_text())["eval_every_epochs"] == 2
    assert "eval/gain_over_first" not in lines_of(base / "whole")[-1]
