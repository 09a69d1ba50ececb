"""The summary command: its output, and its error messages."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest
from paths import ROOT

from mtlora_jax import summary
from mtlora_jax.analysis import paper_tables
from mtlora_jax.analysis.paper_tables import CUT, OTHER_HEADS, REMARKS, ROWS, TABLE_6, linear_macs, trainable
from mtlora_jax.errors import UserError

# Without a data set, which could have other numbers of classes.
R64 = ("--config=configs/mtlora_tiny_448.py:64", "--config.data.root=none")


def run(*args: str) -> subprocess.CompletedProcess[str]:
    """Runs the command as a user does in the repository."""
    command = [sys.executable, "-m", "mtlora_jax.summary", *args]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    """The output of --json for the published model and a batch of 8."""
    done = run(*R64, "--json", "--batch_size=8")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # which has nothing else in it


def test_json(told):
    assert list(told) == [
        *("trainable", "total", "groups", "trainable_unused"),
        *("gmacs", "gmacs_linear", "gmacs_everything", "gmacs_fused", "modules"),
        *("tasks", "image_size", "method", "gmacs_merged", "total_merged", "per_task", "memory"),
    ]
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
    assert list(told["tasks"].items()) == [("semseg", 21), ("human_parts", 7), ("sal", 1), ("normals", 3)]
    assert told["image_size"] == [448, 448]
    assert (told["method"]["name"], told["method"]["rank"], told["method"]["task_rank"]) == ("mtlora", 64, 4)


def test_multiply_accumulates(told):
    """Attention: two products of 49 x 49 per window and head, 98 multiply-accumulates per token and channel."""
    assert told["gmacs"] == pytest.approx(30.96, abs=0.005)
    tokens, widths, depths = (12544, 3136, 784, 196), (96, 192, 384, 768), (2, 2, 6, 2)
    attention = sum(98 * n * c * d for n, c, d in zip(tokens, widths, depths, strict=True))
    assert told["gmacs"] - told["gmacs_linear"] == pytest.approx(attention / 1e9)
    assert told["gmacs"] < told["gmacs_everything"] < 1.05 * told["gmacs"]
    assert told["gmacs_fused"] == pytest.approx(25.959, abs=0.001)
    assert told["gmacs_merged"] == pytest.approx(21.448, abs=0.001)  # the plain network is 21.94


def test_modules(told):
    *stages, _ = [f"backbone.layers.{i}.{part}" for i in range(4) for part in ("blocks", "downsample")]
    assert list(told["modules"]) == ["backbone.patch_embed", *stages, *(f"decoders.{task}" for task in told["tasks"])]
    for key, whole in (("total", "total"), ("trainable", "trainable"), ("gmacs", "gmacs_linear")):
        assert sum(count[key] for count in told["modules"].values()) == pytest.approx(told[whole])
    assert told["modules"]["decoders.semseg"]["total"] == 500_709
    merging = told["modules"]["backbone.layers.0.downsample"]["gmacs"] * 1e9
    assert merging == pytest.approx(5 * 3136 * 384 * 192)  # of the shared stream and four tasks


def test_task_by_task(told):
    """Table 7 with the settings of Table 1."""
    per_task = told["per_task"]
    assert list(per_task) == list(told["tasks"])
    assert [per_task[task]["trainable"] for task in ("semseg", "normals")] == [6_691_359, 8_344_634]
    assert per_task["human_parts"]["trainable"] - per_task["semseg"]["trainable"] == 485_575 + 4 * 17_280
    for key in ("total", "gmacs", "gmacs_fused", "gmacs_merged", "total_merged"):
        assert per_task["normals"][key] == told[key]
    added = per_task["normals"]["gmacs"] - per_task["sal"]["gmacs"]
    assert added == pytest.approx(0.9788 + 0.6936 + 4 * 0.0271, abs=2e-4)  # decoder, three mergings, branches


def test_memory(told):
    """MTLoRA at 448 in a batch of 8."""
    memory = told["memory"]
    parts = ["parameters", "gradients", "optimizer", "batch", "activations", "recomputed"]
    assert list(memory) == [*parts, "total", "batch_size"]
    assert memory["batch_size"] == 8
    assert memory["gradients"] == 4 * told["trainable"]
    assert memory["parameters"] == 4 * (told["total"] + 8 * 1080)  # and the statistics of four BatchNorms
    assert memory["activations"] == pytest.approx(8.5e9, rel=0.03)


def test_tables(told, capsys):
    summary.tell(told)
    printed = capsys.readouterr().out
    for text in ("8,344,634", "245,760", "30.40", "30.96", "25.96", "21.45", "+554,695"):
        assert text in printed
    for text in ("backbone.layers.2.blocks", "activations"):
        assert text in printed


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.table}: {row.name}")
def test_trained_parameters_of_the_paper(row):
    count = trainable(row) / 1e6
    if row.printed is not None and row.note != OTHER_HEADS:
        assert count == pytest.approx(row.printed, abs=0.01 if row.note == CUT else 0.005)


@pytest.mark.parametrize("row", [row for row in TABLE_6 if not row.single], ids=lambda row: row.name)
def test_cost_of_the_paper(row):
    assert linear_macs(row) / 1e9 == pytest.approx(row.printed, rel=0.006)


def test_paper_as_json(capsys, monkeypatch):
    monkeypatch.setattr(paper_tables, "ROWS", (ROWS[1], next(row for row in ROWS if row.printed is None)))
    monkeypatch.setattr(paper_tables, "TABLE_6", TABLE_6[:1])
    summary.main(["--paper", "--json"])
    told = json.loads(capsys.readouterr().out)
    numbers = {"computed": 1_946_624, "printed": 1_940_000}
    assert told["rows"][0] == {"table": 1, "row": "decoders only", **numbers, "note": "cut off, not rounded"}
    assert told["rows"][1]["printed"] is None
    assert (told["rows"][2]["table"], told["rows"][2]["printed"]) == (6, 18_480_000_000)
    assert told["rows"][2]["computed"] == pytest.approx(18.44e9, abs=0.005e9)
    assert len(told["remarks"]) == len(REMARKS)


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
        ([*R64, "--batch_size=0"], "--batch_size=0 must be at least 1"),
        ([*R64, "--batch_size=6", "--config.encoder_microbatches=4"], "= 4 must be at least 1 and divide the 6 images"),
        (["--paper", "--config=configs/mtlora_tiny_448.py:64"], "unknown flag --config"),
        (["--paper", "--batch_size=8"], "--batch_size: --paper compares no memory"),
    ],
)
def test_refused(args, message, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match=message) as caught:
        summary.main(args)
    assert "\n" not in str(caught.value)
