"""Building PASCAL_MT from the dummy data: examples, configs, commands."""

import json
import os
import shutil
import subprocess
import sys

import cv2
import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds
from raw_dummies import DUMMY, PACKAGE, TRAIN, VAL, built

from mtlora_jax.errors import UserError
from tfds_pascal_context import builder, dummy, layout
from tfds_pascal_context.pascal_context import PascalRaw


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    """Every example of the dummy data, by id."""
    path = built(tmp_path_factory.mktemp("whole")).path
    source = tfds.builder_from_directory(str(path)).as_data_source()
    return {example["image_id"].decode(): example for split in source.values() for example in split}


def stored(folder, image_id, suffix=".png"):
    return np.array(PIL.Image.open(DUMMY / "PASCAL_MT" / folder / (image_id + suffix)))


def test_all_examples_in_the_order_of_the_lists_with_every_label(data):
    result = built(data)
    assert result.path == data / "pascal_context" / "all" / "1.0.0"
    assert result.examples == {"train": 4, "val": 3}
    assert (result.converted, result.resized) == (7, {"semseg": 1, "human_parts": 0, "sal": 1, "normals": 1, "edge": 0})
    assert result.raw_size == sum(path.stat().st_size for path in (DUMMY / "PASCAL_MT").rglob("dummy_*"))
    dataset = tfds.builder_from_directory(str(result.path))
    for split, ids in {"train": TRAIN, "val": VAL}.items():
        source = dataset.as_data_source(split)
        assert [example["image_id"].decode() for example in source] == ids
        for example in source:
            height, width, _ = example["image"].shape
            assert {name: example[name].shape for name in PascalRaw.tasks} == {
                name: (height, width, 3 if name == "normals" else 1) for name in PascalRaw.tasks
            }
    assert dataset.info.metadata["image_ids"] == {"train": TRAIN, "val": VAL}
    assert dataset.info.metadata["people"] == {
        "train": ["dummy_01", "dummy_02", "dummy_04"],
        "val": ["dummy_05", "dummy_07"],
    }
    assert not list(data.rglob("*.partial"))


def test_many_images_go_into_several_files_in_order(data, monkeypatch):
    monkeypatch.setattr(builder, "SHARD", 3)
    path = built(data, tasks=["sal"]).path
    assert sorted(file.name for file in path.glob("*train*")) == [
        f"pascal_context-train.array_record-0000{i}-of-00002" for i in (0, 1)
    ]
    source = tfds.builder_from_directory(str(path)).as_data_source("train")
    assert [example["image_id"].decode() for example in source] == TRAIN


def test_the_photograph_is_the_file_byte_for_byte(data):
    path = built(data, tasks=["sal"]).path
    source = tfds.builder_from_directory(str(path)).as_data_source(
        "train", decoders={"image": tfds.decode.SkipDecoding()}
    )
    assert source[2]["image"] == (DUMMY / "PASCAL_MT/JPEGImages/dummy_03.jpg").read_bytes()


def test_semseg_is_the_palette_index_from_either_folder(examples):
    for image_id, folder in {"dummy_01": "semseg/VOC12", "dummy_03": "semseg/pascal-context"}.items():
        expected = stored(folder, image_id)
        assert {0, 12, 255} <= set(np.unique(expected))
        np.testing.assert_array_equal(examples[image_id]["semseg"][..., 0], expected)


def test_human_parts_of_a_figure_drawn_by_hand(examples):
    label = examples["dummy_01"]["human_parts"][..., 0]
    figure = label[2:24, 40:52]  # where the person stands
    np.testing.assert_array_equal(figure[0], [0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0])  # hair
    np.testing.assert_array_equal(figure[7], [4, 4, 3, 3, 2, 2, 2, 2, 3, 3, 4, 4])  # hand, lower and upper arm, torso
    np.testing.assert_array_equal(figure[:, 4], [1] * 6 + [0] + [2] * 6 + [5] * 4 + [6] * 5)  # from head to foot
    label[2:24, 40:52] = 0
    assert not label.any()  # a dog's head does not count
    assert not any(examples[image_id]["human_parts"].any() for image_id in ("dummy_03", "dummy_05", "dummy_06"))


def test_labels_of_half_the_size_are_doubled(examples):
    for task, folder in {"semseg": "semseg/VOC12", "sal": "sal_distill"}.items():
        small = stored(folder, "dummy_04")
        assert small.shape == (24, 32)
        np.testing.assert_array_equal(examples["dummy_04"][task][..., 0], small.repeat(2, axis=0).repeat(2, axis=1))
    small = stored("normals_distill", "dummy_04").astype(float) / 127.5 - 1
    doubled = examples["dummy_04"]["normals"].astype(float) / 127.5 - 1
    np.testing.assert_allclose(np.linalg.norm(doubled[40], axis=-1), 1, atol=0.01)
    np.testing.assert_allclose(doubled[40:44, 10:20], small[20:22, 5:10].repeat(2, axis=0).repeat(2, axis=1), atol=0.03)


def test_normals_vanish_in_the_sky_only(examples):
    context = layout.read_context(DUMMY / "PASCAL_MT/pascal-context/trainval/dummy_01.mat")
    normals = examples["dummy_01"]["normals"]
    np.testing.assert_array_equal(normals.any(axis=-1), context != dummy.SKY)
    elsewhere = context != dummy.SKY
    np.testing.assert_array_equal(normals[elsewhere], stored("normals_distill", "dummy_01")[elsewhere])


def test_edges_lie_where_the_class_changes(examples):
    context = layout.read_context(DUMMY / "PASCAL_MT/pascal-context/trainval/dummy_07.mat")
    edge = examples["dummy_07"]["edge"][..., 0] > 0
    window = np.ones((3, 3), np.uint8)
    near_a_change = cv2.dilate(context, window) != cv2.erode(context, window)
    assert edge.any()
    assert not (edge & ~near_a_change).any()
    # Every change is within two pixels of an edge.
    assert not (near_a_change & ~cv2.dilate(edge.astype(np.uint8), np.ones((5, 5))).astype(bool)).any()


def test_a_choice_of_tasks_needs_their_files_only(raw, data):
    for folder in ("semseg", "sal_distill", "normals_distill", "pascal-context"):
        shutil.rmtree(raw / folder)
    result = built(data, raw, tasks=["human_parts"])
    assert result.path.parent.name == "human_parts"
    dataset = tfds.builder("pascal_context/human_parts", data_dir=str(data))
    assert set(dataset.info.features) == {"image_id", "image", "human_parts"}
    message = r"raw: no labels for semseg \(semseg/VOC12, .* the data set has --tasks=human_parts$"
    with pytest.raises(UserError, match=message):
        built(data, raw, tasks=["human_parts", "semseg"])
    assert set(os.listdir(data / "pascal_context" / "semseg-human_parts")) == set()


def test_order_of_tasks_does_not_matter_and_wrong_ones_are_named(data):
    assert built(data, tasks=["edge", "sal"]).path.parent.name == "sal-edge"
    unknown = "unknown task 'depth'; pascal_context has semseg, "
    for tasks, message in {("depth",): unknown, ("sal", "sal"): "once", (): "once"}.items():
        with pytest.raises(UserError, match=message):
            built(data, tasks=tasks)


def test_published_counts_are_demanded(raw, data):
    with pytest.raises(UserError, match=r"train.txt: lists 4 images, .* has 4998; give --allow_partial"):
        built(data, raw, allow_partial=False)
    assert built(data, raw).seconds > 0
    assert built(data, raw).seconds == 0  # already there
    message = r"1.0.0: holds 4 train and 3 val images, .* 4998 train and 5105 val; delete it"
    with pytest.raises(UserError, match=message):
        built(data, raw, allow_partial=False)


def test_command_prints_what_it_made_and_errors_in_one_line(data, tmp_path):
    def run(*flags):
        command = [sys.executable, "-m", "tfds_pascal_context.build", f"--data_dir={data}", "--workers=1", *flags]
        return subprocess.run(command, cwd=PACKAGE.parent, capture_output=True, text=True)

    done = run(f"--manual_dir={DUMMY}", "--allow_partial")
    assert done.returncode == 0
    assert "all/1.0.0: 4 train and 3 val images, " in done.stdout
    assert "7 images converted in " in done.stdout
    assert "labels resized to their image: semseg 1, sal 1, normals 1" in done.stdout
    failed = run(f"--manual_dir={tmp_path}", "--tasks=edge")
    assert failed.returncode == 2
    (line,) = failed.stderr.strip().splitlines()
    assert line.startswith(f"error: {tmp_path}: holds neither JPEGImages/ nor PASCAL_MT.tgz")


def test_verify_is_a_command_with_workers(raw, data):
    def run(*flags):
        command = [sys.executable, "-m", "tfds_pascal_context.verify", "--allow_partial", "--workers=2", *flags]
        return subprocess.run(command, cwd=PACKAGE.parent, capture_output=True, text=True)

    built(data)
    for whole in (run(f"--manual_dir={DUMMY}"), run(f"--data_dir={data}")):
        assert whole.returncode == 0, whole.stderr
        assert whole.stdout.startswith("7 images, 7 usable with all requested tasks; 5 of 5 tasks usable")
    damaged = raw / "human_parts" / "dummy_02.mat"
    damaged.write_bytes(damaged.read_bytes()[:200])
    found = run(f"--manual_dir={raw}")
    assert found.returncode == 2
    first, last = found.stdout.splitlines()
    assert first.startswith(f"{damaged}: ")
    assert "7 images, 6 usable with all requested tasks; 5 of 5 tasks usable: semseg 7, human_parts 6" in last
    assert found.stderr.splitlines() == [f"error: {raw}: 1 problem(s), listed above"]


def test_nothing_imports_tensorflow(data):
    code = """
import sys
from tfds_pascal_context.build import build
build(sys.argv[1], sys.argv[2], workers=1, allow_partial=True)
import tensorflow_datasets as tfds
tfds.builder("pascal_context", data_dir=sys.argv[2]).as_data_source("val")[0]
assert "tensorflow" not in sys.modules and "jax" not in sys.modules
"""
    command = [sys.executable, "-c", code, str(DUMMY), str(data)]
    subprocess.run(command, cwd=PACKAGE.parent, check=True, capture_output=True)


def test_a_script_without_a_guard_may_build_with_workers(data, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from tfds_pascal_context.build import build\n"
        f"build({str(DUMMY)!r}, {str(data)!r}, workers=2, allow_partial=True)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(PACKAGE.parent)}
    subprocess.run([sys.executable, str(script)], env=environment, check=True, capture_output=True)


def test_conventions_of_tfds(data):
    dataset = tfds.builder("pascal_context", data_dir=str(data))
    assert dataset.info.full_name == "pascal_context/all/1.0.0"
    assert len(dataset.builder_configs) == 31
    assert {"all", "semseg-human_parts", "normals-edge"} <= dataset.builder_configs.keys()
    assert "Attentive Single-Tasking" in dataset.info.citation
    assert "multi-task learning" in dataset.info.description
    assert set(dataset.get_metadata().tags) <= set(tfds.core.dataset_metadata.valid_tags())
    download_config = tfds.download.DownloadConfig(manual_dir=str(DUMMY))
    dataset = tfds.builder("pascal_context/edge", data_dir=str(data), allow_partial=True, workers=1)
    dataset.download_and_prepare(download_config=download_config, file_format="array_record")
    assert len(dataset.as_data_source("train")) == 4


def test_dummy_data_is_small_and_can_be_written_again(tmp_path):
    files = [path for path in DUMMY.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 200_000
    dummy.write_dummy_data(tmp_path)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(path.relative_to(tmp_path) for path in written) == sorted(path.relative_to(DUMMY) for path in files)
    for path in written:
        if path.suffix == ".png":
            np.testing.assert_array_equal(PIL.Image.open(path), PIL.Image.open(DUMMY / path.relative_to(tmp_path)))


def test_metadata_file_is_plain_json(data):
    assert json.loads((built(data, tasks=["sal"]).path / "metadata.json").read_text()) == {
        "image_ids": {"train": TRAIN, "val": VAL}
    }
