"""Messages about training labels before the first step."""

import json
import re

import numpy as np
import pytest
import tiny_data
from PIL import Image
from tiny_runs import command, prepare, subprocess

from mtlora_jax.data import FolderDataset, survey
from mtlora_jax.errors import UserError


@pytest.fixture
def root(tmp_path):
    return tiny_data.write_tiny_dataset(
        tmp_path / "tiny", ["semseg", "human_parts", "sal", "normals", "depth"], train=12
    )


def paint(root, task, change):
    for path in (root / task).glob("train*.png"):
        Image.fromarray(change(np.asarray(Image.open(path)))).save(path)


def lacks(root, *tasks):
    return survey.describe_missing_values(FolderDataset(root, "train", tasks))


@pytest.mark.parametrize("count", [1, 2, 3, 6, 10, 377, 4998])
def test_any_beginning_of_the_order_is_spread(count):
    order = list(survey.spread_indices(count))
    assert sorted(order) == list(range(count))
    few = sorted(order[:20])
    assert max(np.diff([0, *few, count])) <= max(4 * count / 20, 2)


def test_nothing_is_told_of_labels_that_hold_everything(root):
    assert lacks(root, "semseg", "human_parts", "sal", "normals", "depth") == []
    assert survey.describe_label_encodings(FolderDataset(root, "train", ["semseg", "sal"])) == [
        "sal: labels are read as 0 not salient, 255 salient"
    ]


def test_a_class_that_no_label_has_is_told(root):
    paint(root, "semseg", lambda label: np.where(label == 2, 255, label).astype(np.uint8))
    assert lacks(root, "semseg", "sal") == ["semseg: no training label has class 2 'green'; 255 means ignored"]
    (root / "classes.json").unlink()
    (line,) = lacks(root, "semseg")
    assert line.startswith(
        "semseg: no training label has class 2 'bicycle', class 4 'boat', class 5 'bottle', class 6 'bus', "
    )
    assert line.endswith(" and 13 more; 255 means ignored")


def test_of_a_large_data_set_some_labels_are_looked_at(root, monkeypatch):
    monkeypatch.setattr(survey, "MAX_LABELS", 4)
    paint(root, "semseg", lambda label: np.zeros_like(label))
    (line,) = lacks(root, "semseg")  # the others may have the values that these four lack
    assert line.startswith("semseg: none of the 4 training labels looked at (of 12) has class 1 'red'")


@pytest.mark.parametrize(
    ("task", "change", "told"),
    [
        (
            "semseg",
            lambda label: np.where(label > 0, 255, 0),
            r"class 1 'red', .*; all 12 hold nothing but class 0 'background' and 255, which is",
        ),
        (
            "semseg",
            lambda label: np.full_like(label, 255),
            r"class 0 'background', .*; all 12 hold nothing but 255, which is ignored: there is",
        ),
        (
            "human_parts",
            lambda label: 0 * label,
            r"no training label has class 1 .* nothing but class 0 'background': there is nothing to learn",
        ),
        (
            "sal",
            lambda label: 0 * label,
            r"no training label has class 1 'salient'; all 12 hold nothing but class 0 'not salient'",
        ),
        (
            "normals",
            lambda label: 0 * label,
            r"^normals: no training label has a pixel whose value is known: there is nothing to learn",
        ),
        ("depth", lambda label: 0 * label, r"^depth: no training label has a pixel whose value is known"),
    ],
)
def test_labels_without_anything_to_learn_are_refused(root, task, change, told):
    paint(root, task, lambda label: change(label).astype(label.dtype))
    with pytest.raises(UserError, match=told):
        lacks(root, task)


def test_bad_labels_are_passed_over(root):
    for number in range(11):
        (root / "normals" / f"train{number}.png").write_bytes(b"no PNG")
    assert lacks(root, "normals") == []


def test_masks_of_0_and_255_as_two_classes_end_the_command_with_one_line(tmp_path):
    base = prepare(tmp_path)
    paint(base / "data", "semseg", lambda label: np.where(label > 0, 255, 0).astype(np.uint8))
    (base / "data" / "classes.json").write_text(json.dumps({"semseg": ["rest", "thing"]}))
    done = subprocess.run(command(base, "bad"), capture_output=True, text=True)
    assert done.returncode == 2
    expected = (
        r"error: semseg: no training label has class 1 'thing'; "
        "all 6 hold nothing but class 0 'rest' and 255, which is ignored: there is nothing to learn"
    )
    assert re.fullmatch(expected, done.stderr.strip())
    assert not (base / "bad").exists()
