"""Decoding of image files gives the same pixels with any library."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from tiny_data import png

from mtlora_jax.data.decoding import decode_image
from mtlora_jax.errors import UserError
from mtlora_jax.io.image_files import read_pixels
from mtlora_jax.tasks.label_images import decode_image as decode_label


@pytest.mark.parametrize(
    ("mode", "kind"), [*((mode, "png") for mode in ("L", "1", "P", "RGB", "I;16")), ("L", "jpeg"), ("RGB", "jpeg")]
)
def test_pixels_are_those_of_pillow(mode, kind):
    """With any library: colours in their order, indices of a palette unchanged."""
    shape, dtype = (13, 17, 3) if mode == "RGB" else (13, 17), np.uint16 if mode == "I;16" else np.uint8
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, shape).astype(dtype))
    if mode == "1":
        image = image.point(lambda value: 255 * (value > 99)).convert("1")
    if mode == "P":
        image.putpalette(np.random.default_rng(1).integers(0, 256, 768).astype(np.uint8).tobytes())
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"compress_level": 0} if kind == "png" else {"quality": 95}))
    with Image.open(io.BytesIO(buffer.getvalue())) as opened:
        assert opened.mode == mode
        expected = np.array(opened)
    with Image.open(io.BytesIO(buffer.getvalue())) as opened:
        found = read_pixels(opened, buffer.getvalue())
    assert found.dtype == expected.dtype
    tolerance = 0 if kind == "png" else 2  # two decoders of JPEG
    np.testing.assert_allclose(found.astype(int), expected.astype(int), atol=tolerance)


@pytest.mark.parametrize("bits", [2, 4])
def test_grey_of_few_bits_is_not_stretched(bits):
    values = [list(range(2**bits))]
    data = png(values, bits)
    for cut in (data, data + b"more"):  # with OpenCV, and with Pillow
        with Image.open(io.BytesIO(cut)) as opened:
            assert read_pixels(opened, cut).tolist() == values
    assert (
        decode_image(data, "a.png").tolist()
        == np.repeat(np.array(values)[..., None] * 255 // (2**bits - 1), 3, axis=2).tolist()
    )


def changed(data, kind, change):
    """A PNG whose chunks of one kind have changed contents, with matching checksums."""
    at = data.index(kind)
    (size,) = struct.unpack(">I", data[at - 4 : at])
    content = change(data[at + 4 : at + 4 + size])
    return data[: at - 4] + chunk(kind, content) + data[at + 8 + size :]


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


MODES = {"L": 8, "RGB": 8, "P": 8, "1": 1, "I;16": 16}


def written(mode, value, interlaced=False, size=(9, 12)):
    """A PNG of one value."""
    if mode == "RGB":
        buffer = io.BytesIO()
        Image.new(mode, size, (value,) * 3).save(buffer, "PNG")
        return buffer.getvalue()
    whole = png(np.full(size[::-1], value), MODES[mode], palette=mode == "P")
    if interlaced:  # all values are alike, so passes are like rows
        steps = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
        passes = [(len(range(x, size[0], dx)), len(range(y, size[1], dy))) for x, y, dx, dy in steps]
        rows = b"".join(
            (b"\0" + np.packbits([[value >> bit & 1 for bit in range(MODES[mode])[::-1]]] * w).tobytes()) * h
            for w, h in passes
        )
        whole = changed(changed(whole, b"IHDR", lambda x: x[:12] + b"\1"), b"IDAT", lambda x: zlib.compress(rows))
    return whole


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_rows_that_are_missing_are_not_made_up(mode, interlaced, capfd):
    """Pillow fills them with black, which is a class."""
    for value in (0, 1):
        whole = written(mode, value, interlaced and mode != "RGB")
        assert np.all(decode_label(whole, "a.png", [mode], "a label") == value)
        assert decode_image(whole, "a.png").shape == (12, 9, 3) if mode != "I;16" else True
        cut = changed(
            whole, b"IDAT", lambda content: zlib.compress(zlib.decompress(content)[: -30 if mode != "1" else -2])
        )
        taller = changed(whole, b"IHDR", lambda content: content[:4] + struct.pack(">I", 40) + content[8:])
        for damaged in (cut, taller):
            with pytest.raises(UserError, match="^a.png: cannot be read"):
                decode_label(damaged, "a.png", [mode], "a label")
            with pytest.raises(UserError, match="^a.png: "):
                decode_image(damaged, "a.png")


def test_a_damaged_png_is_told_once(capfd):
    """OpenCV prints its own message; one line is enough."""
    data = png(np.arange(200).reshape(10, 20), 8)
    for damaged in (data[:60] + b"?" + data[61:], data[:-30], data[:40] + data[50:]):
        with pytest.raises(UserError, match="^a.png: cannot be read"):
            decode_label(damaged, "a.png", ["L"], "a label")
    assert capfd.readouterr() == ("", "")


def test_a_png_begins_with_its_size():
    """Otherwise, libraries find other bits per pixel, and other values."""
    data = png([[0, 1, 2, 3]], 4)
    moved = data[:8] + chunk(b"tEXt", b"a\0b") + data[8:]
    with pytest.raises(UserError, match=r"^a.png: cannot be read \(it does not begin with its size, as a PNG must\)"):
        decode_label(moved, "a.png", ["L"], "a label")


@pytest.mark.filterwarnings("error")
def test_what_surrounds_an_image_is_passed_over():
    moving = chunk(b"acTL", bytes(8))
    data = png([[0, 1, 2, 3]], 8)
    assert decode_label(data[:33] + moving + data[33:], "a.png", ["L"], "a label").tolist() == [[0, 1, 2, 3]]
