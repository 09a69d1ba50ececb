"""Downloads an archive: resumes after an interruption and verifies the checksum."""

import hashlib
import http.client
import pathlib
import urllib.error
import urllib.request
from collections.abc import Callable

from mtlora_jax.errors import UserError
from mtlora_jax.io import files, locks

CHECKSUMS = pathlib.Path(__file__).with_name("checksums.tsv")  # url, size, sha256 and file name per line, as in TFDS
CHUNK = 1 << 20
ATTEMPTS = 5
TIMEOUT = 60  # seconds without any data
LARGEST = 2**36  # bytes


def download(
    url: str,
    path: pathlib.Path,
    sha256: str = "",
    report: Callable[[int, int], None] = lambda done, total: None,
    largest: int = LARGEST,
) -> pathlib.Path:
    """Downloads `url` to `path` unless the file exists, and verifies its checksum.

    The expected checksum is the first that is known of: `sha256`, the one in checksums.tsv, and the one that the first
    download of this file stored beside it. `report` is called with (bytes so far, total bytes). Raises UserError if the
    connection fails, the checksum differs, the file has more than `largest` bytes, or another program downloads it.
    """
    note = path.with_name(path.name + ".sha256")
    if not path.is_file():
        with locks.hold_lock_beside(path, "wait for its end"):
            _fetch_and_check(url, path, (sha256 or published(url) or _noted(note)).lower(), note, report, largest)
    elif expected := (sha256 or published(url) or _noted(note)).lower():
        check(path, expected)
    return path


def _noted(note: pathlib.Path) -> str:
    return next(iter(files.read_text(note).split()), "") if note.is_file() else ""


def _fetch_and_check(
    url: str, path: pathlib.Path, expected: str, note: pathlib.Path, report: Callable[[int, int], None], largest: int
) -> None:
    part = path.with_name(path.name + ".part")
    _fetch(url, part, report, largest)
    found = sha256_of(part)
    if expected and found != expected:
        part.unlink()
        raise UserError(f"{url}: has the SHA-256 {found}; expected {expected}. The downloaded file was removed")
    files.write_text(note, f"{found}  {path.name}\n")
    part.rename(path)


def check(path: pathlib.Path, sha256: str) -> None:
    """Raises UserError if a file is not the one with this checksum."""
    found = sha256_of(path)
    if found != sha256.lower():
        raise UserError(
            f"{path}: has the SHA-256 {found}; expected {sha256}. It is damaged or another version: "
            "delete it and start again"
        )


def sha256_of(path: pathlib.Path) -> str:
    """Returns the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def published(url: str) -> str:
    """Returns the checksum in checksums.tsv, or "" if there is none."""
    lines = CHECKSUMS.read_text(encoding="utf-8").splitlines()
    entries = (line.split("\t") for line in lines if line.strip() and not line.startswith("#"))
    return next((fields[2] for fields in entries if fields[0] == url), "")


def _fetch(url: str, part: pathlib.Path, report: Callable[[int, int], None], largest: int) -> None:
    """Fills `part`; raises UserError after several attempts in a row without new data."""
    failures, reason = 0, ""
    while failures < ATTEMPTS:
        before = _size(part)
        try:
            if _continue(url, part, report, largest):
                return
            reason = "the connection broke off"
        except urllib.error.HTTPError as error:
            if error.code == 416:  # `part` is longer than the file, so it belongs to another one
                part.unlink(missing_ok=True)
            elif error.code < 500:
                raise UserError(
                    f"{url}: {error.code} {error.reason}; get the archive elsewhere and give --manual_dir=FILE"
                ) from error
            reason = f"{error.code} {error.reason}"
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            reason = str(getattr(error, "reason", error)) or type(error).__name__
        except ValueError as error:
            raise UserError(f"{url}: not a valid URL ({error}); expected one such as https://HOST/FILE") from error
        failures = 0 if _size(part) > before else failures + 1
    has = f"; {_size(part)} bytes are kept, the same command continues from there" if _size(part) else ""
    raise UserError(f"{url}: cannot be downloaded ({reason}){has}")


def _continue(url: str, part: pathlib.Path, report: Callable[[int, int], None], largest: int) -> bool:
    """Appends what one connection delivers; returns whether the file is complete."""
    start = _size(part)
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        if response.status != http.client.PARTIAL_CONTENT:
            start = 0  # the server ignored the range and sends the whole file
        elif not response.headers.get("Content-Range", f"bytes {start}-").startswith(f"bytes {start}-"):
            part.unlink(missing_ok=True)  # the server sends another range, which does not continue `part`
            return False
        length = response.headers.get("Content-Length", "")
        total = start + int(length) if length.isascii() and length.isdigit() else 0
        with part.open("ab" if start else "wb") as file:
            done = start
            while done <= largest and total <= largest and (chunk := response.read(CHUNK)):
                done += file.write(chunk)
                report(done, total)
    if max(done, total) > largest:
        part.unlink()
        raise UserError(
            f"{url}: has more than {largest} bytes; expected an archive like the published one. "
            "The downloaded file was removed"
        )
    return not total or _size(part) == total


def _size(path: pathlib.Path) -> int:
    return path.stat().st_size if path.exists() else 0
