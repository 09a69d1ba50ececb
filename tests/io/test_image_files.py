"""Files that are named like pictures but are something else."""

import io
import os

import numpy as np
import PIL.Image
import pytest

from mtlora_jax.data.decoding import decode_image
from mtlora_jax.errors import UserError
from mtlora_jax.io import image_files
from mtlora_jax.predict import images
from mtlora_jax.tasks import TASKS

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n%%Page: 1 1\nshowpage\n%%EOF\n"


def as_format(name):
    picture = io.BytesIO()
    PIL.Image.fromarray(np.zeros((16, 16), np.uint8)).save(picture, name)
    return picture.getvalue()


CONTENTS = {
    "EPS": EPS,
    "EPS with a preview": b"\xc5\xd0\xd3\xc6"
    + (32).to_bytes(4, "little")
    + len(EPS).to_bytes(4, "little")
    + bytes(20)
    + EPS,
    "PDF": b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n",
    **{name: as_format(name) for name in ("TIFF", "ICO", "BMP", "GIF", "PPM", "TGA", "PCX", "SGI")},
}


@pytest.fixture
def ghostscript(tmp_path, monkeypatch):
    """A program in place of Ghostscript, under any of its names, that leaves a mark when it is started."""
    for name in ("gs", "gswin32c", "gswin64c"):
        (tmp_path / name).write_text(f"#!/bin/sh\necho started >> {tmp_path / 'mark'}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    yield
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
@pytest.mark.parametrize("content", CONTENTS)
def test_other_formats_are_refused_and_start_nothing(tmp_path, ghostscript, content, suffix):
    data = CONTENTS[content]
    (tmp_path / f"a{suffix}").write_bytes(data)
    PIL.Image.init()  # as any program may have done by importing Pillow's plugins
    readers = {
        "photograph": lambda: images.read_image(tmp_path / f"a{suffix}"),
        "image": lambda: decode_image(data, f"a{suffix}"),
        **{name: lambda task=task: task().decode(data, f"a{suffix}") for name, task in TASKS.items()},
    }
    for read in readers.values():
        with pytest.raises(UserError, match=rf"a\{suffix}: ") as refused:
            read()
        assert "\n" not in str(refused.value)


def test_images_of_bounded_size():
    """A file of some thousand bytes may declare any number of pixels."""
    for size, told in [
        ((70_000, 1), "70000x1 pixels; expected at most 65535 on a side"),
        ((14_000, 14_000), "178956970 pixels"),
    ]:
        buffer = io.BytesIO()
        PIL.Image.new("1", size).save(buffer, "PNG")
        with pytest.raises(UserError, match=told):
            decode_image(buffer.getvalue(), "a.png")


def test_a_picture_that_takes_more_memory_than_there_is(monkeypatch):
    def full(*_):
        raise MemoryError

    buffer = io.BytesIO()
    PIL.Image.new("RGB", (4, 4)).save(buffer, "PNG")
    monkeypatch.setattr(image_files, "read_pixels", full)
    with pytest.raises(UserError, match=r"a\.png: cannot be read \(there is not enough memory for it\)"):
        decode_image(buffer.getvalue(), "a.png")
