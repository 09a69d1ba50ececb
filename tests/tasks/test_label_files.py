"""Label files as tasks read them, bad ones included."""

import io

import numpy as np
import pytest
import tiny_data
from PIL import Image

from mtlora_jax.errors import UserError
from mtlora_jax.tasks import IGNORE, TASKS

CLASSES = ("semseg", "human_parts")
BINARY = ("sal", "edge")


def save(path, pixels):
    Image.fromarray(np.asarray(pixels)).save(path)
    return path


def decode(name, path):
    return TASKS[name]().decode(path.read_bytes(), str(path))


@pytest.mark.parametrize("name", CLASSES)
def test_class_maps_keep_palette_indices(name, tmp_path):
    pixels = np.array([[0, 3, IGNORE], [6, 1, 2]], np.uint8)
    grey = save(tmp_path / "grey.png", pixels)
    palette = Image.fromarray(pixels)
    palette.putpalette(np.random.default_rng(0).integers(0, 256, 768).astype(np.uint8).tobytes())
    palette.save(tmp_path / "palette.png")
    for path in (grey, tmp_path / "palette.png"):
        label = decode(name, path)
        assert label.dtype == np.uint8
        np.testing.assert_array_equal(label, pixels)


@pytest.mark.parametrize("palette", [False, True])
@pytest.mark.parametrize(
    ("bits", "values"), [(1, [0, 1]), (2, [0, 1, 2, 3]), (4, [0, 6, 1, 15]), (8, [0, 20, 255]), (16, [0, 20, 255])]
)
def test_class_maps_are_read_as_they_are_stored(bits, values, palette):
    if palette and bits == 16:
        return
    label = TASKS["semseg"]().decode(tiny_data.png([values], bits, palette), "a.png")
    assert label.dtype == np.uint8
    assert label.tolist() == [values]


def test_class_maps_of_16_bits_with_a_wrong_value():
    for value in (21, 254, 256, 277, 65535):  # 256 and 277 would be classes if the upper bits were cut off
        with pytest.raises(UserError, match=f"^a.png: semseg has the value {value}; expected 0 to 20, or 255"):
            TASKS["semseg"]().decode(tiny_data.png([[0, value]], 16), "a.png")


@pytest.mark.parametrize(("name", "allowed"), [("semseg", 20), ("human_parts", 6)])
def test_class_maps_with_a_wrong_value(name, allowed, tmp_path):
    assert decode(name, save(tmp_path / "right.png", np.full((2, 2), allowed, np.uint8))).max() == allowed
    path = save(tmp_path / "wrong.png", np.array([[0, allowed + 1]], np.uint8))
    with pytest.raises(
        UserError, match=rf"wrong.png: {name} has the value {allowed + 1}; expected 0 to {allowed}, or 255"
    ):
        decode(name, path)


@pytest.mark.parametrize("name", BINARY)
def test_binary_maps(name, tmp_path):
    label = decode(name, save(tmp_path / "a.png", np.array([[0, 127, 128, 255]], np.uint8)))
    assert label.dtype == np.uint8
    assert label.tolist() == [[0, 0, 1, 1]]
    assert decode(name, save(tmp_path / "b.png", np.array([[0, 1]], np.uint8))).tolist() == [[0, 1]]
    assert decode(name, save(tmp_path / "c.png", np.array([[False, True]]))).tolist() == [[0, 1]]
    assert decode(name, save(tmp_path / "d.png", np.zeros((1, 2), np.uint8))).tolist() == [[0, 0]]


def test_depth_files(tmp_path):
    png = save(tmp_path / "d.png", np.array([[1500, 0, 65535]], np.uint16))
    np.testing.assert_allclose(decode("depth", png), [[1.5, IGNORE, 65.535]], rtol=1e-6)
    np.save(tmp_path / "d.npy", np.array([[1.5, 0, -2, np.nan, np.inf, 254.5, 1e-300]]))
    label = decode("depth", tmp_path / "d.npy")
    assert label.dtype == np.float32
    np.testing.assert_array_equal(label, [[1.5, IGNORE, IGNORE, IGNORE, IGNORE, 254.5, IGNORE]])


def test_bad_depth_files(tmp_path):
    for stem, array, message in [
        ("millimetres", np.array([[2000.0]]), "depth has the value 2000; expected metres below 255"),
        ("beyond float32", np.array([[1e300]]), r"depth has the value 1e\+300; expected metres below 255"),
        ("integers", np.array([[2000]]), "holds int64 of shape .*; expected .* float metres"),
        ("volume", np.zeros((2, 2, 2)), r"holds float64 of shape \(2, 2, 2\)"),
        ("objects", np.array([None]), "cannot be read"),
    ]:
        np.save(tmp_path / f"{stem}.npy", array)
        with pytest.raises(UserError, match=rf"{stem}.npy: {message}"):
            decode("depth", tmp_path / f"{stem}.npy")
    with pytest.raises(UserError, match="eight.png: is an image of mode L; expected .* grey 16-bit PNG"):
        decode("depth", save(tmp_path / "eight.png", np.zeros((2, 2), np.uint8)))


@pytest.mark.parametrize("name", tiny_data.TASKS)
def test_files_that_cannot_be_read(name, tmp_path):
    task = TASKS[name]()
    for wrong in (b"no image at all", b""):
        with pytest.raises(UserError, match="some/label: cannot be read .*expected") as caught:
            task.decode(wrong, "some/label")
        assert "0x" not in str(caught.value)  # no address in memory
    pixels = np.random.default_rng(0).integers(0, 6, (40, 40, 3)).astype(np.uint8)
    pixels = {"normals": pixels, "depth": pixels[..., 0].astype(np.uint16)}.get(name, pixels[..., 0])
    path = save(tmp_path / "whole.png", pixels)
    whole = path.read_bytes()
    task.decode(whole, "whole")
    for cut in (whole[: len(whole) // 2], whole[:60] + whole[80:]):
        with pytest.raises(UserError, match="^cut: cannot be read"):
            task.decode(cut, "cut")
    with pytest.raises(UserError, match="colours.png: is an image of mode RGBA; expected"):
        decode(name, save(tmp_path / "colours.png", np.zeros((2, 2, 4), np.uint8)))


def test_an_array_that_is_cut_off():
    buffer = io.BytesIO()
    np.save(buffer, np.ones((9, 9)))
    with pytest.raises(UserError, match="^depth.npy: cannot be read .*; expected a NumPy array"):
        TASKS["depth"]().decode(buffer.getvalue()[:-8], "depth.npy")
