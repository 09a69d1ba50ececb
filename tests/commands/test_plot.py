"""The command that plots runs."""

import json
import pathlib

import numpy as np
import PIL.Image
import pytest

from mtlora_jax import plot
from mtlora_jax.errors import UserError


def test_plot_of_two_runs(tmp_path):
    for run, slope in (("a", 1.0), ("b", 2.0)):
        (tmp_path / run).mkdir()
        lines = [{"step": step, "loss": 10 - slope * step, "loss/semseg": 1 / step} for step in range(1, 5)] + [
            {"step": 4, "eval/semseg/mIoU": 10 * slope}
        ]
        (tmp_path / run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    plot.main([str(tmp_path / "a"), str(tmp_path / "b"), f"--output={tmp_path / 'plots' / 'curves.png'}"])
    drawn = np.asarray(PIL.Image.open(tmp_path / "plots" / "curves.png").convert("RGB"))
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 10
    for suffix, start in (("svg", b"<?xml"), ("pdf", b"%PDF")):
        plot.main([str(tmp_path / "a"), f"--output={tmp_path / 'plots' / f'curves.{suffix}'}"])
        assert (tmp_path / "plots" / f"curves.{suffix}").read_bytes().startswith(start)


def test_runs_of_the_same_name_have_curves_of_their_own():
    runs = [pathlib.Path(run) for run in ("first/mtlora", "second/mtlora", "second/full")]
    assert list(plot.named(runs)) == ["first/mtlora", "second/mtlora", "full"]


def test_the_cut_off_last_line_of_a_killed_run_is_left_out(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 2.5}\n{"step": 2, "loss": null}\n{"step": 3, "lo')
    assert plot.read_log(tmp_path) == [{"step": 1, "loss": 2.5}, {"step": 2, "loss": None}]


@pytest.mark.parametrize(
    ("log", "output", "told"),
    [
        (None, "x.png", r"run is no workdir of a run: it has no log\.jsonl"),
        ("", "x.png", r"log\.jsonl holds no step yet"),
        ('{"st\n{"step": 1}\n', "x.png", r"log\.jsonl: line 1 is not one that a run writes"),
        ('{"loss": 1}\n{"step": 1}\n', "x.png", r"log\.jsonl: line 1 is not one that a run writes"),
        ('{"step": 1}\n', "x.jpeg2000", r"x\.jpeg2000: expected a file whose name ends in \.png, \.pdf, \.svg"),
        ('{"step": 1}\n', "run/log.jsonl/x.png", r"run/log\.jsonl is a file"),
        ('{"step": 1}\n', "/proc/x.png", r"/proc: cannot be written"),
    ],
)
def test_bad_input_writes_nothing(tmp_path, log, output, told):
    (tmp_path / "run").mkdir()
    if log is not None:
        (tmp_path / "run" / "log.jsonl").write_text(log)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=told):
        plot.main([str(tmp_path / "run"), f"--output={tmp_path / output}"])
    assert sorted(tmp_path.rglob("*")) == before
