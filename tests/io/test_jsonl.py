"""Logs after kills, power cuts and edits by hand."""

import json
import os

import pytest

from mtlora_jax import plot
from mtlora_jax.errors import UserError
from mtlora_jax.io.jsonl import MAX_LINE, parse_line, read_lines
from mtlora_jax.metric_writers.writer import forget_after
from mtlora_jax.tasks import make_tasks
from mtlora_jax.train.history import EvalHistory

GOOD = '{"step": 3, "loss": 0.5, "eval/semseg/mIoU": 40.0}'
WRONG_STEPS = ("null", '"3"', "[3]", "true", "-1", "1e300", "NaN", "2.5", str(10**30), "9" * 5000)
WRONG_LOSSES = ('"low"', "{}")


@pytest.mark.parametrize(
    "text",
    [
        *("", "null", "7", '"step"', "[1]", "{}", '{"loss": 1}'),
        *(f'{{"step": {step}}}' for step in WRONG_STEPS),
        *(f'{{"step": 3, "loss": {loss}}}' for loss in WRONG_LOSSES),
        *('{"step": 3, "lo', "[" * 100_000, '{"step": 3} {"step": 4}'),
    ],
)
def test_what_is_no_line(tmp_path, text):
    """Such a line is skipped wherever it is, and no other line is."""
    assert parse_line(text) is None
    path = tmp_path / "log.jsonl"
    for content in (f"{text}\n{GOOD}\n", f"{GOOD}\n{text}"):
        path.write_text(content)
        assert read_lines(path) == [json.loads(GOOD)]
        forget_after(path, 3)
        assert path.read_text() == f"{GOOD}\n"
    path.write_text(f"{text}\n{GOOD}\n")
    with pytest.raises(UserError, match="line 1 is not one that a run writes"):
        plot.read_log(tmp_path)


def test_what_is_not_finite_is_not_known():
    assert parse_line(f'{{"step": 3, "a": NaN, "b": -Infinity, "c": 1e999, "d": {10**400}, "e": null}}') == {
        "step": 3,
        **dict.fromkeys("abcde"),
    }


@pytest.mark.parametrize(
    "encode",
    [
        lambda text: b"\xef\xbb\xbf" + text.encode(),
        lambda text: text.encode("utf-16"),
        lambda text: text.replace("\n", "\r\n").encode(),
        lambda text: b"\0" * 4096 + text.encode(),
        lambda text: text.encode() + b"\0" * 4096,
        lambda text: b"\xff\xfe\n"[2:] + b'{"step": 2, "\xff": 1, "lo\n' + text.encode(),
    ],
    ids=["mark", "utf-16", "windows", "zeros before", "zeros behind", "no text"],
)
def test_bytes(tmp_path, encode):
    path = tmp_path / "log.jsonl"
    path.write_bytes(encode(f"{GOOD}\n"))
    assert read_lines(path) == [json.loads(GOOD)]
    forget_after(path, 5)
    assert path.read_text() == f"{GOOD}\n"


def test_a_line_without_end_takes_no_memory(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text(f"{GOOD}\n")
    os.truncate(path, 50 * MAX_LINE)
    with path.open("a") as log:
        log.write(f"\n{GOOD}\n")
    assert read_lines(path) == [json.loads(GOOD)] * 2


def test_a_run_goes_on_from_the_evaluations_that_are_whole(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text(f'[]\n{GOOD}\n{{"step": 4, "eval/other/score": 1}}\n{{"step": 5, "eval/semseg/mIoU": NaN}}\n')
    history = EvalHistory(make_tasks(["semseg"]), {"semseg": 20.0})
    history.restore(path, until_step=4)
    assert (history.last_step, history.best) == (3, 100.0)


def test_dropped_lines_are_told(tmp_path, capsys):
    path = tmp_path / "log.jsonl"
    path.write_text(f"[]\n{GOOD}\n")
    forget_after(path, 3)
    assert "1 lines that no run writes are left out" in capsys.readouterr().out.replace("\n", " ")


def test_no_log(tmp_path):
    assert read_lines(tmp_path / "log.jsonl") == []
