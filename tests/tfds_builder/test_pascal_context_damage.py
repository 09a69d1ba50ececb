"""Bad input, interrupted builds and full disks; and `verify`, which finds the errors."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds
from raw_dummies import PACKAGE, PASCAL, TRAIN, built

from mtlora_jax.errors import UserError
from tfds_pascal_context import convert, dummy, layout, storage, verify, workers
from tfds_pascal_context.pascal_context import PascalRaw


def damage_half(folder, suffix):
    def damage(raw):
        path = raw / folder / f"dummy_02{suffix}"
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return damage


def replace(path, content):
    return lambda raw: (raw / path).write_bytes(content)


def turned(raw):
    path = raw / "sal_distill/dummy_02.png"
    PIL.Image.open(path).transpose(PIL.Image.Transpose.ROTATE_90).save(path)


def unknown_part(raw):
    someone = layout.Annotated(15, dummy.box(0, 9, 0, 9), {"wing": dummy.box(0, 9, 0, 9)})
    blank = np.zeros(dummy.SIZE, np.uint8)
    image, normals = np.zeros((*dummy.SIZE, 3), np.uint8), np.ones((*dummy.SIZE, 3))
    layout.write_raw(
        raw, "dummy_02", image=image, semseg=blank, objects=[someone], context=blank, normals=normals, sal=blank
    )


BROKEN = {
    "JPEG cut off": (damage_half("JPEGImages", ".jpg"), r"JPEGImages/dummy_02.jpg: cannot be read .*expected a JPEG"),
    "JPEG is a PNG": (
        lambda raw: shutil.copy(raw / "sal_distill/dummy_02.png", raw / "JPEGImages/dummy_02.jpg"),
        r"dummy_02.jpg: is PNG",
    ),
    "PNG cut off": (damage_half("normals_distill", ".png"), r"normals_distill/dummy_02.png: cannot be read"),
    "PNG of another kind": (
        lambda raw: shutil.copy(raw / "sal_distill/dummy_02.png", raw / "normals_distill"),
        r"mode L; expected an RGB",
    ),
    "parts cut off": (damage_half("human_parts", ".mat"), r"human_parts/dummy_02.mat: cannot be read"),
    "context cut off": (damage_half("pascal-context/trainval", ".mat"), r"trainval/dummy_02.mat: cannot be read"),
    "empty .mat": (replace("human_parts/dummy_02.mat", b""), r"human_parts/dummy_02.mat: cannot be read"),
    "label of another shape": (
        turned,
        r"sal_distill/dummy_02.png: the label is 48x64 but .*dummy_02.jpg is 64x48; expected the same aspect ratio",
    ),
    "unknown class": (
        lambda raw: PIL.Image.fromarray(np.full(dummy.SIZE, 21, np.uint8)).save(raw / "semseg/VOC12/dummy_02.png"),
        r"VOC12/dummy_02.png: has the class 21; expected 0 to 20",
    ),
    "unknown part": (unknown_part, r"human_parts/dummy_02.mat: unknown part 'wing'"),
    "missing label": (
        lambda raw: (raw / "sal_distill/dummy_02.png").unlink(),
        r"sal_distill/dummy_02.png: no such file",
    ),
    "missing image": (lambda raw: (raw / "JPEGImages/dummy_02.jpg").unlink(), r"JPEGImages/dummy_02.jpg: no such file"),
    "id twice": (
        lambda raw: layout.write_split(raw, "train", [*TRAIN, "dummy_02"]),
        r"train.txt: 'dummy_02' is listed twice",
    ),
    "id in both": (
        lambda raw: layout.write_split(raw, "val", ["dummy_02"]),
        r"val.txt: 'dummy_02' is in train.txt too",
    ),
    "no id": (
        lambda raw: layout.write_split(raw, "train", ["../dummy_02"]),
        r"train.txt: '../dummy_02' is not an image id",
    ),
    "empty list": (lambda raw: layout.write_split(raw, "train", []), r"train.txt: empty"),
    "no list": (lambda raw: (raw / "ImageSets/Context/val.txt").unlink(), r"val.txt: no such file"),
    "no images": (lambda raw: shutil.rmtree(raw / "JPEGImages"), r"raw: holds neither JPEGImages/ nor PASCAL_MT.tgz"),
    "no folder": (shutil.rmtree, r"raw: no such file or folder"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_bad_input_is_named_and_leaves_nothing_that_looks_whole(raw, data, case):
    damage, message = BROKEN[case]
    damage(raw)
    with pytest.raises(UserError, match=message):
        built(data, raw)
    assert not list(data.rglob("dataset_info.json"))
    assert not list(data.rglob("*.array_record*"))


def test_what_was_converted_before_an_error_is_kept_and_used(raw, data):
    whole = built(data / "whole", raw)
    good = (raw / "JPEGImages/dummy_03.jpg").read_bytes()
    (raw / "JPEGImages/dummy_03.jpg").write_bytes(good[:500])
    with pytest.raises(UserError, match="dummy_03.jpg"):
        built(data / "again", raw)
    (raw / "JPEGImages/dummy_03.jpg").write_bytes(good)
    result = built(data / "again", raw)
    assert result.converted == 5  # the first two had been done
    assert contents(result.path) == contents(whole.path)


def test_a_changed_file_is_converted_again(raw, data):
    cache = data / "cache"
    tasks = ("semseg",)
    for _ in range(2):
        results = list(convert.convert_all(PascalRaw(raw), TRAIN, tasks, cache, workers=1))
    assert not any(fresh for _, fresh in results)
    time.sleep(0.01)  # the clock of the file system
    (raw / "semseg/VOC12/dummy_02.png").touch()
    (cache / "dummy_04.zip").write_bytes((cache / "dummy_04.zip").read_bytes()[:-40])
    results = list(convert.convert_all(PascalRaw(raw), TRAIN, tasks, cache, workers=1))
    assert [fresh for _, fresh in results] == [False, True, False, True]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_bytes_do_not_depend_on_the_number_of_workers(data):
    one, two = built(data / "one"), built(data / "two", workers=2)
    assert contents(one.path) == contents(two.path)


def test_a_killed_build_is_not_taken_for_whole_and_goes_on(raw, data):
    ids = [f"copy_{number:03}" for number in range(150)]
    for image_id in ids:
        for folder, suffix in {"JPEGImages": ".jpg", "human_parts": ".mat"}.items():
            os.link(raw / folder / f"dummy_01{suffix}", raw / folder / f"{image_id}{suffix}")
    layout.write_split(raw, "train", ids)
    flags = [f"--data_dir={data}", f"--manual_dir={raw}", "--tasks=human_parts", "--allow_partial", "--workers=2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "tfds_pascal_context.build", *flags], cwd=PACKAGE.parent, stderr=subprocess.DEVNULL
    )
    partial = data / "pascal_context" / "human_parts.partial"
    while len(list(partial.glob("*.zip"))) < 20:
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not tfds.builder("pascal_context/human_parts", data_dir=str(data)).is_prepared()
    with pytest.raises(Exception, match="dataset_info"):
        tfds.builder_from_directory(str(data / "pascal_context" / "human_parts" / "1.0.0"))
    result = built(data, raw, tasks=["human_parts"])
    assert 0 < result.converted < 150 + 3
    assert contents(result.path) == contents(built(data / "other", raw, tasks=["human_parts"]).path)
    assert sorted(os.listdir(data / "pascal_context" / "human_parts")) == ["1.0.0"]


def test_two_builds_at_once_are_refused(data):
    with (
        storage.owned(data / "pascal_context" / "all.partial"),
        pytest.raises(UserError, match="all.partial: another program writes there .*process .*since"),
    ):
        built(data)


def test_a_worker_that_is_killed_is_reported():
    with pytest.raises(UserError, match="one of 2 worker processes was killed, perhaps because memory ran out"):
        list(workers.in_parallel(os._exit, [(1,)], workers=2))


def test_full_disk_while_converting(data, monkeypatch):
    write = pathlib.Path.write_bytes

    def full_at_the_third(path, content):
        if path.name == "dummy_03.tmp":
            raise OSError(28, "No space left on device", str(path))
        return write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "write_bytes", full_at_the_third)
        message = r"dummy_03.tmp: No space left on device; .* kept in .*all.partial: make room and start again"
        with pytest.raises(UserError, match=message):
            built(data)
    assert sorted(path.name for path in data.rglob("dummy_*")) == ["dummy_01.zip", "dummy_02.zip"]
    assert built(data).converted == 5


def test_full_disk_while_writing_the_data_set(data, monkeypatch):
    def full(*args):
        raise RuntimeError("write() failed: No space left on device; writing somewhere")

    with monkeypatch.context() as patch:
        patch.setattr(tfds.core.ExampleWriter, "write", full)
        message = r"train.*cannot be written \(write\(\) failed: No space left on device\); make room"
        with pytest.raises(UserError, match=message):
            built(data)
    assert not list(data.rglob("*.array_record*"))
    assert built(data).converted == 0


def test_a_shard_that_was_not_written_whole_is_noticed(data, monkeypatch):
    check = storage.check_shards

    def cut_off_first(split):
        path = pathlib.Path(split.filepaths[0])
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        check(split)

    monkeypatch.setattr(storage, "check_shards", cut_off_first)
    with pytest.raises(UserError, match=r"array_record-00000-of-00001: was not written completely"):
        built(data)
    assert not list(data.rglob("*.array_record*"))


def test_verify_names_every_bad_file_of_the_raw_data(raw, capsys):
    for case in ("JPEG cut off", "unknown class", "label of another shape"):
        BROKEN[case][0](raw)
    (raw / "human_parts/dummy_05.mat").unlink()
    shutil.copy(PASCAL / "JPEGImages/dummy_02.jpg", raw / "JPEGImages")
    shutil.rmtree(raw / "normals_distill")
    report = verify.verify_raw(raw, workers=1, allow_partial=True)
    assert [line.removeprefix(f"{raw}/").split(":")[0] for line in report.problems] == [
        str(raw),
        "semseg/VOC12/dummy_02.png",
        "sal_distill/dummy_02.png",
        "human_parts/dummy_05.mat",
    ]
    assert report.usable == {"semseg": 6, "human_parts": 6, "sal": 6, "normals": 0, "edge": 7}
    assert (report.images, report.whole) == (7, 0)
    with pytest.raises(UserError, match="raw: 5 problem\\(s\\), listed above"):  # one more: the counts
        verify.main([f"--manual_dir={raw}", "--workers=1"])
    assert "7 images, 0 usable with all requested tasks; 4 of 5 tasks usable: semseg 6" in capsys.readouterr().out


def test_verify_of_what_was_built(data, capsys):
    path = built(data).path
    verify.main([f"--data_dir={data}", "--allow_partial", "--workers=1"])
    assert "7 images, 7 usable with all requested tasks; 5 of 5 tasks usable" in capsys.readouterr().out
    shard = path / "pascal_context-val.array_record-00000-of-00001"
    content = bytearray(shard.read_bytes())
    start = content.find(b"\x89PNG")
    content[start + 60 : start + 80] = bytes(20)
    shard.write_bytes(content)
    report = verify.verify_built(data, workers=1, allow_partial=True)
    assert report.problems
    assert all(str(path) in line for line in report.problems)
    with pytest.raises(UserError, match=r"semseg/1.0.0: no data set; build it with"):
        verify.verify_built(data, ["semseg"])
