"""Photographs of all formats, pixel formats and orientations; finding them in folders."""

import cv2
import numpy as np
import PIL.Image
import pytest

from mtlora_jax.data.decoding import decode_image, read_file
from mtlora_jax.errors import UserError
from mtlora_jax.predict import images

RED, BLUE, WHITE = (250, 0, 0), (0, 0, 250), (255, 255, 255)


def halves(left=RED, right=BLUE, size=(8, 12)):
    pixels = np.empty((*size, len(left)), np.uint8)
    pixels[:, : size[1] // 2] = left
    pixels[:, size[1] // 2 :] = right
    return pixels


def close(pixels, expected, tolerance=0):
    assert (pixels.shape, pixels.dtype) == (expected.shape, np.uint8)
    np.testing.assert_allclose(pixels.astype(int), expected.astype(int), atol=tolerance)


@pytest.mark.parametrize(
    ("mode", "suffix", "tolerance"),
    [("RGB", "png", 0), ("RGB", "webp", 0), ("RGBA", "png", 0), ("P", "png", 0), ("CMYK", "jpg", 6)],
)
def test_colours(tmp_path, mode, suffix, tolerance):
    path = tmp_path / f"image.{suffix}"
    image = PIL.Image.fromarray(halves()).convert(mode, palette=PIL.Image.Palette.ADAPTIVE)
    image.save(path, **{"webp": {"lossless": True}, "jpg": {"quality": 100}}.get(suffix, {}))
    with PIL.Image.open(path) as stored:
        assert stored.mode == mode
    close(images.read_image(path), halves(), tolerance)


@pytest.mark.parametrize("mode", ["1", "L", "LA"])
def test_grey(tmp_path, mode):
    path = tmp_path / "image.png"
    PIL.Image.fromarray(halves((0, 0, 0), WHITE)).convert(mode).save(path)
    close(images.read_image(path), halves((0, 0, 0), WHITE))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sixteen_bits(tmp_path, channels):
    """0x4080 is 64.25 of 255 and 0xFFFF is white, for any number of channels."""
    values = np.full((8, 12, channels), 0x4080, np.uint16)
    values[:, 6:] = 0xFFFF
    if channels == 4:
        values[..., 3] = 0xFFFF
    assert cv2.imwrite(str(tmp_path / "image.png"), values)
    close(images.read_image(tmp_path / "image.png"), halves((64, 64, 64), WHITE))


def test_what_is_transparent_lies_on_white(tmp_path):
    image = PIL.Image.fromarray(halves((*RED, 255), (*BLUE, 0)), "RGBA")
    image.save(tmp_path / "alpha.png")
    close(images.read_image(tmp_path / "alpha.png"), halves(RED, WHITE))
    palette = PIL.Image.fromarray(halves()).convert("P", palette=PIL.Image.Palette.ADAPTIVE, colors=2)
    palette.save(tmp_path / "palette.png", transparency=int(np.asarray(palette)[0, 11]))
    close(images.read_image(tmp_path / "palette.png"), halves(RED, WHITE))


def test_photographs_are_read_as_data_sets_read_them(tmp_path):
    """Decoders of JPEG differ in their last bits."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)
    PIL.Image.fromarray(noise).save(tmp_path / "a.jpg")
    np.testing.assert_array_equal(images.read_image(tmp_path / "a.jpg"), decode_image(*read_file(tmp_path / "a.jpg")))


# Where an upright image shows the stored first row and first column, as in the EXIF standard.
ORIENTATIONS = [
    *[(1, "top", "left"), (2, "top", "right"), (3, "bottom", "right"), (4, "bottom", "left")],
    *[(5, "left", "top"), (6, "right", "top"), (7, "right", "bottom"), (8, "left", "bottom")],
]


@pytest.mark.parametrize(("orientation", "row", "column"), ORIENTATIONS)
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_orientation(tmp_path, orientation, row, column, suffix):
    """The stored first row is green, the first column red."""
    stored = np.zeros((16, 24, 3), np.uint8)
    stored[:4, :, 1] = 200
    stored[:, :4, 0] = 200
    exif = PIL.Image.Exif()
    exif[images.ORIENTATION] = orientation
    path = tmp_path / f"a.{suffix}"
    PIL.Image.fromarray(stored).save(path, exif=exif, **({"quality": 100} if suffix != "png" else {}))
    seen = images.read_image(path)
    assert seen.shape[:2] == ((16, 24) if row in ("top", "bottom") else (24, 16))
    edge = {"top": np.s_[0], "bottom": np.s_[-1], "left": np.s_[:, 0], "right": np.s_[:, -1]}
    assert np.median(seen[edge[row]][..., 1]) > 150
    assert np.median(seen[edge[column]][..., 0]) > 150
    assert images.read_image(path, upright=False).shape == stored.shape


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda data: b"", r"a\.jpg: cannot be read \(no JPEG/PNG/WEBP image\)"),
        (lambda data: b"GIF? no, some text", r"a\.jpg: cannot be read \(no JPEG/PNG/WEBP image\)"),
        (lambda data: data[: len(data) // 2], r"a\.jpg: cannot be read"),
    ],
)
def test_damaged(tmp_path, damage, told):
    path = tmp_path / "a.jpg"
    PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)).save(path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=told):
        images.read_image(path)


@pytest.fixture
def folder(tmp_path):
    for name in ("b.JPG", "a.png", "a.webp", "c.jpeg", "notes.txt", "._c.jpeg"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "album.jpg").mkdir()
    return tmp_path


def test_find(folder):
    found = images.find_images(folder)
    names = {name: file.name for name, file in found.items()}
    assert names == {"a.png": "a.png", "a.webp": "a.webp", "b": "b.JPG", "c": "c.jpeg"}
    assert list(images.find_images(folder, ["c", "b"])) == ["c", "b"]
    assert list(images.find_images(folder / "b.JPG")) == ["b"]


def test_find_nothing(folder, monkeypatch):
    with pytest.raises(UserError, match=r"no image nobody; it has a\.png, a\.webp, b, c$"):
        images.find_images(folder, ["nobody", "b"])
    with pytest.raises(UserError, match="nowhere: no such file or folder"):
        images.find_images(folder / "nowhere")
    with pytest.raises(UserError, match="no image; their names end in .jpg, .jpeg, .png, .webp"):
        images.find_images(folder / "notes.txt")
    with pytest.raises(UserError, match="no image"):
        images.find_images(folder / "album.jpg")

    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.iterdir", refuse)
    with pytest.raises(UserError, match=r"cannot be read \(Permission denied\)"):
        images.find_images(folder)
