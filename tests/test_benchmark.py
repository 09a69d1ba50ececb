"""The command that measures: what it prints, and what it says to a mistake."""

import contextlib
import io
import json
import pathlib
import re

import jax
import pytest
import tiny_data
from tiny_data import write_tiny_dataset

from mtlora_jax import benchmark
from mtlora_jax.errors import UserError
from mtlora_jax.tasks import make_tasks

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


TRAIN_KEYS = [
    *("what", "images_per_second", "slowest", "fastest", "steps", "compile_seconds", "batch_size", "image_size", "tasks", "accumulation"),
    *("remat", "compute", "frozen", "device", "devices", "argument_bytes", "temporary_bytes", "output_bytes", "peak_bytes"),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """What is measured of the training step of a very small model; there is no data set and no model to start from."""
    nowhere = tmp_path_factory.mktemp("nothing") / "nowhere"
    small = ["tasks=semseg,normals,depth", "image_size=32,32", "batch_size=2", "data.name=folder", f"data.root={nowhere}", "init=nowhere"]
    model = ["backbone.variant=micro", "decoder.channels=2,2,2,2", "method.rank=2", "method.task_rank=0", "precision.frozen=bfloat16"]
    flags = [CONFIG, *(f"--config.{flag}" for flag in small + model), "--what=train", "--steps=2"]
    jax.config.update("jax_disable_most_optimizations", True)  # compiling takes longer than what is compiled
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        benchmark.main([*flags, "--json"])
    jax.config.update("jax_disable_most_optimizations", False)
    return json.loads(printed.getvalue())


def test_training(trained):
    assert list(trained) == TRAIN_KEYS
    assert 0 < trained["slowest"] <= trained["images_per_second"] <= trained["fastest"]
    assert (trained["steps"], trained["batch_size"], trained["frozen"], trained["devices"]) == (2, 2, "bfloat16", 1)
    assert trained["compile_seconds"] > 0
    assert min(trained[f"{name}_bytes"] for name in ("argument", "temporary", "output")) > 0
    assert trained["argument_bytes"] > 100 * trained["output_bytes"]  # the state is donated, so that only scalars are new


def test_training_for_people(trained, capsys):
    benchmark.tell_train(trained)
    table = capsys.readouterr().out
    for text in ("images/s", "compilation", "temporary memory", "2 x 32x32, semseg, normals, depth"):
        assert text in table
    assert re.search(r"frozen weights\W+bfloat16", table)
    benchmark.tell_train(trained | {"images_per_second": None, "peak_bytes": None})
    table = capsys.readouterr().out
    assert "not measured" in table
    assert "not told" in table


def test_noise_has_the_form_of_labels():
    tasks = make_tasks(tiny_data.TASKS)
    batch = benchmark.random_batch(tasks, 3, (32, 48))
    forms = {name: (value.shape, value.dtype.name) for name, value in batch.items()}
    assert forms.pop("image") == ((3, 32, 48, 3), "uint8")
    assert forms.pop("normals") == ((3, 32, 48, 3), "uint16")
    assert forms.pop("depth") == ((3, 32, 48), "float32")
    assert set(forms.values()) == {((3, 32, 48), "uint8")}
    assert all(batch[name].max() == max(tasks[name].channels, 2) - 1 for name in forms)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--what=sleep"], "--what=sleep .* there is data, train"),
        (["--what=train", "--steps=-1"], "--steps=-1 must be at least 0"),
        (["--what=train", "--steps=many"], "--steps"),
        (["--what=train", "--config.remat=layer"], "remat = 'layer' is not one of none, block, stage"),
        (["--what=train", "--config.accumulation=3"], "accumulation = 3 must be at least 1 and divide the 4 images"),
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
