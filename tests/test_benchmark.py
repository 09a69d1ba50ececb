"""The command that measures: what it prints, and what it says to a mistake."""

import json
import pathlib

import pytest
from tiny_data import write_tiny_dataset

from mtlora_jax import benchmark
from mtlora_jax.errors import UserError

CONFIG = f"--config={pathlib.Path(__file__).parents[1] / 'configs' / 'mtlora_tiny_448.py'}:64"
KEYS = [
    *("what", "images_per_second", "slowest", "fastest", "per_worker", "workers", "cores", "batch_size", "image_size", "tasks"),
    *("images", "rounds"),
]


@pytest.fixture
def flags(tmp_path):
    data = write_tiny_dataset(tmp_path / "tiny", ("semseg", "sal"))
    small = ["tasks=semseg,sal", "image_size=32,48", "batch_size=4", "data.name=folder", f"data.root={data}"]
    return [CONFIG, *(f"--config.{flag}" for flag in small)]


@pytest.mark.parametrize("workers", [0, 2])
def test_json(flags, workers, capsys):
    benchmark.main([*flags, f"--config.data.workers={workers}", "--what=data", "--json"])
    measured = json.loads(capsys.readouterr().out)  # which has nothing else in it
    assert list(measured) == KEYS
    assert 0 < measured["slowest"] <= measured["images_per_second"] <= measured["fastest"]
    assert measured["per_worker"] == measured["images_per_second"] / max(workers, 1)
    assert measured["images"] == 4 * 4 * max(workers, 1)
    assert (measured["tasks"], measured["image_size"]) == (["semseg", "sal"], [32, 48])


def test_for_people(flags, capsys):
    benchmark.main([*flags, "--config.data.workers=0", "--config.data.parity=true", "--what=data"])
    line = capsys.readouterr().out
    assert line.startswith("data: ")
    assert "0 workers" in line
    assert "32x48, semseg, sal" in line


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--what=train"], "--what=train .* there is data"),
        ([], "--what"),
        (["--what=data", "--jsn"], "unknown flag --jsn; did you mean --json"),
        (["--what=data", "--config.data.root=nowhere"], "nowhere: no such folder"),
        (["--what=data", "--config.data.name=pascal_context", "--config.data.root=nowhere"], "no such data set; build it with"),
        (["--what=data", "--config.data.augmentation.discrete=true", "--config.data.augmentation.scale=0,1"], "scale"),
    ],
)
def test_refused(flags, more, message):
    with pytest.raises(UserError, match=message) as caught:
        benchmark.main([*flags, *more])
    assert "\n" not in str(caught.value)
