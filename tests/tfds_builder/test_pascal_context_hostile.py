"""Invalid paths, lists, images, caches and servers."""

import contextlib
import functools
import http.server
import io
import json
import os
import pathlib
import shutil
import subprocess
import sys
import threading
import zipfile

import numpy as np
import PIL.Image
import pytest
import raw_dummies
from raw_dummies import DUMMY, NYUD, PACKAGE, PASCAL, TRAIN

from mtlora_jax.errors import UserError
from mtlora_jax.io import files as mtlora_files
from mtlora_jax.io import locks
from tfds_pascal_context import convert, download, dummy, files
from tfds_pascal_context.nyud import NyudRaw
from tfds_pascal_context.pascal_context import PascalRaw
from tfds_pascal_context.verify import verify_built, verify_raw

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 48\n%%EndComments\n(out) (w) file pop\nshowpage\n%%EOF\n"


built = functools.partial(raw_dummies.built, tasks=["sal"])


def everything(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


PLACES = {
    "a file": lambda folder: (folder / "file", r"file is a file\)"),
    "below a file": lambda folder: (folder / "file" / "below", r"file is a file\)"),
    "a dangling link": lambda folder: (folder / "link", "which does not exist"),
    "below a dangling link": lambda folder: (folder / "link" / "below", "which does not exist"),
    "nowhere to write": lambda folder: ("/proc/data", r"/proc/data.* cannot be written"),
    "a device": lambda folder: ("/dev/null", "/dev/null is a file"),
    "a long name": lambda folder: (folder / ("a" * 300), "File name too long"),
    "nobody's home": lambda folder: ("~nobody-of-this-name/data", "home folder"),
    "no text": lambda folder: (folder / os.fsdecode(b"\xff"), "not UTF-8 text"),
    "nothing": lambda folder: ("", "is empty"),
}


@pytest.mark.parametrize("case", PLACES)
def test_places_that_cannot_be_written_to_are_refused_before_any_work(tmp_path, case, monkeypatch):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    place, message = PLACES[case](tmp_path)
    monkeypatch.setattr(convert, "convert_all", lambda *args: pytest.fail("began to work"))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=message):
        built(place)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("place", ["nothing", "file/below", "link", "pipe", "empty"])
@pytest.mark.parametrize("call", [lambda raw, data: built(data, raw), lambda raw, data: verify_raw(raw, ["sal"], 1)])
def test_places_without_raw_data(tmp_path, place, call):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match=rf"{place}: (no such file or folder|holds neither JPEGImages/)"):
        call(tmp_path / place, tmp_path / "data")


@pytest.mark.parametrize("name", ["lr[0.1]", "a*b?", "{x} %s", "größe", "x\ny"])
def test_names_with_any_letters(tmp_path, name):
    first, again = built(tmp_path / name), built(tmp_path / name)
    assert (first.converted, again.seconds) == (7, 0)
    assert verify_built(tmp_path / name, ["sal"], 1, allow_partial=True).problems == []


ENCODINGS = ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lists_as_other_systems_write_them(raw, encoding, end):
    (raw / "ImageSets/Context/train.txt").write_bytes(end.join([*TRAIN, ""]).encode(encoding))
    assert PascalRaw(raw).ids()["train"] == TRAIN


def test_invalid_lists(raw):
    path = raw / "ImageSets/Context/train.txt"
    for content, message in {
        "café\n".encode("latin-1"): r"train.txt: is not UTF-8 text \(byte 3",
        "café\n".encode(): r"train.txt: 'café' is not an image id",
        b"a" * 10**6 + b"\0": r"train.txt: 'a{80}' is not an image id",
        "\ufeff".encode(): "train.txt: empty",
    }.items():
        path.write_bytes(content)
        with pytest.raises(UserError, match=message) as caught:
            PascalRaw(raw).ids()
        assert len(str(caught.value)) < 500
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match="train.txt: no such file"):
        PascalRaw(raw).ids()


@pytest.fixture
def ghostscript(tmp_path, monkeypatch):
    """A `gs` that records whether it was started."""
    (tmp_path / "bin").mkdir()
    program, started = tmp_path / "bin" / "gs", tmp_path / "started"
    program.write_text(f"#!/bin/sh\ntouch {started}\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return started


@pytest.mark.parametrize(
    "name", ["JPEGImages/dummy_02.jpg", "sal_distill/dummy_02.png", "normals_distill/dummy_02.png"]
)
def test_a_picture_that_is_a_program_is_not_run(raw, tmp_path, ghostscript, name):
    (raw / name).write_bytes(EPS)
    read = files.check_jpeg if name.endswith(".jpg") else lambda path: files.read_image(path, ("L", "RGB"), "a PNG")
    with pytest.raises(UserError, match=rf"{name}: cannot be read \(no .*PNG image\)"):
        read(raw / name)
    report = verify_raw(raw, ["sal", "normals"], 1, allow_partial=True)
    assert [line.split(":")[0] for line in report.problems] == [str(raw / name)]
    with pytest.raises(UserError, match="no PNG image"):
        files.compressed(EPS)
    assert not ghostscript.exists()


def test_labels_that_lose_values_are_no_labels(raw):
    PIL.Image.fromarray(np.zeros((48, 64), np.uint8)).save(raw / "sal_distill/dummy_02.png", "JPEG")
    with pytest.raises(UserError, match=r"dummy_02.png: cannot be read \(no PNG image\); expected a grey PNG"):
        PascalRaw(raw).label("sal", "dummy_02", (48, 64))


def test_files_larger_than_any_of_the_data_set(raw):
    path = raw / "sal_distill/dummy_02.png"
    os.truncate(path, 2**42)  # of which almost nothing is on the disk
    with pytest.raises(UserError, match=r"dummy_02.png: has 4398046511104 bytes; expected at most"):
        PascalRaw(raw).label("sal", "dummy_02", (48, 64))


@pytest.mark.parametrize("task", ["normals", "edge", "depth"])
def test_arrays_whose_header_lies(tmp_path, task):
    raw = pathlib.Path(shutil.copytree(NYUD, tmp_path / "raw"))
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 1000000, 3), }\n"
    (raw / task / "0001.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(64))
    message = rf"{task}/0001.npy: cannot be read \(.*needs 12000000000000 bytes, but the file has 64\)"
    with pytest.raises(UserError, match=message):
        NyudRaw(raw).label(task, "0001", (24, 32))


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_arrays_in_other_order_and_versions(tmp_path, version):
    raw = pathlib.Path(shutil.copytree(NYUD, tmp_path / "raw"))
    expected = NyudRaw(raw).label("depth", "0001", (24, 32))
    path = raw / "depth/0001.npy"
    metres = np.asfortranarray(np.load(path).astype(">f8"))
    with path.open("wb") as file:
        np.lib.format.write_array(file, metres, version)
    np.testing.assert_array_equal(NyudRaw(raw).label("depth", "0001", (24, 32)), expected)


def cached(path, mark, tasks=("sal",), method=zipfile.ZIP_DEFLATED, **changes):
    contents = {convert.HEAD: json.dumps({"fingerprint": mark, "people": False, "resized": []})}
    contents |= {task: files.png(np.zeros((48, 64), np.uint8)) for task in tasks} | changes
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)


def lie(path, size):
    """Falsifies the size of the last entry in the directory of a zip file."""
    content = bytearray(path.read_bytes())
    at = content.rindex(b"PK\x01\x02")
    content[at + 24 : at + 28] = size.to_bytes(4, "little")
    path.write_bytes(content)


SMALL = files.png(np.zeros((4, 4), np.uint8))

LIES = {
    "a bomb": lambda path, mark: cached(path, mark, sal=bytes(2**25)),
    "a bomb that hides": lambda path, mark: (cached(path, mark, sal=bytes(2**24)), lie(path, 500)),
    "more than there is": lambda path, mark: (cached(path, mark), lie(path, 2**27)),
    "a compression that cannot be bounded": lambda path, mark: cached(path, mark, method=zipfile.ZIP_BZIP2),
    "no picture": lambda path, mark: cached(path, mark, sal=b"nothing"),
    "a program": lambda path, mark: cached(path, mark, sal=EPS),
    "other labels": lambda path, mark: cached(path, mark, ("edge",)),
    "labels of two sizes": lambda path, mark: cached(path, mark, ("sal", "edge"), edge=SMALL),
    "an invalid head": lambda path, mark: cached(path, mark, **{convert.HEAD: "[]"}),
    "other files": lambda path, mark: cached(path, "another"),
    "no archive": lambda path, mark: path.write_bytes(b"PK"),
    "a folder": lambda path, mark: path.mkdir(),
}


@pytest.mark.parametrize("case", LIES)
def test_an_invalid_cached_image_is_not_used(tmp_path, case, monkeypatch):
    monkeypatch.setattr(files, "LARGEST", 2**24)
    path, mark = tmp_path / "dummy_01.zip", "mark"
    tasks = ("sal", "edge") if "two sizes" in case else ("sal",)
    LIES[case](path, mark)
    assert convert.load(path, mark, tasks) is None
    if not path.is_dir():
        path.unlink()
        cached(path, mark, tasks)
        assert set(convert.load(path, mark, tasks).labels) == set(tasks)


def test_an_invalid_cached_image_is_made_again(tmp_path):
    raw, tasks = PascalRaw(PASCAL), ("sal",)
    list(convert.convert_all(raw, TRAIN, tasks, tmp_path, 1))
    good = everything(tmp_path)
    LIES["a program"](tmp_path / "dummy_02.zip", convert.fingerprint(raw, "dummy_02", tasks))
    again = list(convert.convert_all(raw, TRAIN, tasks, tmp_path, 1))
    assert [fresh for _, fresh in again] == [False, True, False, False]
    for path, content in good.items():
        with zipfile.ZipFile(path) as now, zipfile.ZipFile(io.BytesIO(content)) as then:
            assert now.read("sal") == then.read("sal")


def test_a_second_build_changes_not_one_byte(tmp_path):
    partial = tmp_path / "data" / "pascal_context" / "sal.partial"
    with locks.hold_lock(partial):
        (partial / "dummy_01.zip").write_bytes(b"of the first")
        before = everything(tmp_path)
        flags = [f"--data_dir={tmp_path / 'data'}", f"--manual_dir={DUMMY}", "--tasks=sal", "--workers=1"]
        command = [sys.executable, "-m", "tfds_pascal_context.build", "--allow_partial", *flags]
        done = subprocess.run(command, cwd=PACKAGE.parent, capture_output=True, text=True)
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"error: {partial}: another program writes there (host ")
        assert f"process {os.getpid()}, since " in line
        assert everything(tmp_path) == before
        assert verify_raw(PASCAL, ["sal"], 1, allow_partial=True).problems == []


def test_a_build_that_fails_at_once_leaves_no_folder(tmp_path, raw):
    (raw / "ImageSets/Context/val.txt").unlink()
    with pytest.raises(UserError, match=r"val\.txt"):
        built(tmp_path / "data", raw)
    assert not list((tmp_path / "data").rglob("*.partial"))


def test_dummy_data_replace_no_other_data(tmp_path):
    (tmp_path / "PASCAL_MT" / "JPEGImages").mkdir(parents=True)
    (tmp_path / "PASCAL_MT" / "JPEGImages" / "2008_000001.jpg").write_bytes(b"mine")
    with pytest.raises(UserError, match="PASCAL_MT: already exists and holds other data"):
        dummy.write_dummy_data(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["PASCAL_MT"]
    for _ in range(2):
        dummy.write_dummy_data(tmp_path / "new")


class Odd(http.server.BaseHTTPRequestHandler):
    """Answers with the headers and parts that the server has."""

    def do_GET(self):
        self.send_response(self.server.status)
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            for part in self.server.parts:
                self.wfile.write(part)

    def log_message(self, *args):
        pass


@contextlib.contextmanager
def serving(parts, status=200, **headers):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Odd) as server:
        server.parts, server.status = parts, status
        server.headers = {name.replace("_", "-"): value for name, value in headers.items()}
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/PASCAL_MT.tgz"
        finally:
            server.shutdown()
            thread.join()


def endless():
    while True:
        yield bytes(2**16)


@pytest.mark.parametrize(
    "headers", [{}, {"Content_Length": str(2**60)}, {"Content_Length": "many"}, {"Content_Length": "-5"}]
)
def test_a_server_that_never_ends(tmp_path, headers):
    with (
        serving(endless(), **headers) as url,
        pytest.raises(UserError, match="has more than 10000000 bytes; .* was removed") as caught,
    ):
        download.download(url, tmp_path / "PASCAL_MT.tgz", largest=10**7)
    assert str(caught.value).startswith(url)
    assert not list(tmp_path.iterdir())


def test_a_server_that_goes_on_elsewhere(tmp_path):
    (tmp_path / "PASCAL_MT.tgz.part").write_bytes(b"begun")
    ranges = {"Content_Range": "bytes 2-9/10", "Content_Length": "8"}
    with serving([b"23456789"], 206, **ranges) as url, pytest.raises(UserError, match="cannot be downloaded"):
        download.download(url, tmp_path / "PASCAL_MT.tgz")
    assert not (tmp_path / "PASCAL_MT.tgz").exists()


@pytest.mark.parametrize("url", ["nothing", "http//x/y", "unknown://x/y", "http://größe/ü", "http://[::1/x"])
def test_invalid_urls(tmp_path, url, monkeypatch):
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    with pytest.raises(UserError) as caught:
        download.download(url, tmp_path / "PASCAL_MT.tgz")
    assert str(caught.value).startswith(f"{url}: ")


@pytest.mark.parametrize("note", [b"", b"\xff\xfe\x00", "abc  PASCAL_MT.tgz".encode("utf-16")])
def test_a_stored_checksum_that_is_invalid_or_of_another_system(tmp_path, note):
    (tmp_path / "PASCAL_MT.tgz").write_bytes(b"there")
    (tmp_path / "PASCAL_MT.tgz.sha256").write_bytes(note)
    with pytest.raises(UserError) if note else contextlib.nullcontext():
        download.download("http://127.0.0.1:1/x", tmp_path / "PASCAL_MT.tgz")


def test_one_download_at_a_time(tmp_path):
    with (
        locks.hold_lock_beside(tmp_path / "PASCAL_MT.tgz"),
        pytest.raises(UserError, match="PASCAL_MT.tgz: another program writes there"),
    ):
        download.download("http://127.0.0.1:1/x", tmp_path / "PASCAL_MT.tgz")


def test_pictures_are_opened_in_one_place_only():
    for path in PACKAGE.glob("*.py"):
        text = mtlora_files.read_text(path)
        assert "Image.open" not in text, path
        assert "loadmat" not in text, path
        assert "np.load" not in text, path
        assert ".write_text(" not in text.replace("files.write_text(", ""), path
        assert ".read_text(" not in text.replace("files.read_text(", "").replace("CHECKSUMS.read_text(", ""), path
