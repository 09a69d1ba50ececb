"""The prediction command: every file that it writes, and its messages about bad input."""

import errno
import json
import os
import pathlib
import re
import unicodedata
import urllib.parse

import cv2
import jax
import micro
import numpy as np
import PIL.Image
import pytest

import mtlora_jax
from mtlora_jax.errors import UserError
from mtlora_jax.eval.native_resolution import resize_into
from mtlora_jax.io import locks
from mtlora_jax.model_io import model_folder
from mtlora_jax.models import parameters
from mtlora_jax.predict import __main__ as predict
from mtlora_jax.predict import images as photographs
from mtlora_jax.predict import panels
from mtlora_jax.tasks import make_tasks
from mtlora_jax.tasks.label_images import class_palette, heatmap

TASKS = {"semseg": 3, "sal": 1, "normals": 3, "edge": 1, "depth": 1}
CLASSES = ("background", "red", "blue")


class Colours:
    """Stands in for a model, to save its compilation; tells red from blue pixels."""

    tasks = tuple(TASKS)
    config = {"classes": {"semseg": CLASSES, "sal": ("background", "salient")}}
    architecture = {"tasks": TASKS, "image_size": [32, 48], "method": {"name": "full"}}

    def __init__(self):
        self.seen = []

    def __call__(self, images, fit):
        self.seen.append((images.shape, images.dtype.name, fit))
        red, blue = images[..., 0] > 127, images[..., 2] > 127
        probable = np.where(red, 8.0, -8.0)[..., None]
        return {  # not in the order of the tasks, like the result of a compiled function
            "depth": np.full((*red.shape, 1), 5.0),
            "edge": -probable,
            "normals": np.broadcast_to([0.0, 0.0, 2.0], (*red.shape, 3)),
            "sal": probable,
            "semseg": 8.0 * np.stack([~red & ~blue, red, blue], axis=-1),
        }


@pytest.fixture
def model(monkeypatch):
    """The model that --model=any names."""
    model = Colours()
    monkeypatch.setattr(mtlora_jax, "load", lambda name, base: model)
    return model


def write_photograph(path, height=40, width=60, orientation=1):
    """Writes an image whose left half, as stored, is red and whose right half is blue."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2, 0] = 250
    pixels[:, width // 2 :, 2] = 250
    exif = PIL.Image.Exif()
    exif[photographs.ORIENTATION] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(pixels).save(path, exif=exif)
    return pixels


def write_labels(root, name, height=40, width=60, classes=CLASSES):
    labels = np.ones((height, width), np.uint8)
    labels[:, width // 2 :] = 2
    labels[0] = 255
    (root / "semseg").mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(labels).save(root / "semseg" / f"{name}.png")
    (root / "classes.json").write_text(json.dumps({"semseg": classes}))
    return labels


def command(base, *more):
    predict.main(["--model=any", f"--images={base / 'images'}", f"--output={base / 'out'}", *more])


def files_below(base):
    return {str(path.relative_to(base)) for path in base.rglob("*") if path.is_file()}


def read(path):
    with PIL.Image.open(path) as image:
        return image.mode, np.asarray(image)


def test_every_file(model, tmp_path, capsys):
    photograph = write_photograph(tmp_path / "images" / "a.png")
    write_photograph(tmp_path / "images" / "b.jpg", 30, 20)
    labels = write_labels(tmp_path / "data", "a")
    write_labels(tmp_path / "data", "b", 30, 20)
    command(tmp_path, f"--labels={tmp_path / 'data'}", "--save-raw")

    pictures = {f"{kind}/{name}.png" for kind in (*TASKS, "overlay", "panels") for name in "ab"}
    legends = {f"legends/{task}.png" for task in TASKS}
    assert files_below(tmp_path / "out") == {"index.html", "raw/a.npz", "raw/b.npz"} | pictures | legends
    assert model.seen == [((32, 48, 3), "uint8", "none")] * 2  # one program for photographs of all sizes

    out = tmp_path / "out"
    mode, classes = read(out / "semseg" / "a.png")
    assert (mode, classes.shape) == ("P", (40, 60))
    np.testing.assert_array_equal(classes, np.where(labels == 255, 1 + (np.arange(60) >= 30), labels))
    palette = np.array(PIL.Image.open(out / "semseg" / "a.png").getpalette()).reshape(-1, 3)
    np.testing.assert_array_equal(palette, class_palette())
    for task, left, right in (("sal", 1, 0), ("edge", 0, 1), ("depth", 0.5, 0.5)):
        mode, picture = read(out / task / "a.png")
        assert (mode, picture.shape) == ("RGB", (40, 60, 3))
        heat = heatmap(np.array([[left, right]]), np.zeros((1, 2), bool))[0]
        expected = {"edge": np.array([[left] * 3, [right] * 3]) * 255}.get(task, heat)
        found = picture[20, [0, -1]].astype(int)
        np.testing.assert_allclose(found, expected.astype(int), atol=2)  # a logit of 8 is a probability below 1
    assert read(out / "normals" / "a.png")[1][20, 30].tolist() == [128, 128, 255]

    panel = read(out / "panels" / "a.png")[1]
    height = 40 * 320 // 60
    assert panel.shape == (2 * (height + panels.TITLE), 6 * 320 + 5 * panels.GAP, 3)
    np.testing.assert_array_equal(panel[panels.TITLE + height // 2, 80], photograph[20, 15])
    np.testing.assert_array_equal(panel[-height // 2, 320 + panels.GAP + 240], class_palette()[2])

    with np.load(out / "raw" / "a.npz") as raw:
        shapes = {name: array.shape for name, array in raw.items()}
        planes = ("semseg/labels", "sal/probabilities", "edge/probabilities", "depth/depth")
        vectors = ("semseg/probabilities", "normals/normals")
        assert shapes == dict.fromkeys(planes, (32, 48)) | dict.fromkeys(vectors, (32, 48, 3))
        np.testing.assert_array_equal(raw["semseg/labels"], np.repeat([[1, 2]], 24, axis=1).repeat(32, axis=0))
        np.testing.assert_allclose(raw["normals/normals"][0, 0], [0, 0, 1])
    assert "2 images in" in (printed := capsys.readouterr().out)
    assert "0 left out" in printed
    assert f"look at {out / 'index.html'}" in printed


def test_an_overlay_shows_the_photograph_where_there_is_background():
    photograph = np.full((10, 10, 3), 100, np.uint8)
    task = make_tasks(["semseg"], {"semseg": CLASSES})["semseg"]
    values = np.zeros((10, 10), np.uint8)
    values[5:] = 1
    view = panels.View.create(task, values)
    blended = panels.blend(photograph, view)
    assert np.all(blended[:5] == 100)
    np.testing.assert_allclose(blended[5], np.tile(0.4 * 100 + 0.6 * class_palette()[1], (10, 1)), atol=1)
    assert panels.draw_overlay(photograph, {"semseg": view}).width == panels.TILE


def test_legends_name_what_occurs():
    task = make_tasks(["semseg"], {"semseg": CLASSES})["semseg"]
    shown = np.array([[2, 2, 2, 0, 255]], np.uint8)
    assert list(task.legend(shown).swatches.items()) == [
        ("blue", (0, 128, 0)),  # the third colour of PASCAL VOC
        ("background", (0, 0, 0)),
        ("ignored", (224, 224, 192)),
    ]
    assert list(task.legend().swatches) == list(CLASSES)
    assert list(task.legend(shown, np.full((9, 9), 1, np.uint8)).swatches) == ["red", "blue", "background", "ignored"]
    depth = make_tasks(["depth"])["depth"]
    assert depth.legend().ends == ("0 m", "10 m and more")
    np.testing.assert_array_equal(depth.legend().bar[16], depth.visualize(np.full((1, 1), 5.0))[0, 0])
    assert list(depth.legend(np.array([[5.0, 255.0]])).swatches) == ["ignored"]
    assert make_tasks(["normals"])["normals"].legend().swatches["up"] == (128, 0, 128)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_photographs_are_turned_upright(model, tmp_path, suffix):
    path = tmp_path / "images" / f"a.{suffix}"
    write_photograph(path, orientation=6)  # the stored left column becomes the top row
    command(tmp_path)
    classes = read(tmp_path / "out" / "semseg" / "a.png")[1]
    assert classes.shape == (60, 40)
    assert np.all(classes[:28] == 1)
    assert np.all(classes[32:] == 2)


def test_with_labels_photographs_stay_as_stored(model, tmp_path):
    write_photograph(tmp_path / "images" / "a.png", orientation=6)
    write_labels(tmp_path / "data", "a")
    command(tmp_path, f"--labels={tmp_path / 'data'}")
    assert read(tmp_path / "out" / "semseg" / "a.png")[1].shape == (40, 60)


def test_bad_images_are_left_out(model, tmp_path, capsys):
    write_photograph(tmp_path / "images" / "good.png")
    (tmp_path / "images" / "bad.jpg").write_text("no image")
    command(tmp_path)
    printed = capsys.readouterr().out
    assert f"left out: {tmp_path / 'images' / 'bad.jpg'}: cannot be read (no JPEG/PNG/WEBP image)" in printed
    assert "1 images in" in printed
    assert "1 left out" in printed
    assert (tmp_path / "out" / "semseg" / "good.png").exists()
    assert "bad" not in (tmp_path / "out" / "index.html").read_text().partition("</main>")[0]


def test_bad_labels_are_told(model, tmp_path, capsys):
    for name in "abc":
        write_photograph(tmp_path / "images" / f"{name}.png")
    write_labels(tmp_path / "data", "a")
    write_labels(tmp_path / "data", "b", 20, 30)
    command(tmp_path, f"--labels={tmp_path / 'data'}")
    printed = capsys.readouterr().out
    assert f"without label: {tmp_path / 'data' / 'semseg' / 'b.png'}: 30x20 pixels, but its image has 60x40" in printed
    assert f"without label: {tmp_path / 'data' / 'semseg' / 'c.png'}: no such label" in printed
    assert "3 images in" in printed


def test_labels_are_found_as_training_finds_them(model, tmp_path, capsys):
    """Suffixes in any case, and accented letters as one character or, as on macOS, as two."""
    one, two = (unicodedata.normalize(form, "\u00e9t\u00e9") for form in ("NFC", "NFD"))
    write_photograph(tmp_path / "images" / f"{one}.png")
    write_labels(tmp_path / "data", two)
    (tmp_path / "data" / "semseg" / f"{two}.png").rename(tmp_path / "data" / "semseg" / f"{two}.PNG")
    command(tmp_path, f"--labels={tmp_path / 'data'}", f"--only={two}")
    assert "without label" not in capsys.readouterr().out


def test_any_name_has_its_place_on_the_page(model, tmp_path):
    """Names with bytes that are not text, and of the greatest length; two of those differ only in the suffix."""
    longest = ["x" * 250 + ".png", "x" * 250 + ".jpg", "\u732b" * 83 + ".png"]
    names = (os.fsdecode(b"caf\xe9 #1%.png"), "a.png", *longest)
    for name in names:
        write_photograph(tmp_path / "images" / name)
    command(tmp_path, "--save-raw")
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "caf\\udce9 #1%" in page
    links = [urllib.parse.unquote_to_bytes(link) for link in re.findall('data-file="(semseg/[^"]*)"', page)]
    assert len(set(links)) == len(names)
    assert all(os.path.exists(os.path.join(os.fsencode(tmp_path / "out"), link)) for link in links)


@pytest.mark.parametrize(("height", "width"), [(3000, 2), (2, 3000), (1, 1), (20000, 1)])
def test_pictures_of_any_shape_take_little_room(model, tmp_path, height, width):
    write_photograph(tmp_path / "images" / "a.png", height, width)
    write_labels(tmp_path / "data", "a", height, width)
    command(tmp_path, f"--labels={tmp_path / 'data'}")
    for kind, room in (("panels", panels.PANEL), ("overlay", panels.TILE)):
        with PIL.Image.open(tmp_path / "out" / kind / "a.png") as image:
            assert image.width <= 6 * (room + panels.GAP)
            assert image.height <= 2 * (panels.MAX_ASPECT * room + 200)
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    frame, high = re.findall(r"--ratio: (\d+) / (\d+)", page)[0]
    assert int(high) <= 1.5 + panels.MAX_ASPECT * int(frame)
    assert read(tmp_path / "out" / "semseg" / "a.png")[1].shape == (height, width)


def test_one_program_writes(model, tmp_path, monkeypatch):
    """A second one is refused before it loads the model."""
    write_photograph(tmp_path / "images" / "a.png")
    command(tmp_path)
    before = {name: (tmp_path / name).stat().st_mtime_ns for name in files_below(tmp_path)}
    monkeypatch.setattr(mtlora_jax, "load", lambda *names: pytest.fail("loaded"))
    with locks.hold_lock(tmp_path / "out"), pytest.raises(UserError, match="out: another program writes there"):
        command(tmp_path)
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in files_below(tmp_path)} == before


def images(base):
    write_photograph(base / "images" / "a.png")


def image_and_file(base, name):
    images(base)
    (base / name).write_text("")


def image_and_labels(base):
    images(base)
    (base / "out" / "semseg").mkdir(parents=True)


def only_bad_images(base):
    (base / "images").mkdir()
    for name in ("a.png", "b.jpg"):
        (base / "images" / name).write_bytes(b"")


def other_classes(base):
    images(base)
    write_labels(base, "a", classes=("x", "y", "z"))


NO_IMAGE = r"cannot be read \(no JPEG/PNG/WEBP image\)"
OTHER_CLASSES = "other classes than the data has: semseg: class 0 is 'background' there, 'x' here"


@pytest.mark.parametrize(
    ("prepare", "flags", "told"),
    [
        (only_bad_images, [], rf"none of the 2 images can be read, the last: .*b\.jpg: {NO_IMAGE}"),
        (only_bad_images, ["--only=a"], rf"^\S*a\.png: {NO_IMAGE}"),
        (lambda base: (base / "images").mkdir(), [], "images: no image; their names end in"),
        (lambda base: None, [], "images: no such file or folder"),
        (images, ["--only=a,nobody"], "no image nobody; it has a"),
        (images, ["--labels={}/nowhere"], "no labels; expected a folder for at least one of semseg, sal"),
        (other_classes, ["--labels={}"], OTHER_CLASSES),
        (lambda base: image_and_file(base, "out"), [], "is a file"),
        (lambda base: image_and_file(base, "file"), ["--output={}/file/out"], "file is a file"),
        (image_and_labels, [], "out holds semseg from elsewhere"),
        (images, ["--output=/proc/nowhere"], "/proc/nowhere.*cannot be written"),
    ],
)
def test_bad_input_writes_nothing(model, tmp_path, prepare, flags, told):
    prepare(tmp_path)
    before = files_below(tmp_path)
    with pytest.raises(UserError, match=told):
        command(tmp_path, *(flag.format(tmp_path) for flag in flags))
    assert files_below(tmp_path) == before


def test_a_full_disk(model, tmp_path, monkeypatch):
    images(tmp_path)
    whole = pathlib.Path.write_bytes

    def fill(path, data):
        if path.parent.name != "overlay":
            return whole(path, data)
        whole(path, data[:9])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pathlib.Path, "write_bytes", fill)
    with pytest.raises(UserError, match=r"overlay/a\.png: cannot be written \(no space left on the disk\)"):
        command(tmp_path)
    assert not list((tmp_path / "out" / "overlay").iterdir())
    assert not (tmp_path / "out" / "index.html").exists()


def test_tasks_that_choose_no_class_may_have_class_names(model, tmp_path):
    """Saliency is a probability, whatever its two classes are called in the data set and in the model."""
    images(tmp_path)
    write_labels(tmp_path / "data", "a")
    (tmp_path / "data" / "classes.json").write_text(json.dumps({"semseg": CLASSES, "sal": ["nothing", "something"]}))
    (tmp_path / "data" / "sal").mkdir()
    PIL.Image.fromarray(np.full((40, 60), 255, np.uint8)).save(tmp_path / "data" / "sal" / "a.png")
    command(tmp_path, f"--labels={tmp_path / 'data'}")
    assert read(tmp_path / "out" / "sal" / "a.png")[0] == "RGB"
    assert read(tmp_path / "out" / "sal" / "a.png")[1][20, 0].min() > 100  # salient, where the photograph is red
    blended = read(tmp_path / "out" / "overlay" / "a.png")[1]
    pixel = blended[panels.TITLE + 100, panels.TILE + panels.GAP + 300].tolist()
    assert pixel == pytest.approx([0, 0, 100], abs=4)  # black over blue


def test_an_adapter_with_its_base(model, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(mtlora_jax, "load", lambda *folders: asked.append(folders) or model)
    images(tmp_path)
    command(tmp_path, "--base=swin")
    command(tmp_path)
    assert [(str(model), base and str(base)) for model, base in asked] == [("any", "swin"), ("any", None)]


def test_predictions_may_be_made_again(model, tmp_path):
    images(tmp_path)
    command(tmp_path)
    before = (tmp_path / "out" / "index.html").read_bytes()
    command(tmp_path)
    assert (tmp_path / "out" / "index.html").read_bytes() == before


@pytest.mark.parametrize("task", ["semseg", "normals"])
def test_sizes_change_as_in_an_evaluation(task):
    """Logits are resized as by the evaluation at the original size on the device."""
    logits = np.random.default_rng(0).normal(size=(8, 12, 3)).astype(np.float32)
    expected = np.asarray(jax.jit(resize_into, static_argnums=2)(logits, np.array([37, 50], np.int32), (37, 50)))
    found = predict.enlarge(make_tasks([task], {"semseg": CLASSES})[task], logits, (37, 50))
    if task == "normals":
        np.testing.assert_allclose(found, expected, atol=2e-5)
        return
    ordered = np.sort(expected, axis=-1)
    sure = ordered[..., -1] - ordered[..., -2] > 1e-4
    assert np.mean(sure) > 0.9
    np.testing.assert_array_equal(found[sure], np.argmax(expected, axis=-1)[sure])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A model folder, and the folder of a backbone without tasks."""
    base = tmp_path_factory.mktemp("models")
    for name, tasks in (("model", ("semseg", "sal")), ("backbone", ())):
        architecture = micro.architecture("full", tasks, stages=1)
        model_folder.save(base / name, architecture, parameters.host_arrays(micro.fresh(architecture)))
    return base


def test_a_model(made, tmp_path):
    """A model with three outputs of semseg, not the default 21, and without class names."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)
    (tmp_path / "images").mkdir()
    PIL.Image.fromarray(noise).save(tmp_path / "images" / "a.png")
    command(tmp_path, f"--model={made / 'model'}")
    small = cv2.resize(noise, (32, 32), interpolation=cv2.INTER_CUBIC)
    logits = np.asarray(mtlora_jax.load(made / "model")(small, fit="none")["semseg"])
    expected = np.argmax(cv2.resize(logits, (56, 40)), axis=-1)
    assert np.mean(read(tmp_path / "out" / "semseg" / "a.png")[1] == expected) > 0.999
    assert re.search("</i>class [012]</li>", (tmp_path / "out" / "index.html").read_text())


NO_MODELS = {"backbone": "a bare backbone without tasks", "nowhere": "nowhere is not a model folder"}


@pytest.mark.parametrize(("name", "told"), [*NO_MODELS.items(), ("", "is not a model folder")])
def test_what_is_no_model(made, tmp_path, name, told):
    images(tmp_path)
    with pytest.raises(UserError, match=told):
        command(tmp_path, f"--model={made / name}")
    assert not (tmp_path / "out").exists()
