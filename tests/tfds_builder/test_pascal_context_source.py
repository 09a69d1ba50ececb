"""Local and downloaded archives."""

import contextlib
import http.server
import shutil
import tarfile
import threading

import pytest
import raw_dummies
import tensorflow_datasets as tfds
from raw_dummies import DUMMY, NYUD, PASCAL

from mtlora_jax.errors import UserError
from tfds_pascal_context import download, source
from tfds_pascal_context.pascal_context import PascalRaw
from tfds_pascal_context.verify import verify_raw


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    path = tmp_path_factory.mktemp("archive") / "PASCAL_MT.tgz"
    with tarfile.open(path, "w:gz") as members:
        members.add(PASCAL, "PASCAL_MT")
    return path


class Server(http.server.ThreadingHTTPServer):
    """Serves `content`; cuts the first `breaks` answers off after `limit` bytes."""

    def __init__(self, content, limit=0, breaks=0, ranges=True, status=200):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.limit, self.breaks, self.ranges, self.status = content, limit, breaks, ranges, status
        self.starts = []  # first byte of every answer
        self.url = f"http://127.0.0.1:{self.server_port}/PASCAL_MT.tgz"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        server = self.server
        asked = self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and server.ranges else 0
        server.starts.append(start)
        if server.status != 200 or start >= len(server.content):
            self.send_error(server.status if server.status != 200 else 416)
            return
        body = server.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if server.breaks:
            server.breaks -= 1
            body = body[: server.limit]
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@contextlib.contextmanager
def serving(*args, **kwargs):
    with Server(*args, **kwargs) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def built(data, manual_dir=None, **kwargs):
    return raw_dummies.built(data, manual_dir, **kwargs)


@pytest.mark.parametrize("place", ["archive", "folder with the archive", "unpacked", "folder with the unpacked"])
def test_every_place_the_data_may_be_in(tmp_path, archive, place):
    places = {"archive": archive, "folder with the archive": archive.parent, "unpacked": PASCAL}
    result = built(tmp_path, places.get(place, DUMMY))
    assert result.examples == {"train": 4, "val": 3}
    assert not list(tmp_path.rglob("*.mat"))  # nothing unpacked is left


def test_of_an_archive_only_what_the_tasks_need_is_unpacked(tmp_path, archive):
    opened = source.open_raw(PascalRaw, archive, ["sal"], tmp_path, print)
    found = sorted(path.name for path in opened.root.iterdir())
    assert found == ["ImageSets", "JPEGImages", "sal_distill", "unpacked.txt"]
    state = (opened.root / "JPEGImages/dummy_01.jpg").stat()
    again = source.open_raw(PascalRaw, archive, ["sal"], tmp_path, print)  # not unpacked again
    assert (again.root / "JPEGImages/dummy_01.jpg").stat().st_ino == state.st_ino


def test_more_tasks_are_unpacked_later(tmp_path, archive):
    source.open_raw(PascalRaw, archive, ["sal"], tmp_path, print)
    opened = source.open_raw(PascalRaw, archive, ["sal", "edge"], tmp_path, print)
    assert opened.has("edge")


def test_verify_reads_an_archive_and_leaves_nothing(archive):
    report = verify_raw(archive, workers=1, allow_partial=True)
    assert (report.whole, report.problems) == (7, [])
    assert [path.name for path in archive.parent.iterdir()] == ["PASCAL_MT.tgz"]


@pytest.mark.parametrize("share", [0.01, 0.5, 0.95, -4])
def test_archive_cut_off(tmp_path, archive, share):
    content = archive.read_bytes()
    cut = tmp_path / "PASCAL_MT.tgz"
    cut.write_bytes(content[: int(len(content) * share) if share > 0 else share])
    with pytest.raises(UserError, match=r"PASCAL_MT.tgz: cannot be unpacked .* fetch it again"):
        built(tmp_path / "data", cut)
    assert not [path for path in (tmp_path / "data").rglob("*") if path.suffix in (".jpg", ".array_record")]


def test_archive_with_a_wrong_byte(tmp_path, archive):
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 255
    (tmp_path / "PASCAL_MT.tgz").write_bytes(content)
    with pytest.raises(UserError, match=r"PASCAL_MT.tgz: cannot be unpacked"):
        built(tmp_path / "data", tmp_path)


def test_another_archive_and_no_archive(tmp_path):
    with tarfile.open(tmp_path / "other.tgz", "w:gz") as members:
        members.add(NYUD, "NYUD_MT")
    with pytest.raises(UserError, match=r"other.tgz: holds no JPEGImages/; expected PASCAL_MT.tgz"):
        built(tmp_path / "data", tmp_path / "other.tgz")
    (tmp_path / "text.tgz").write_text("404 not found")
    with pytest.raises(UserError, match=r"text.tgz: cannot be unpacked .*fetch it again"):
        built(tmp_path / "data", tmp_path / "text.tgz")


def test_archive_with_a_member_that_climbs_out_is_refused(tmp_path):
    with tarfile.open(tmp_path / "PASCAL_MT.tgz", "w:gz") as members:
        members.add(PASCAL / "JPEGImages/dummy_01.jpg", "JPEGImages/../../../../evil.jpg")
    with pytest.raises(UserError, match="PASCAL_MT.tgz: cannot be unpacked"):
        built(tmp_path / "a/b/c/data", tmp_path)
    assert not list(tmp_path.rglob("evil.jpg"))


def test_checksum_of_a_local_archive(tmp_path, archive):
    with pytest.raises(UserError, match=r"PASCAL_MT.tgz: has the SHA-256 .* expected 00"):
        built(tmp_path, archive, sha256="00")
    assert built(tmp_path, archive, sha256=download.sha256_of(archive)).seconds


def test_download_notes_its_checksum_and_is_used_again(tmp_path, archive):
    with serving(archive.read_bytes()) as server:
        assert built(tmp_path, url=server.url).examples == {"train": 4, "val": 3}
        assert built(tmp_path, url=server.url, tasks=["sal"]).examples == {"train": 4, "val": 3}
        assert server.starts == [0]
        file = tmp_path / "downloads" / "PASCAL_MT.tgz"
        note = tmp_path / "downloads/PASCAL_MT.tgz.sha256"
        assert note.read_text() == f"{download.sha256_of(archive)}  PASCAL_MT.tgz\n"
        file.write_bytes(file.read_bytes()[:-1])  # damaged on the disk
        with pytest.raises(UserError, match=r"downloads/PASCAL_MT.tgz: has the SHA-256 .*delete it and start again"):
            built(tmp_path, url=server.url, tasks=["edge"])


def test_another_file_at_the_same_url_is_noticed(tmp_path, archive):
    path = tmp_path / "PASCAL_MT.tgz"
    with serving(archive.read_bytes()) as server:
        download.download(server.url, path)
        path.unlink()
        server.content = server.content[:-1]
        with pytest.raises(UserError, match=r"has the SHA-256 .*The downloaded file was removed"):
            download.download(server.url, path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["PASCAL_MT.tgz.sha256"]


@pytest.mark.parametrize("ranges", [True, False])
def test_download_that_breaks_off_goes_on(tmp_path, ranges):
    content = bytes(range(256)) * 40
    with serving(content, limit=4000, breaks=2, ranges=ranges) as server:
        seen = []
        path = download.download(server.url, tmp_path / "PASCAL_MT.tgz", report=lambda *sizes: seen.append(sizes))
        assert server.starts == ([0, 4000, 8000] if ranges else [0, 0, 0])
    assert path.read_bytes() == content
    assert seen[-1] == (10240, 10240)


def test_download_that_never_ends_keeps_what_it_has_for_the_next_call(tmp_path):
    content = bytes(10000)
    with serving(content, limit=0, breaks=10**6) as server:
        (tmp_path / "PASCAL_MT.tgz.part").write_bytes(content[:3000])
        with pytest.raises(UserError, match=r"cannot be downloaded \(the connection broke off\); 3000 bytes are kept"):
            download.download(server.url, tmp_path / "PASCAL_MT.tgz")
        server.breaks = 0
        assert download.download(server.url, tmp_path / "PASCAL_MT.tgz").read_bytes() == content


def test_a_beginning_longer_than_the_file_is_dropped(tmp_path):
    with serving(b"short") as server:
        (tmp_path / "PASCAL_MT.tgz.part").write_bytes(bytes(100))
        assert download.download(server.url, tmp_path / "PASCAL_MT.tgz").read_bytes() == b"short"


def test_wrong_checksum_missing_file_and_no_server(tmp_path, archive):
    message = r"http.*has the SHA-256 .* expected abc"
    with serving(archive.read_bytes()) as server, pytest.raises(UserError, match=message):
        built(tmp_path, url=server.url, sha256="abc")
    message = r"http.*: 404 Not Found; .* give --manual_dir=FILE"
    with serving(b"", status=404) as server, pytest.raises(UserError, match=message):
        built(tmp_path, url=server.url)
    message = r"http.*cannot be downloaded \(503 Service Unavailable\)"
    with serving(b"", status=503) as server, pytest.raises(UserError, match=message):
        built(tmp_path, url=server.url)
    with pytest.raises(UserError, match=r"http.*cannot be downloaded \(.*refused"):
        built(tmp_path, url=server.url)  # closed by now
    assert not list((tmp_path / "downloads").glob("PASCAL_MT*"))


def test_published_checksum_is_looked_up(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "CHECKSUMS", tmp_path / "checksums.tsv")
    (tmp_path / "checksums.tsv").write_text("# comment\nhttp://a/b.tgz\t12\tabc\tb.tgz\n")
    assert download.published("http://a/b.tgz") == "abc"


def test_default_manual_folder_of_tfds_is_looked_into(tmp_path):
    shutil.copytree(PASCAL, tmp_path / "downloads" / "manual" / "PASCAL_MT")
    builder = tfds.builder(
        "pascal_context/sal", data_dir=str(tmp_path), allow_partial=True, workers=1, url="http://127.0.0.1:1/none"
    )
    builder.download_and_prepare(download_dir=str(tmp_path / "downloads"), file_format="array_record")
    assert len(builder.as_data_source("val")) == 3
