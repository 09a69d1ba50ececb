"""The commands that draw: panels of predictions and plots of runs."""

import json

import micro
import numpy as np
import PIL.Image
import pytest
from tiny_data import CLASSES, write_tiny_dataset

from mtlora_jax import folder, parameters, plot, predict
from mtlora_jax.errors import UserError


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a model of one stage and a data set for it."""
    base = tmp_path_factory.mktemp("pictures")
    write_tiny_dataset(base / "data", tasks=("semseg", "sal"))
    architecture = micro.architecture("full", ("semseg", "sal"), stages=1)
    architecture["tasks"]["semseg"] = len(CLASSES)
    folder.save(base / "model", architecture, parameters.arrays(micro.fresh(architecture)), {"classes": {"semseg": CLASSES}})
    return base


def draw(base, *more):
    predict.main([f"--model={base / 'model'}", f"--images={base / 'data' / 'images'}", f"--output={base / 'panels'}", *more])


def test_panel_shows_image_predictions_and_labels(made):
    draw(made, "--only=val001", f"--labels={made / 'data'}")
    assert [file.name for file in (made / "panels").iterdir()] == ["val001.png"]
    panel = np.asarray(PIL.Image.open(made / "panels" / "val001.png"))
    height = 40 * 320 // 56  # of the image, drawn 320 wide
    assert panel.shape == (2 * (height + predict.TITLE), 3 * 320 + 2 * predict.GAP, 3)
    image = np.asarray(PIL.Image.open(made / "data" / "images" / "val001.png"))
    drawn = panel[predict.TITLE : predict.TITLE + height, :320]
    assert np.array_equal(drawn[height // 2, 160], image[20, 28])
    label = panel[-height:, 320 + predict.GAP : 640 + predict.GAP]
    classes = np.asarray(PIL.Image.open(made / "data" / "semseg" / "val001.png"))
    assert len(np.unique(label.reshape(-1, 3), axis=0)) == len(np.unique(classes))


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--only=nobody"], "no image nobody"),
        (["--model=nowhere"], "nowhere is not a model folder"),
        (["--images=nowhere"], "nowhere: no such file or folder"),
    ],
)
def test_bad_input_is_named(made, flags, told):
    with pytest.raises(UserError, match=told):
        draw(made, *flags)


def test_plot_of_two_runs(tmp_path):
    for run, slope in (("a", 1.0), ("b", 2.0)):
        (tmp_path / run).mkdir()
        lines = [{"step": step, "loss": 10 - slope * step} for step in range(1, 5)] + [{"step": 4, "eval/semseg/mIoU": 10 * slope}]
        (tmp_path / run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    plot.main([str(tmp_path / "a"), str(tmp_path / "b"), f"--output={tmp_path / 'plots' / 'curves.png'}"])
    drawn = np.asarray(PIL.Image.open(tmp_path / "plots" / "curves.png").convert("RGB"))
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 10
    with pytest.raises(UserError, match=r"nothing is no workdir of a run"):
        plot.main([str(tmp_path / "nothing"), "--output=x.png"])
