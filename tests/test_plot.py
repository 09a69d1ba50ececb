"""The command that plots runs."""

import json

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
    with pytest.raises(UserError, match=r"nothing is no workdir of a run"):
        plot.main([str(tmp_path / "nothing"), "--output=x.png"])
