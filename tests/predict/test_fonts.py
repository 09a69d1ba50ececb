"""Text in pictures: the choice of a font, and codes for letters that no font has."""

import matplotlib
import numpy as np
import PIL.Image
import pytest

from mtlora_jax.predict import fonts, panels
from mtlora_jax.tasks.legend import Legend

DEJAVU = f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf"  # Latin, Greek, Cyrillic, but no Chinese


@pytest.fixture
def installed(monkeypatch):
    """Sets the fonts of the machine, apart from Pillow's own."""

    def install(*names):
        monkeypatch.setattr(fonts, "FONTS", names)
        fonts.installed_fonts.cache_clear()
        fonts.choose_font.cache_clear()

    yield install
    monkeypatch.undo()
    fonts.installed_fonts.cache_clear()
    fonts.choose_font.cache_clear()


def test_the_first_font_that_has_all_letters(installed):
    installed("nowhere.ttf", DEJAVU)
    assert [fonts.choose_font(text, 13)[0] for text in ("road", "Straße", "дорога")] == ["road", "Straße", "дорога"]
    own = fonts.installed_fonts(13)[0]
    assert fonts.choose_font("road", 13)[1] is own
    assert fonts.choose_font("Straße", 13)[1].getname() == ("DejaVu Sans", "Book")
    assert fonts.choose_font("дорога", 15)[1].size == 15


@pytest.mark.parametrize(
    ("names", "text", "shown"),
    [((DEJAVU,), "café 路", r"café \u8def"), ((), "café 路", r"caf\xe9 \u8def"), ((), "\U0001f6e3", r"\U0001f6e3")],
)
def test_letters_that_no_font_has_are_written_as_numbers(installed, names, text, shown):
    installed(*names)
    assert fonts.choose_font(text, 13)[0] == shown


def test_legends_leave_room_for_every_script(installed):
    installed(DEJAVU)
    swatches = {"дорога": (255, 0, 0), "路": (0, 0, 255)}
    image = panels.draw_legend(Legend(swatches, bar=((0, 0, 0), (9, 9, 9)), ends=("näher", "ferner")))
    assert image.size == (panels.TILE, 2 * panels.LINE + panels.MARGIN)
    pixels = np.asarray(image).reshape(-1, 3).tolist()
    assert [255, 0, 0] in pixels
    assert [0, 0, 255] in pixels


def test_pictures_are_smoothed_unless_their_colours_mean_something():
    stripes = np.zeros((8, 8, 3), np.uint8)
    stripes[:, ::2] = 200
    photograph = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    assert set(np.unique(panels.resize_image(PIL.Image.fromarray(stripes), 4, 4))) <= {0, 200}
    mean = photograph.reshape(4, 4, 4, 4, 3).mean((1, 3))
    np.testing.assert_allclose(np.asarray(panels.resize_image(PIL.Image.fromarray(photograph), 4, 4)), mean, atol=1)
