"""Decoding of image files: the same pixels by whichever library."""

import io

import numpy as np
import pytest
from PIL import Image
from tiny_data import png

from mtlora_jax.data.decoding import decode_image
from mtlora_jax.pictures import pixels_of


@pytest.mark.parametrize(("mode", "kind"), [*((mode, "png") for mode in ("L", "1", "P", "RGB", "I;16")), ("L", "jpeg"), ("RGB", "jpeg")])
def test_pixels_are_those_of_pillow(mode, kind):
    """Whichever library decodes them; colours in their order, indices of a palette as they are."""
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
        found = pixels_of(opened, buffer.getvalue())
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found.astype(int), expected.astype(int), atol=0 if kind == "png" else 2)  # two decoders of JPEG


@pytest.mark.parametrize("bits", [2, 4])
def test_grey_of_few_bits_is_not_stretched(bits):
    values = [list(range(2**bits))]
    data = png(values, bits)
    for cut in (data, data + b"more"):  # with OpenCV, and with Pillow
        with Image.open(io.BytesIO(cut)) as opened:
            assert pixels_of(opened, cut).tolist() == values
    assert decode_image(data, "a.png").tolist() == np.repeat(np.array(values)[..., None] * 255 // (2**bits - 1), 3, axis=2).tolist()
