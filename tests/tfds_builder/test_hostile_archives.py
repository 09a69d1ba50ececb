"""Malicious archives: whatever they hold, the result is one line in bounded time, and nothing is left behind."""

import gzip
import io
import os
import subprocess
import sys
import tarfile
import time

import pytest
from raw_dummies import PACKAGE, PASCAL

from mtlora_jax.errors import UserError
from tfds_pascal_context import source
from tfds_pascal_context.build import build
from tfds_pascal_context.pascal_context import PascalRaw
from tfds_pascal_context.verify import verify_raw


def header(name="PASCAL_MT/JPEGImages/x.jpg", size=0, **fields):
    member = tarfile.TarInfo(name)
    member.size = size
    for field, value in fields.items():
        setattr(member, field, value)
    return member


def tar(*members):
    """A tar file whose members are (header, contents), or bytes that are written as they are."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for member in members:
            if isinstance(member, bytes):
                archive.fileobj.write(member)
            else:
                archive.addfile(member[0], io.BytesIO(member[1]))
    return buffer.getvalue()


def file(name, content=b"x", **fields):
    return header(f"PASCAL_MT/{name}", len(content), **fields), content


def zeros(megabytes):
    """A gzip file of zeros, made quickly from parts of one megabyte."""
    return gzip.compress(bytes(2**20)) * megabytes


def claims(size, **fields):
    """A header that claims a size, without contents."""
    return header(size=size, **fields).tobuf(tarfile.GNU_FORMAT)


def sparse():
    member = bytearray(header(size=512, type=tarfile.GNUTYPE_SPARSE).tobuf(tarfile.GNU_FORMAT))
    member[386:398], member[398:410] = b"%011o\0" % 0, b"%011o\0" % 512  # offset and length of the only data
    member[483:495] = b"\x80" + (2**42).to_bytes(11, "big")  # size of the whole file
    member[148:156] = b" " * 8
    member[148:156] = b"%06o\0 " % sum(member)
    return bytes(member) + bytes(512)


def extension(kind, size, content=b""):
    return header("x", size, type=kind).tobuf(tarfile.GNU_FORMAT) + content


def pax(**records):
    """An extension header with these records for the next member; written by hand, since tarfile would check them."""
    lines = b""
    for key, value in records.items():
        line = b" " + key.encode().replace(b"_", b".") + b"=" + value + b"\n"
        length = len(line) + len(str(len(line) + 2))
        lines += str(length).encode() + line
    return extension(tarfile.XHDTYPE, len(lines), lines.ljust(-len(lines) % 512 + len(lines), b"\0"))


HOSTILE = {
    "a bomb in a photograph": (gzip.compress(claims(2**31)) + zeros(2**11), "has 2147483648 bytes; expected at most"),
    "a bomb in a file that is skipped": (
        gzip.compress(claims(2**40, name="other/x")) + zeros(60),
        "it unpacks to more than 33554432 bytes",
    ),
    "a bomb behind the end": (
        gzip.compress(tar(file("JPEGImages/x.jpg"))) + zeros(60),
        "it unpacks to more than 33554432 bytes",
    ),
    "a bomb of many small files": (
        gzip.compress(b"".join(file(f"JPEGImages/{n}")[0].tobuf() + bytes(512) for n in range(300))),
        "more than 200 members",
    ),
    "a sparse file of four terabytes": (sparse(), "has 4398046511104 bytes"),
    "sparse by an extension": (
        pax(GNU_sparse_major=b"0", GNU_sparse_minor=b"1", GNU_sparse_map=b"0,1", GNU_sparse_size=b"4398046511104")
        + claims(1)
        + bytes(512),
        "has 4398046511104 bytes",
    ),
    "a size by an extension": (pax(size=b"4398046511104") + claims(1) + bytes(512), "has 4398046511104 bytes"),
    "a negative size": (claims(-512), "."),
    "a file below a file": (
        tar(file("JPEGImages/x"), file("JPEGImages/x/y.jpg")),
        "its file 'JPEGImages/x/y.jpg': Not a directory|File exists",
    ),
    "a file in place of a folder": (
        tar(file("JPEGImages/x/y.jpg"), file("JPEGImages/x")),
        "its file 'JPEGImages/x': Is a directory|.",
    ),
    "a NUL in a name": (
        pax(path=b"JPEGImages/a\0b.jpg") + claims(0),
        "its file 'JPEGImages/a.x00b.jpg': embedded null",
    ),
    "a long name": (tar(file("JPEGImages/" + "a" * 300)), "its file 'JPEGImages/aaa.*: File name too long"),
    "a long path": (tar(file("JPEGImages/" + "a/" * 3000)), "does not belong in this data set"),
    "a name that climbs": (tar(file("JPEGImages/../../../../../evil.jpg")), "evil.jpg' does not belong in"),
    "one name twice": (tar(file("JPEGImages/a.jpg"), file("JPEGImages/a.jpg", b"y")), "a.jpg' occurs twice"),
    "a long extension": (extension(tarfile.XHDTYPE, 2**30), "it has a header of 1073741824 bytes"),
    "a long global extension": (extension(tarfile.XGLTYPE, 2**30), "it has a header of 1073741824 bytes"),
    "a long name by GNU": (extension(tarfile.GNUTYPE_LONGNAME, 2**30), "it has a header of 1073741824 bytes"),
    "extensions of extensions": (pax(comment=b"x") * 5000, "recursion|."),
    "no images": (
        tar((header("PASCAL_MT/JPEGImages/x.jpg", type=tarfile.SYMTYPE, linkname="/etc/passwd"), b"")),
        "holds no JPEGImages/",
    ),
    "devices": (tar((header("PASCAL_MT/JPEGImages/x.jpg", type=tarfile.CHRTYPE), b"")), "holds no JPEGImages/"),
    "noise": (bytes(range(256)) * 40, "."),
    "nothing": (b"", "."),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_one_line_and_nothing_left(tmp_path, case, monkeypatch):
    content, reason = HOSTILE[case]
    monkeypatch.setattr(source, "MOST_MEMBERS", 200)
    monkeypatch.setattr(source, "LEAST", 2**25)
    path = tmp_path / "in" / "PASCAL_MT.tgz"
    path.parent.mkdir()
    path.write_bytes(content if content.startswith(b"\x1f\x8b") else gzip.compress(content))
    start = time.monotonic()
    for call in (
        lambda: build(path, tmp_path / "data", ["sal"], 1, allow_partial=True),
        lambda: verify_raw(path, ["sal"], 1),
    ):
        message = rf"PASCAL_MT\.tgz: (cannot be unpacked \(.*({reason}).*\)|{reason}|holds no)"
        with pytest.raises(UserError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 600
    assert time.monotonic() - start < 20
    assert [item.name for item in path.parent.iterdir()] == ["PASCAL_MT.tgz"]
    assert not [item for item in (tmp_path / "data").rglob("*") if not item.is_dir() and item.parent.name != ".config"]
    assert not list(tmp_path.rglob("evil.jpg"))


ODD = {
    "absolute names": ("/PASCAL_MT/", {}),
    "names in a folder of their own": ("./a/b/PASCAL_MT/", {}),
    "a time without end": ("PASCAL_MT/", {"pax_headers": {"mtime": "inf"}}),
    "a time that is no number": ("PASCAL_MT/", {"pax_headers": {"mtime": "nan"}}),
    "a time after all times": ("PASCAL_MT/", {"pax_headers": {"mtime": "1" * 40}}),
    "rights that nobody has": ("PASCAL_MT/", {"mode": 0, "uid": 2**20, "uname": "nobody-of-this-name"}),
}


@pytest.mark.parametrize("case", ODD)
def test_odd_but_whole_archives_are_read(tmp_path, case):
    top, fields = ODD[case]
    with tarfile.open(tmp_path / "PASCAL_MT.tgz", "w:gz", format=tarfile.PAX_FORMAT) as archive:
        for _ in range(2):  # the same file twice is accepted
            for path in sorted(PASCAL.rglob("*.*")):
                member = header(f"{top}{path.relative_to(PASCAL)}", path.stat().st_size, **fields)
                archive.addfile(member, io.BytesIO(path.read_bytes()))
    opened = source.open_raw(PascalRaw, tmp_path / "PASCAL_MT.tgz", PascalRaw.tasks, tmp_path / "work", print)
    for path in PASCAL.rglob("*.*"):
        assert (opened.root / path.relative_to(PASCAL)).read_bytes() == path.read_bytes()
    assert not os.access(opened.root / "JPEGImages/dummy_01.jpg", os.X_OK)


def test_names_that_are_no_text_and_times_that_are(tmp_path):
    name = os.fsdecode(b"PASCAL_MT/JPEGImages/\xff.jpg")
    with tarfile.open(tmp_path / "PASCAL_MT.tgz", "w:gz", format=tarfile.GNU_FORMAT) as archive:
        archive.addfile(header(name, 1, mtime=10**9), io.BytesIO(b"x"))
    opened = source.open_raw(PascalRaw, tmp_path / "PASCAL_MT.tgz", ["sal"], tmp_path / "work", print)
    (path,) = (opened.root / "JPEGImages").iterdir()
    assert (os.fsencode(path.name), path.stat().st_mtime) == (b"\xff.jpg", 10**9)


def test_the_bound_grows_with_the_archive_up_to_that_of_the_data_set(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "LEAST", 1000)
    (tmp_path / "PASCAL_MT.tgz").write_bytes(gzip.compress(tar(file("JPEGImages/x.jpg", os.urandom(20_000)))))
    assert source.open_raw(PascalRaw, tmp_path / "PASCAL_MT.tgz", ["sal"], tmp_path / "work", print)
    monkeypatch.setattr(PascalRaw, "largest", 10_000)
    with pytest.raises(UserError, match="it unpacks to more than 10000 bytes"):
        source.open_raw(PascalRaw, tmp_path / "PASCAL_MT.tgz", ["sal"], tmp_path / "other", print)
    assert not (tmp_path / "other" / "unpacked").exists()


def test_a_command_ends_with_one_line(tmp_path):
    (tmp_path / "PASCAL_MT.tgz").write_bytes(gzip.compress(sparse()))
    flags = [f"--manual_dir={tmp_path}", f"--data_dir={tmp_path / 'data'}", "--workers=1"]
    command = [sys.executable, "-m", "tfds_pascal_context.build", *flags]
    done = subprocess.run(command, cwd=PACKAGE.parent, capture_output=True, text=True)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {tmp_path}/PASCAL_MT.tgz: cannot be unpacked (its file 'JPEGImages/x.jpg' has")
