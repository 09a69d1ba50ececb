"""The values of saliency and edge files have one meaning in a whole data set."""

import json

import numpy as np
import pytest
import tiny_data
from PIL import Image

from mtlora_jax.data import FolderDataset
from mtlora_jax.errors import UserError
from mtlora_jax.predict.images import Labels
from mtlora_jax.tasks import IGNORE, TASKS, make_tasks

GREY = [0, 3, 20, 60, 90, 127, 128, 160, 200, 255]
SAME = {  # what the six training files hold: what labels then are
    "0/255": ([[0, 255], [0, 255], [0], [255], [0, 255], [0]], [[0, 1], [0, 1], [0], [1], [0, 1], [0]]),
    "0/1": ([[0, 1], [0, 1], [0], [1], [0, 1], [0]], [[0, 1], [0, 1], [0], [1], [0, 1], [0]]),
    "255 is not known": (
        [[0, 1], [0, 1, 255], [0], [255], [0, 255], [0, 1]],
        [[0, 1], [0, 1, IGNORE], [0], [IGNORE], [0, IGNORE], [0, 1]],
    ),
    "grey": ([GREY, [0, 255], [0, 100], [0, 200], [50], [0]], [[0] * 6 + [1] * 4, [0, 1], [0, 0], [0, 1], [0], [0]]),
    "nothing": ([[0]] * 6, [[0]] * 6),
}
MIXED = {  # files that disagree: the words of the error
    "0/1 and 0/255": (
        [[0, 255]] * 5 + [[0, 1]],
        r"train5.png: sal has the values 0, 1, but .*png has 0, 255; expected one meaning",
    ),
    "255 of 0/1": (
        [[0, 1]] * 5 + [[0, 255]],
        r"train5.png: sal has the values 0, 255, but .*png has 0, 1; expected one meaning",
    ),
    "0/255 and one 0/1/255": ([[0, 255]] * 5 + [[0, 1, 255]], r"train5.png: sal has the values 0, 1, 255, but"),
    "grey and 0/1": (
        [GREY] * 5 + [[0, 1]],
        r"train5.png: sal has the values 0, 1, but .* has 0, 3, 20, 60, 90, ..., 255",
    ),
    "three values": (
        [[0, 128, 255]] * 6,
        r"sal has the values 0, 128, 255; expected 0 and 255, or 0 and 1, or .*; labels.json",
    ),
    "class numbers": ([[0, 1, 2, 5, 9]] * 6, r"sal has the values 0, 1, 2, 5, 9; expected"),
    "many class numbers": ([list(range(20))] * 6, r"sal has the values 0, 1, 2, 3, 4, ..., 19; expected"),
}


@pytest.fixture
def root(tmp_path):
    return tiny_data.write_tiny_dataset(tmp_path / "tiny", ["sal", "edge"], train=6, val=0, size=(12, 24))


def put(root, rows, task="sal"):
    """Write files of these values, six rows of them; return a function that reads row after row."""
    (root / "splits" / "val.txt").write_text("train0\n")
    for number, values in enumerate(rows):
        pixels = np.resize(np.array(values, np.uint8), (12, 24))
        pixels[:, len(values) :] = values[0]
        Image.fromarray(pixels).save(root / task / f"train{number}.png")
    return root


def first_row(dataset, task, values):
    return [dataset[number][task][0, : len(row)].tolist() for number, row in enumerate(values)]


@pytest.mark.parametrize("task", ["sal", "edge"])
@pytest.mark.parametrize("case", SAME)
def test_one_meaning_for_all_files(root, case, task):
    values, expected = SAME[case]
    dataset = FolderDataset(put(root, values, task), "train", [task])
    assert first_row(dataset, task, values) == expected
    assert FolderDataset(root, "val", [task]).tasks[task] == dataset.tasks[task]
    assert (
        Labels(root, make_tasks([task])).read(task, root / "train1.jpg", (12, 24))[0, : len(values[1])].tolist()
        == expected[1]
    )


@pytest.mark.parametrize("case", MIXED)
def test_files_that_disagree_are_refused_with_their_values(root, case):
    values, told = MIXED[case]
    with pytest.raises(UserError, match=told):
        FolderDataset(put(root, values), "train", ["sal"])


def test_a_few_that_disagree_are_bad_examples(tmp_path):
    root = tiny_data.write_tiny_dataset(tmp_path / "tiny", ["sal"], train=40, val=1, size=(12, 24))
    put(root, [[0, 255]] * 39 + [[0, 1, 255]])
    dataset = FolderDataset(root, "train", ["sal"])
    assert dataset[38]["sal"][0, :2].tolist() == [0, 1]
    with pytest.raises(
        UserError, match=r"sal/train39.png: has the values 0, 1, 255; expected 0 no, 255 yes, as in all the data set"
    ):
        dataset[39]


@pytest.mark.parametrize(
    ("meaning", "expected"),
    [
        ("0/255", "values 0, 1, 255"),
        ("0/1", "values 0, 1, 255"),
        ("0/1/255", [0, 1, IGNORE]),
        ("grey", "values 0, 1, 255"),
        ("0/2", 'sal is "0/2"; expected one of "0/255", "0/1"'),
        (3, "sal is 3"),
    ],
)
def test_the_meaning_can_be_said(root, meaning, expected):
    put(root, [[0, 1, 255]] + [[0, 255]] * 5)
    (root / "labels.json").write_text(json.dumps({"sal": meaning}))
    if isinstance(expected, list):
        assert FolderDataset(root, "train", ["sal"])[0]["sal"][0, :3].tolist() == expected
    else:
        with pytest.raises(UserError, match=expected):
            FolderDataset(root, "train", ["sal"])[0]


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"saliency": "0/1"}, "labels.json: 'saliency' is no task; did you mean 'sal'"),
        ({"semseg": "0/1"}, "'semseg' is a task without such an entry; expected one of sal, edge"),
        ([], "labels.json: must be"),
    ],
)
def test_bad_entries_of_labels_json(root, told, message):
    (root / "labels.json").write_text(json.dumps(told))
    with pytest.raises(UserError, match=message):
        FolderDataset(root, "train", ["sal"])


def test_three_values_can_be_said_to_be_grey(root):
    put(root, [[0, 128, 255]] * 6)
    (root / "labels.json").write_text('{"sal": "grey"}')
    assert FolderDataset(root, "train", ["sal"])[0]["sal"][0, :3].tolist() == [0, 1, 1]


def test_bits_per_pixel(root):
    """An optimiser of PNGs uses as few bits as possible; white stays white."""
    rows = {1: ([0, 1], [0, 1]), 2: ([0, 3], [0, 1]), 4: ([0, 15], [0, 1]), 8: ([0, 255], [0, 1])}
    for number, (bits, (values, _)) in enumerate(rows.items()):
        (root / "sal" / f"train{number}.png").write_bytes(tiny_data.png(np.resize(values, (12, 24)), bits))
    dataset = FolderDataset(root, "train", ["sal"])
    for number, (_, expected) in enumerate(rows.values()):
        assert dataset[number]["sal"][0, :2].tolist() == expected
    for number in range(6):  # 1 is yes with any number of bits
        bits = (1, 2, 4, 8, 8, 8)[number]
        (root / "sal" / f"train{number}.png").write_bytes(tiny_data.png(np.resize([0, 1], (12, 24)), bits))
    dataset = FolderDataset(root, "train", ["sal"])
    assert [dataset[number]["sal"][0, :2].tolist() for number in range(6)] == [[0, 1]] * 6


@pytest.mark.parametrize("name", ["sal", "edge"])
def test_of_a_single_file(name):
    assert TASKS[name]().decode(tiny_data.png([[0, 1, 255]], 8), "a.png").tolist() == [[0, 1, IGNORE]]
    assert TASKS[name]().decode(tiny_data.png([[0, 15, 8, 7]], 4), "a.png").tolist() == [[0, 1, 1, 0]]
    with pytest.raises(UserError, match="'0-1' is not one of 0/255, "):
        TASKS[name](encoding="0-1")
