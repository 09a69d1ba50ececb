"""The command that counts: what it prints, and what it says to a mistake."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from mtlora_jax import summary
from mtlora_jax.errors import UserError

ROOT = pathlib.Path(__file__).parents[1]
R64 = ("--config=configs/mtlora_tiny_448.py:64", "--config.data.root=none")  # class counts of the tasks, not of a data set at hand


def run(*args: str) -> subprocess.CompletedProcess[str]:
    """The command as a user gives it in the repository."""
    command = [sys.executable, "-m", "mtlora_jax.summary", *args]
    return subprocess.run(command, cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, timeout=120)


def test_json():
    done = run(*R64, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)  # which has nothing else in it
    assert list(told) == ["trainable", "total", "groups", "trainable_unused", "gmacs", "tasks", "image_size", "method"]
    assert told["trainable"] == 8_344_634
    assert told["total"] == 34_262_906
    assert told["groups"] == {
        "ta_lora": {"total": 4_521_984, "trainable": 4_521_984},
        "ts_lora": {"total": 276_480, "trainable": 276_480},
        "decoders": {"total": 1_946_624, "trainable": 1_946_624},
        "patch_embed": {"total": 4_896, "trainable": 4_896},
        "norms": {"total": 23_040, "trainable": 23_040},
        "position_tables": {"total": 23_322, "trainable": 23_322},
        "merging": {"total": 1_548_288, "trainable": 1_548_288},
        "linears": {"total": 25_918_272, "trainable": 0},
    }
    assert told["trainable_unused"]["count"] == 245_760
    assert told["gmacs"] == pytest.approx(30.96, abs=0.005)
    assert list(told["tasks"].items()) == [("semseg", 21), ("human_parts", 7), ("sal", 1), ("normals", 3)]
    assert told["image_size"] == [448, 448]
    assert (told["method"]["name"], told["method"]["rank"], told["method"]["task_rank"]) == ("mtlora", 64, 4)


def test_a_mistake_is_one_line():
    done = run(*R64, "--config.method.rnak=8")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: --config.method.rnak is unknown; did you mean method.rank?\n"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "--config"),
        ([*R64, "--jsn"], "unknown flag --jsn; did you mean --json"),
        (["--config=configs/mtlora_tiny_448.py:65"], "one of 16, 32, 64"),
        ([*R64, "--config.tasks=semseg,saal"], "unknown task 'saal'; did you mean 'sal'"),
        ([*R64, "--config.image_size=8,8"], "image_size"),
    ],
)
def test_refused(args, message, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match=message) as caught:
        summary.main(args)
    assert "\n" not in str(caught.value)
