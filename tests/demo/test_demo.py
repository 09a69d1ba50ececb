"""The demo: its data set, built like PASCAL_MT, its pre-trained weights and its pictures."""

import functools
import json
import os
import pathlib

import numpy as np
import pytest
from paths import ROOT

from mtlora_jax import config as configs
from mtlora_jax import experiment
from mtlora_jax.data.tfds import PascalContext
from mtlora_jax.demo import __main__ as command
from mtlora_jax.demo.scenes import EVENING, parallel, render
from mtlora_jax.errors import UserError
from mtlora_jax.model_io import model_folder
from tfds_pascal_context import rendered as demo
from tfds_pascal_context.build import build

TASKS = ("semseg", "human_parts", "sal", "normals", "edge")
COUNTS = {"train": 4, "val": 2}
SIZE = (72, 96)


@pytest.fixture(autouse=True, scope="module")
def one_process():
    """Renders in this process: starting workers takes longer than the few scenes of these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "map_on_all_cores", lambda function, items, title: map(function, items))
        yield


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory, one_process):
    root = tmp_path_factory.mktemp("demo")
    demo.write(root / "raw", COUNTS, SIZE)
    built = build(root / "raw", root / "data", workers=1, allow_partial=True)
    assert built.examples == COUNTS
    return root / "data"


@pytest.mark.parametrize("split", COUNTS)
def test_labels_arrive_as_they_were_rendered(data_dir, split):
    dataset = PascalContext(data_dir, split, TASKS)
    assert len(dataset) == COUNTS[split]
    for index in range(len(dataset)):
        example = dataset[index]
        scene = render(int(example["image_id"].removeprefix("scene_")), SIZE, EVENING)
        assert np.mean(np.abs(example["image"].astype(int) - scene.image)) < 6  # JPEG
        np.testing.assert_array_equal(example["semseg"], scene.semseg)
        np.testing.assert_array_equal(example["sal"], scene.sal)
        masks = [mask for category, mask, _ in scene.objects if category == 15]
        people = np.any(masks or [np.zeros(SIZE, bool)], axis=0)
        np.testing.assert_array_equal(example["human_parts"] > 0, people)
        known = example["normals"][..., 0] != 255
        assert known.any()
        np.testing.assert_allclose(example["normals"][known], scene.normals[known], atol=1 / 255 + 1e-6)
        assert 0 < np.mean(example["edge"]) < 0.5


def test_scenes_of_the_splits_and_of_pre_training_differ():
    from mtlora_jax.demo.pretrain import FIRST_SEED

    first = sorted([*demo.SPLITS.values(), FIRST_SEED])
    assert min(np.diff(first)) >= 10_000


def test_scenes_rendered_by_workers_are_those_rendered_here():
    seeds = [3, 4]
    pictures = parallel.map_on_all_cores(functools.partial(rendered, size=(32, 40)), seeds, "")
    for seed, picture in zip(seeds, pictures, strict=True):
        np.testing.assert_array_equal(picture, rendered(seed, (32, 40)))


def rendered(seed, size):
    return render(seed, size).image


def test_a_worker_that_dies_is_one_line():
    with pytest.raises(UserError, match=r"^drawing: a worker process died"):
        list(parallel.map_on_all_cores(die, [1, 2], "drawing"))


def die(_):
    os._exit(1)


def test_written_again_nothing_changes(tmp_path):
    demo.write(tmp_path, {"train": 1, "val": 1}, (40, 48))
    files = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    assert len(files) == 2 * 6 + 2
    (tmp_path / "ImageSets" / "Context" / "val.txt").unlink()  # as after an interruption
    demo.write(tmp_path, {"train": 1, "val": 1}, (40, 48))
    labels = {path: content for path, content in files.items() if path.suffix == ".png"}
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.png")} == labels


@pytest.mark.parametrize("method", ["mtlora", "decoders_only"])
def test_pretrained_weights_are_small_and_fit(method, tmp_path):
    config = configs.load(f"{ROOT}/configs/demo.py:{method}")
    weights = pathlib.Path(config.init_from) / "model.safetensors"
    assert weights.stat().st_size <= 6e6
    _, arrays = model_folder.read(config.init_from)
    assert sum(array.size for array in arrays.values()) <= 3_000_000
    made = experiment.build_experiment(config, experiment.build_tasks(config), tmp_path)
    kept = {**made.frozen, **made.trainable}
    assert all(np.array_equal(kept[path], array.astype(np.float32)) for path, array in arrays.items())


def test_both_methods_start_from_the_same_decoders(tmp_path):
    made = {}
    for method in command.METHODS:
        config = configs.load(f"{ROOT}/configs/demo.py:{method}")
        made[method] = experiment.build_experiment(config, experiment.build_tasks(config), tmp_path).trainable
    decoders = {path for path in made["decoders_only"] if path.startswith("decoders.")}
    assert len(decoders) > 20
    assert all(np.array_equal(made["mtlora"][path], made["decoders_only"][path]) for path in decoders)


def test_configs_differ_in_the_method_only():
    loaded = [configs.load(f"{ROOT}/configs/demo.py:{method}") for method in command.METHODS]
    one, other = (json.loads(config.to_json_best_effort()) for config in loaded)
    assert {key for key in one if one[key] != other[key]} == {"method"}


def test_comparison_and_panels(data_dir, tmp_path, capsys, monkeypatch):
    for number, method in enumerate(command.METHODS):
        config = configs.load(f"{ROOT}/configs/demo.py:{method}", [f"data.root={data_dir}"])
        made = experiment.build_experiment(config, experiment.build_tasks(config), tmp_path / method)
        made.save(tmp_path / method / "best", made.trainable, made.batch_stats, {})
        scores = {f"eval/{name}/{task.primary_metric}": 10.0 * number for name, task in made.tasks.items()}
        lines = [{"step": 0, **dict.fromkeys(scores, 1.5)}, {"step": 1, "loss": 3.0}, {"step": 2, **scores}]
        (tmp_path / method / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setenv("COLUMNS", "160")
    command.print_comparison(tmp_path)
    rows = [line for line in capsys.readouterr().out.splitlines() if "│" in line]
    assert ["1.50" in rows[-3], "360,096" in rows[-2], "0.00" in rows[-2], "10.00" in rows[-1]] == [True] * 4
    monkeypatch.setattr(command, "PANELS", 1)
    command.draw_panels(config, tmp_path)
    assert [path.name for path in (tmp_path / "panels").iterdir()] == ["scene_100000.png"]
