"""MATLAB files: reading good ones and refusing bad ones, of which general readers crash on some."""

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import scipy.io
from raw_dummies import PACKAGE, PASCAL

from mtlora_jax.errors import UserError
from tfds_pascal_context import layout, matlab

HARMLESS = (ValueError, struct.error, zlib.error)
NUMBERS, TEXT, STRUCTURE = 13, 4, 2


def saved(compressed=True, **variables):
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, variables, do_compression=compressed)
    return buffer.getvalue()


def element(kind, content, order="<"):
    return struct.pack(f"{order}II", kind, len(content)) + content + bytes(-len(content) % 8)


def matrix(*values, category=NUMBERS, shape=(2, 3), name=b"LabelMap", flags=0, order="<"):
    kind, sizes = struct.pack(f"{order}II", category | flags, 0), struct.pack(f"{order}{len(shape)}i", *shape)
    parts = element(6, kind, order), element(5, sizes, order), element(1, name, order), *values
    return element(14, b"".join(parts), order)


def file(*elements, version=0x100, order="<"):
    marks = struct.pack(f"{order}H", version), b"IM" if order == "<" else b"MI"
    return b"".join((b"MATLAB 5.0".ljust(124), *marks, *elements))


def packed(content):
    data = zlib.compress(content, 9)
    return struct.pack("<II", 15, len(data)) + data


def same(ours, theirs):
    assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
    if ours.dtype.names is None:
        np.testing.assert_array_equal(ours, theirs)
    else:
        for one, other in zip(ours.ravel(), theirs.ravel(), strict=True):
            for name in ours.dtype.names:
                same(one[name], other[name])


@pytest.mark.parametrize("path", sorted(PASCAL.rglob("*.mat")), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_files_of_the_data_set_are_read_as_scipy_reads_them(path):
    variable = "anno" if path.parent.name == "human_parts" else "LabelMap"
    same(matlab.read(path.read_bytes(), variable), scipy.io.loadmat(path)[variable])


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"])
def test_numbers_of_every_type(dtype, compressed):
    values = np.arange(15).reshape(3, 5).astype(dtype)
    read = matlab.read(saved(compressed, other=np.ones(3), x=values), "x")
    np.testing.assert_array_equal(read, values)
    assert read.dtype == values.dtype


def test_texts_structures_and_what_is_empty():
    inner = {"flag": np.array([[True, False]]), "n": 3.5}
    x = {"word": "größer", "none": "", "empty": np.zeros((0, 0)), "inner": inner}
    same(matlab.read(saved(x=x), "x"), scipy.io.loadmat(io.BytesIO(saved(x=x)))["x"])
    (words,) = matlab.read(saved(x={"rows": np.array(["ab", "cd"])}), "x")["rows"].ravel()
    assert words.tolist() == ["ab", "cd"]


def test_numbers_of_the_other_byte_order():
    content = file(matrix(element(4, np.arange(6, dtype=">u2").tobytes(), ">"), order=">"), order=">")
    np.testing.assert_array_equal(matlab.read(content, "LabelMap"), [[0, 2, 4], [1, 3, 5]])


def test_a_field_that_is_only_a_tag_is_an_empty_matrix():
    names = element(5, struct.pack("<i", 8)), element(1, b"mask".ljust(8, b"\0"))
    read = matlab.read(file(matrix(*names, element(14, b""), category=STRUCTURE, shape=(1, 1))), "LabelMap")
    assert read["mask"].item().size == 0


SIX = element(2, bytes(6))
DEEP = matrix(SIX)
for _ in range(30):
    DEEP = matrix(element(5, struct.pack("<i", 1)), element(1, b"a"), DEEP, category=STRUCTURE, shape=(1, 1))
FIELD = element(5, struct.pack("<i", 1)), element(1, b"a")

HOSTILE = {
    "a type of numbers that is none": (
        file(matrix(element(199, bytes(6)))),
        "an element of type 199 where numbers should be",
    ),
    "numbers that are a matrix": (file(matrix(matrix(SIX))), "type 14 where numbers"),
    "a matrix larger than its bytes": (file(matrix(SIX, shape=(200, 300))), r"shape \(200, 300\) has 6 bytes"),
    "a matrix larger than any memory": (file(matrix(SIX, shape=(2**31 - 1,) * 4)), "has 6 bytes"),
    "a matrix smaller than its bytes": (file(matrix(SIX, shape=(1, 1))), "has 6 bytes"),
    "less than nothing": (file(matrix(SIX, shape=(-2, -3))), r"shape \(-2, -3\)"),
    "one dimension": (file(matrix(SIX, shape=(6,))), r"shape \(6,\)"),
    "40 dimensions": (file(matrix(SIX, shape=(1,) * 40)), "the shape"),
    "cut off": (file(matrix(SIX))[:-9], "is cut off"),
    "cut off in a tag": (file(matrix(SIX))[:132], "unpack_from requires"),
    "a size beyond the end": (file(struct.pack("<II", 14, 2**32 - 1), SIX), "element of 4294967295 bytes is cut off"),
    "a small element of 9 bytes": (file(struct.pack("<I", 9 << 16 | 14), bytes(20)), "small element of 9 bytes"),
    "no variable": (file(SIX), "type 2 where a variable should be"),
    "another variable": (file(matrix(SIX, name=b"other")), "has no variable LabelMap"),
    "deep structures": (file(DEEP), "depth 9"),
    "many records": (file(matrix(*FIELD, category=STRUCTURE, shape=(2**30, 1))), "has no room in"),
    "many empty fields": (
        file(packed(matrix(*FIELD, element(14, b"") * 200_000, category=STRUCTURE, shape=(200_000, 1)))),
        "more than 100000 elements",
    ),
    "names of length 0": (file(matrix(element(5, bytes(4)), element(1, b"a"), category=STRUCTURE)), "names of 0"),
    "names of no length": (file(matrix(element(5, b""), element(1, b"a"), category=STRUCTURE)), "unpack"),
    "one name twice": (
        file(matrix(*FIELD[:1], element(1, b"aa"), category=STRUCTURE, shape=(0, 0))),
        "occurs more than once",
    ),
    "complex numbers": (file(matrix(SIX, SIX, flags=0x800)), "it has complex numbers"),
    "cells": (saved(LabelMap=np.array([[1, "a"]], object)), "it has cells"),
    "a sparse matrix": (file(matrix(SIX, category=5)), "it has a sparse matrix"),
    "a class that is none": (file(matrix(SIX, category=250)), "values of class 250"),
    "a long text": (file(matrix(element(4, bytes(4000)), category=TEXT, shape=(1, 2000))), "4000 bytes where a text"),
    "a text that is none": (file(matrix(element(16, b"\xff\xfe"), category=TEXT, shape=(1, 2))), "decode"),
    "damaged zlib": (file(struct.pack("<II", 15, 20), bytes(20)), "Error -3"),
    "zlib cut off": (
        file(struct.pack("<II", 15, 30), zlib.compress(bytes(range(256)) * 9)[:30]),
        "compressed variable is cut off",
    ),
    "empty": (b"", "it is empty"),
    "text": (b"<html>404 not found</html>" * 20, "it is not a MATLAB file"),
    "version 4": (
        struct.pack("<5i", 0, 2, 3, 0, 2) + b"x\0" + bytes(48),
        "version 4 or is not a MATLAB file; save it again in MATLAB",
    ),
    "version 7.3": (
        file(version=0x200).ljust(512, b"\0") + b"\x89HDF\r\n\x1a\n" + bytes(100),
        "version 7.3, which is HDF5; save it again",
    ),
    "version 9": (file(matrix(SIX), version=0x900), "unknown version 0x900"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_refused_in_one_line_that_names_them(tmp_path, case):
    content, reason = HOSTILE[case]
    path = tmp_path / "x.mat"
    path.write_bytes(content)
    message = rf"x\.mat: cannot be read \(.*{reason}.*\); expected a PASCAL-Context annotation"
    with pytest.raises(UserError, match=message):
        layout.read_context(path)


def test_a_bomb_is_bounded(monkeypatch):
    monkeypatch.setattr(matlab, "LARGEST", 10**6)
    bomb = packed(matrix(element(2, bytes(700_000)), shape=(700, 1000), name=b"other"))
    for elements in ([packed(bytes(2 * 10**6))], [bomb, bomb]):
        with pytest.raises(ValueError, match="it unpacks to more than 1000000 bytes"):
            matlab.read(file(*elements), "LabelMap")


@pytest.mark.parametrize("value", [-1, 70_000, 1.5, np.nan, np.inf])
def test_invalid_classes_are_named(tmp_path, value):
    (tmp_path / "x.mat").write_bytes(saved(LabelMap=np.full((3, 4), value)))
    with pytest.raises(UserError, match=r"x\.mat: LabelMap has the value"):
        layout.read_context(tmp_path / "x.mat")


@pytest.mark.parametrize("compressed", [False, True])
def test_a_few_thousand_mutations_are_read_or_refused(compressed):
    rng = np.random.default_rng(0)
    anno = scipy.io.loadmat(PASCAL / "human_parts/dummy_04.mat")["anno"]
    originals = {
        "anno": saved(compressed, anno=anno),
        "LabelMap": saved(compressed, LabelMap=np.arange(12, dtype=np.uint16)),
    }
    refused = 0
    for _ in range(1500):
        variable = rng.choice(list(originals))
        content = bytearray(originals[variable])
        for _ in range(rng.integers(1, 5)):
            at = rng.integers(100, min(len(content), 2000)) if rng.random() < 0.8 else rng.integers(len(content))
            content[at] = rng.choice([0, 1, 4, 14, 127, 128, 199, 255, content[at] ^ 1 << rng.integers(8)])
        if rng.random() < 0.1:
            content = content[: rng.integers(len(content))]
        try:
            matlab.read(bytes(content), variable)
        except HARMLESS:
            refused += 1
    assert refused > 500


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("command", "folder"), [("build", "human_parts"), ("build", "pascal-context/trainval"), ("verify", "human_parts")]
)
def test_commands_name_the_file(raw, tmp_path, command, folder, workers):
    path = raw / folder / "dummy_02.mat"
    path.write_bytes(file(*(matrix(element(199, bytes(6)), name=name) for name in (b"anno", b"LabelMap"))))
    flags = [f"--manual_dir={raw}", f"--workers={workers}", "--allow_partial", "--tasks=human_parts,edge"]
    flags += [f"--data_dir={tmp_path / 'data'}"] if command == "build" else []
    program = [sys.executable, "-m", f"tfds_pascal_context.{command}"]
    done = subprocess.run([*program, *flags], cwd=PACKAGE.parent, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    lines = [line for line in (done.stderr if command == "build" else done.stdout).splitlines() if str(path) in line]
    assert len(lines) == 1
    assert "type 199" in lines[0]
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert not list(tmp_path.rglob("*.array_record*"))
