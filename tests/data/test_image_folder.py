import dataclasses
import io
import json
import pickle

import numpy as np
import PIL.Image
import pytest
import tiny_data

from mtlora_jax.data import DATASETS, FolderDataset
from mtlora_jax.data.decoding import decode_image
from mtlora_jax.data.pipeline import eval_batches
from mtlora_jax.errors import UserError
from mtlora_jax.tasks.depth import Depth


@pytest.fixture
def root(tmp_path):
    return tiny_data.write_tiny_dataset(tmp_path / "tiny")


def test_reads_images_and_labels_of_every_task(root):
    dataset = DATASETS["folder"](root, "val", ["depth", "semseg", "human_parts", "sal", "normals", "edge"])
    assert len(dataset) == 5
    assert list(dataset.tasks) == ["depth", "semseg", "human_parts", "sal", "normals", "edge"]
    assert dataset.tasks["semseg"].classes == tiny_data.CLASSES
    assert dataset.tasks["semseg"].channels == 4
    example = dataset[2]
    assert example["image_id"] == "val002"
    assert example["image"].shape == (40, 56, 3)
    assert example["image"].dtype == np.uint8
    classes = example["semseg"]
    assert set(np.unique(classes)) > {0}
    # The picture was painted from the classes: colours lie within the noise of 10, and RGB is not BGR.
    assert np.abs(example["image"].astype(int) - tiny_data.COLOURS[classes]).max() <= 10
    np.testing.assert_array_equal(example["human_parts"], classes)
    np.testing.assert_array_equal(example["sal"], classes > 0)
    half_step = 1.001 / 255  # of the values in the file
    np.testing.assert_allclose(example["normals"], tiny_data.DIRECTIONS[classes], atol=half_step)
    np.testing.assert_array_equal(example["depth"], tiny_data.METRES[classes])


def test_only_asked_tasks_are_read_and_needed(root):
    (root / "edge" / "train0.png").unlink()
    (root / "classes.json").unlink()
    dataset = FolderDataset(str(root), "train", ["sal"])
    assert dataset[0].keys() == {"image_id", "image", "sal"}


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG", ".webp"])
def test_image_formats(root, suffix):
    old = root / "images" / "val000.png"
    PIL.Image.open(old).save(old.with_suffix(suffix))
    old.unlink()
    assert FolderDataset(root, "val", ["sal"])[0]["image"].shape == (40, 56, 3)


@pytest.mark.parametrize("rest", [b"", b"what some cameras append"])
def test_a_jpeg_is_decoded_as_pillow_does(rest):
    pixels = np.random.default_rng(0).integers(0, 256, (12, 17, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).resize((170, 120)).save(buffer, "JPEG")
    decoded = decode_image(buffer.getvalue() + rest, "jpeg")
    expected = np.asarray(PIL.Image.open(buffer)).astype(int)
    assert np.abs(decoded - expected).max() <= 2  # two builds of libjpeg may round in other ways


def test_grey_and_transparent_images_become_rgb(root):
    for mode in ("L", "P", "RGBA"):
        path = root / "images" / "val000.png"
        PIL.Image.open(path).convert(mode).save(path)
        image = FolderDataset(root, "val", ["sal"])[0]["image"]
        assert image.shape == (40, 56, 3)
        assert image.dtype == np.uint8


def test_exif_orientation_is_not_applied(root):
    old = root / "images" / "val000.png"
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees to show"
    PIL.Image.open(old).save(old.with_suffix(".jpg"), exif=exif)
    old.unlink()
    assert FolderDataset(root, "val", ["sal"])[0]["image"].shape == (40, 56, 3)


def test_survives_pickling(root):
    dataset = FolderDataset(root, "val", ["semseg", "normals"])
    copy = pickle.loads(pickle.dumps(dataset))
    np.testing.assert_array_equal(copy[4]["normals"], dataset[4]["normals"])
    assert copy.tasks == dataset.tasks


def _remove(path):
    path.rename(path.with_name("elsewhere" + path.suffix))


BROKEN = {
    "no root": (lambda root: _remove(root), r"tiny: no such folder"),
    "no images": (lambda root: _remove(root / "images"), r"images: no such folder"),
    "no splits": (lambda root: _remove(root / "splits"), r"splits: no such folder"),
    "no task": (
        lambda root: _remove(root / "sal"),
        r"no labels for task 'sal'; the data set has semseg, human_parts, normals, edge, depth$",
    ),
    "no split": (
        lambda root: _remove(root / "splits" / "val.txt"),
        r"val.txt: no such file; .* splits elsewhere, train$",
    ),
    "empty split": (lambda root: (root / "splits" / "val.txt").write_text("\n \n"), r"val.txt: empty"),
    "duplicates": (
        lambda root: (root / "splits" / "val.txt").write_text("val000\nval001\nval000\n"),
        r"val.txt: 1 ids .* again: val000$",
    ),
    "no image": (
        lambda root: _remove(root / "images" / "val003.png"),
        r"images: no file \(ID.jpg .*\) for 1 of the 5 ids of .*val.txt: val003$",
    ),
    "no label": (
        lambda root: _remove(root / "sal" / "val001.png"),
        r"sal: no file \(ID.png\) for 1 of the 5 ids of splits/val.txt: val001$",
    ),
    "two images": (
        lambda root: (root / "images" / "val001.jpg").touch(),
        r"val001.png: a second file for id 'val001', besides val001.jpg",
    ),
    "bad JSON": (lambda root: (root / "classes.json").write_text("{"), r"classes.json is not valid JSON"),
    "classes of no task": (
        lambda root: (root / "classes.json").write_text(json.dumps({"segmentation": ["a", "b"]})),
        r"classes.json: 'segmentation' is no task; did you mean 'semseg'\?$",
    ),
    "classes of one no task": (
        lambda root: (root / "classes.json").write_text(json.dumps({"semseg": ["a", "b"], "colours": ["a"]})),
        r"classes.json: 'colours' is no task; expected one of semseg, human_parts",
    ),
    "one class": (
        lambda root: (root / "classes.json").write_text(json.dumps({"semseg": ["thing"]})),
        r"classes.json: semseg: 'thing' is the only class; expected at least two",
    ),
    "empty name": (
        lambda root: (root / "classes.json").write_text(json.dumps({"semseg": ["a", " "]})),
        r"'semseg': name 1 is empty",
    ),
    "a class twice": (
        lambda root: (root / "classes.json").write_text(json.dumps({"semseg": ["a", "b", "a"]})),
        r"classes.json: classes of task 'semseg': the name \"a\" is given twice; expected each once$",
    ),
    "no class": (
        lambda root: (root / "classes.json").write_text(json.dumps({"semseg": []})),
        r"classes.json: classes of task 'semseg': \[\]; expected a list of at least one name$",
    ),
    "a long id": (lambda root: (root / "splits" / "val.txt").write_text("a" * 10**5), r"no file .*: a{100}\.\.\.$"),
    "a long meaning": (
        lambda root: (root / "labels.json").write_text(json.dumps({"sal": "a" * 10**5})),
        r'labels.json: sal is "a{50,100}\.\.\.; expected one of',
    ),
    "Latin-1": (
        lambda root: (root / "splits" / "val.txt").write_bytes("val000\nb\xe4r\n".encode("latin-1")),
        r"val.txt: is not UTF-8 text",
    ),
    "Latin-1 classes": (
        lambda root: (root / "classes.json").write_bytes(b'{"semseg": ["a", "b\xe4r"]}'),
        r"classes.json: is not UTF-8 text",
    ),
    "invisible letter": (
        lambda root: (root / "splits" / "val.txt").write_text("val000\nval\u200b001\n", encoding="utf-8"),
        r"images: no file .* for 1 of the 2 ids .*: 'val\\u200b001'; there is 'val001', which is not 'val\\u200b001'$",
    ),
    "space at the end of a file name": (
        lambda root: [
            (root / folder / "val001.png").rename(root / folder / "val001 .png")
            for folder in ("images", "sal", "semseg")
        ],
        r"no file .*: val001; there is 'val001 ', which is not 'val001'$",
    ),
    "bad classes": (lambda root: (root / "classes.json").write_text(json.dumps({"sal": 2})), r"classes.json: must be"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_missing_is_named_before_anything_is_read(root, case):
    damage, message = BROKEN[case]
    FolderDataset(root, "val", ["semseg", "sal"])
    damage(root)
    with pytest.raises(UserError, match=message):
        FolderDataset(root, "val", ["semseg", "sal"])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", " \n"])
def test_lists_and_classes_in_any_form_of_unicode(root, encoding, end):
    names = {"val001": "e\u0301tang", "val002": "b\xe4r", "val003": "\u6c34"}
    for old, new in names.items():
        for folder in ("images", "semseg"):
            (root / folder / f"{old}.png").rename(root / folder / f"{new}.png")
    (root / "splits" / "val.txt").write_bytes(
        (end.join(["val000", "\xe9tang", "ba\u0308r", "\u6c34"]) + end).encode(encoding)
    )
    (root / "classes.json").write_bytes(
        json.dumps({"semseg": ["rest", "\xc4rmel", "\u6c34", "x"]}, ensure_ascii=False).encode(encoding)
    )
    dataset = FolderDataset(root, "val", ["semseg"])
    assert (
        [dataset[number]["image_id"] for number in range(4)]
        == dataset.ids
        == ["val000", "\xe9tang", "ba\u0308r", "\u6c34"]
    )
    assert dataset.tasks["semseg"].classes == ("rest", "\xc4rmel", "\u6c34", "x")


def test_many_missing_files_are_counted_not_listed(tmp_path):
    root = tiny_data.write_tiny_dataset(tmp_path / "tiny", ["sal"], val=8)
    for path in (root / "sal").glob("val*"):
        path.unlink()
    with pytest.raises(UserError, match=r"8 of the 8 ids .*: val000, val001, val002, val003, val004, \.\.\.$"):
        FolderDataset(root, "val", ["sal"])


def test_unknown_task(root):
    with pytest.raises(UserError, match="semsge"):
        FolderDataset(root, "val", ["semsge"])


@pytest.mark.parametrize("damage", ["cut off", "not an image", "empty", "16 bits"])
def test_damaged_image_is_named(root, damage):
    path = root / "images" / "val000.png"
    buffer = io.BytesIO()
    PIL.Image.open(path).resize((560, 400)).save(buffer, "JPEG")
    contents = {"cut off": buffer.getvalue()[:-2000], "not an image": b"GIF that is none", "empty": b""}
    if damage in contents:
        path.write_bytes(contents[damage])
    else:
        PIL.Image.fromarray(np.zeros((40, 56), np.uint16)).save(path)
    with pytest.raises(UserError, match=r"images/val000.png: "):
        FolderDataset(root, "val", ["sal"])[0]


def test_damaged_label_is_named(root):
    (root / "semseg" / "val000.png").write_bytes(b"no PNG")
    with pytest.raises(UserError, match="semseg/val000.png"):
        FolderDataset(root, "val", ["semseg"])[0]


@dataclasses.dataclass(frozen=True)
class Stumbling(Depth):
    fault: Exception = MemoryError()

    def decode(self, data, source):
        raise self.fault


@pytest.mark.parametrize("fault", [MemoryError(), OverflowError("too large"), IndexError("0"), RecursionError("deep")])
def test_whatever_decoding_stumbles_over_is_one_bad_example(root, fault):
    dataset = FolderDataset(root, "val", ["depth"])
    dataset.tasks["depth"] = Stumbling(fault=fault)
    with pytest.raises(UserError, match=r"depth/val000.png: cannot be decoded \(.+\)$"):
        dataset[0]


def test_a_header_that_lies_is_one_bad_example(root):
    path = root / "depth" / "val000.npy"
    np.save(path, np.ones((40, 56)))
    (root / "depth" / "val000.png").unlink()
    dataset = FolderDataset(root, "val", ["depth"])
    assert np.all(dataset[0]["depth"] == 1)
    path.write_bytes(path.read_bytes().replace(b"(40, 56)", b"(4" + 12 * b"0" + b",5)"))
    with pytest.raises(UserError, match="depth/val000.npy: cannot be read"):
        dataset[0]
    for workers in (0, 1):
        batches = eval_batches(dataset, image_size=(32, 48), batch_size=5, num_workers=workers)
        batch = next(batches)
        batches.close()
        assert [bool(message) for message in batch["error"]] == [True] + 4 * [False]


def test_label_of_an_unknown_class_is_named(root):
    PIL.Image.fromarray(np.full((40, 56), 4, np.uint8)).save(root / "semseg" / "val000.png")
    with pytest.raises(UserError, match=r"semseg/val000.png.* 4\b"):
        FolderDataset(root, "val", ["semseg"])[0]


def test_label_of_another_size_is_named_with_both_sizes(root):
    path = root / "sal" / "val000.png"
    PIL.Image.open(path).transpose(PIL.Image.Transpose.ROTATE_90).save(path)
    with pytest.raises(UserError, match=r"sal/val000.png: 40x56 pixels, but .*images/val000.png is stored with 56x40"):
        FolderDataset(root, "val", ["sal"])[0]
