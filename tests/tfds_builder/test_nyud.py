"""NYUD_MT: labels, configs, and bad files."""

import functools
import pathlib
import shutil

import numpy as np
import PIL.Image
import pytest
import raw_dummies
import tensorflow_datasets as tfds
from raw_dummies import NYUD

from mtlora_jax.errors import UserError
from tfds_pascal_context import verify
from tfds_pascal_context.nyud import NyudRaw

built = functools.partial(raw_dummies.built, dataset="nyud")


@pytest.fixture
def raw(tmp_path):
    return pathlib.Path(shutil.copytree(NYUD, tmp_path / "raw"))


def source(data, split="train", **kwargs):
    return tfds.builder_from_directory(str(built(data, **kwargs).path)).as_data_source(split)


def test_labels_are_those_of_the_files(tmp_path):
    examples = source(tmp_path)
    assert [example["image_id"] for example in examples] == [b"0001", b"0002"]
    for example in examples:
        image_id = example["image_id"].decode()
        stored = {folder: np.load(NYUD / folder / f"{image_id}.npy") for folder in ("normals", "edge", "depth")}
        classes = np.array(PIL.Image.open(NYUD / "segmentation" / f"{image_id}.png"))
        assert 0 in classes or image_id == "0002"
        semseg = example["semseg"][..., 0]
        np.testing.assert_array_equal(semseg, np.where(classes == 0, 255, classes.astype(int) - 1))
        np.testing.assert_array_equal(example["edge"][..., 0], 255 * stored["edge"])
        assert example["depth"].dtype == np.uint16
        metres = example["depth"][..., 0] / 1000
        np.testing.assert_allclose(metres, stored["depth"], atol=0.0005001)  # half a millimetre
        known = stored["normals"].any(axis=-1)
        assert not known.all()
        np.testing.assert_array_equal(example["normals"].any(axis=-1), known)
        decoded = example["normals"][known].astype(float) * 2 / 255 - 1
        np.testing.assert_allclose(decoded, stored["normals"][known], atol=1.001 / 255)  # half a step of the file


def test_config_of_some_tasks_and_no_people(tmp_path):
    result = built(tmp_path, tasks=["depth", "edge"])
    assert result.path == tmp_path / "nyud" / "edge-depth" / "1.0.0"
    builder = tfds.builder_from_directory(str(result.path))
    assert set(builder.info.features) == {"image_id", "image", "edge", "depth"}
    assert builder.info.metadata == {"image_ids": {"train": ["0001", "0002"], "val": ["0003"]}}


def test_smaller_labels_are_resized(raw, tmp_path):
    for folder in ("normals", "depth", "edge"):
        path = raw / folder / "0001.npy"
        np.save(path, np.load(path)[::2, ::2])
    assert built(tmp_path / "data", raw).resized == {"semseg": 0, "normals": 1, "edge": 1, "depth": 1}


def test_without_the_archive_it_says_where_to_get_it(tmp_path):
    message = r"NYUD_MT.tgz cannot be downloaded automatically: .*14EAEMXmd3zs2hIMY63UhHPSFPDAkiTzw"
    with pytest.raises(UserError, match=message):
        built(tmp_path, manual_dir=None)


def test_published_counts(raw, tmp_path):
    with pytest.raises(UserError, match=r"gt_sets/train.txt: lists 2 images, the published data set has 795"):
        built(tmp_path / "data", raw, allow_partial=False)


def save(path, array):
    return lambda raw: np.save(raw / path, array)


BROKEN = {
    "cut off": (
        lambda raw: (raw / "depth/0001.npy").write_bytes((raw / "depth/0001.npy").read_bytes()[:300]),
        r"depth/0001.npy: cannot be read",
    ),
    "pickle": (
        lambda raw: np.save(raw / "edge/0001.npy", np.array([{}], object), allow_pickle=True),
        r"edge/0001.npy: cannot be read",
    ),
    "flat": (
        save("normals/0001.npy", np.zeros((24, 32))),
        r"normals/0001.npy: holds float64 of shape \(24, 32\); expected",
    ),
    "two components": (
        save("normals/0001.npy", np.zeros((24, 32, 2))),
        r"normals/0001.npy: has the shape \(24, 32, 2\)",
    ),
    "millimetres": (
        save("depth/0001.npy", np.full((24, 32), 2000.0)),
        r"depth/0001.npy: has a depth of 2000; expected metres up to 65.535",
    ),
    "no pixels": (save("depth/0001.npy", np.zeros((0, 32))), r"depth/0001.npy: holds float64 of shape"),
    "class 41": (
        lambda raw: PIL.Image.fromarray(np.full((24, 32), 41, np.uint8)).save(raw / "segmentation/0001.png"),
        r"segmentation/0001.png: has the class 40; expected 0 to 39",
    ),
    "turned": (save("edge/0001.npy", np.zeros((32, 24))), r"edge/0001.npy: the label is 24x32 but .* is 32x24"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_bad_files_are_named(raw, tmp_path, case):
    damage, message = BROKEN[case]
    damage(raw)
    with pytest.raises(UserError, match=message):
        built(tmp_path / "data", raw)
    assert not list((tmp_path / "data").rglob("*.array_record*"))
    report = verify.verify_raw(raw, workers=1, dataset="nyud", allow_partial=True)
    assert (report.images, report.whole, len(report.problems)) == (3, 2, 1)


def test_invalid_depths_are_unknown(raw, tmp_path):
    depth = np.full((24, 32), 1.5, np.float32)
    depth[0, :3] = np.nan, -1, np.inf
    np.save(raw / "depth/0001.npy", depth)
    label = NyudRaw(raw).label("depth", "0001", (24, 32))
    np.testing.assert_array_equal(label[0, :4], [0, 0, 0, 1500])


def test_verify_of_what_was_built(tmp_path):
    built(tmp_path)
    report = verify.verify_built(tmp_path, workers=1, dataset="nyud", allow_partial=True)
    assert (report.whole, report.problems) == (3, [])
    assert "expected 795" in verify.verify_built(tmp_path, workers=1, dataset="nyud").problems[0]


def test_unknown_data_set(tmp_path):
    with pytest.raises(UserError, match="unknown data set 'coco'; expected one of pascal_context, nyud"):
        built(tmp_path, dataset="coco")
