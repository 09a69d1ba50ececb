"""Expands paths, reads text, and writes files and folders atomically.

Every error of the operating system becomes a UserError that names the path.
"""

import codecs
import contextlib
import ctypes
import errno
import fcntl
import glob
import json
import os
import pathlib
import shutil
import stat
import sys
import tempfile
import time
import unicodedata
import zlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from mtlora_jax.errors import UserError

Value = TypeVar("Value")

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
MAX_TEXT_BYTES = 2**28  # of a text file
UNFINISHED = ".unfinished-"  # in the names of folders that are being written
# UTF-32 first, since its mark begins with that of UTF-16.
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
MAX_ATTEMPTS = 100  # to read a folder that is being replaced repeatedly
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # Linux constants


def user_path(text: str | os.PathLike[str]) -> pathlib.Path:
    """Expand `~` and `~name` to home folders, as a shell does.

    Raises UserError for an empty path, a NUL character, or an unknown user.
    """
    name = os.fspath(text)
    if not name or "\0" in name:
        raise UserError(f"path {name!r} is empty" if not name else f"path {name!r} has a NUL character")
    expanded = os.path.expanduser(name)  # that of pathlib drops a leading "./" first
    if expanded.startswith("~"):
        home = name.split("/")[0]
        raise UserError(f"{name}: the home folder {home} is not known; write ./{name} for a name that begins with it")
    return pathlib.Path(expanded)


def normalize_name(name: str) -> str:
    """Convert a name to Unicode form NFC; macOS stores an accented letter as two characters."""
    return unicodedata.normalize("NFC", name)


def describe_error(error: BaseException) -> str:
    """Describe an error of the system or a library in a few words."""
    if is_disk_full(error):
        return "no space left on the disk"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:300] or type(error).__name__


def is_disk_full(error: BaseException) -> bool:
    """Whether an error means that the disk or the quota is full, also in the words of libraries."""
    return (isinstance(error, OSError) and error.errno in DISK_FULL) or any(
        words in str(error) for words in ("No space left on device", "quota exceeded")
    )


def read_bytes(path: pathlib.Path, max_bytes: int | None = None) -> bytes:
    """Read a file. Raises UserError if it cannot be read, is no regular file, or is larger than `max_bytes`."""
    try:
        state = path.stat()
        if not stat.S_ISREG(state.st_mode):  # reading a pipe or a device could block
            kind = "a folder" if stat.S_ISDIR(state.st_mode) else "no ordinary file"
            raise UserError(f"{path}: cannot be read (it is {kind})")
        if max_bytes is not None and state.st_size > max_bytes:
            raise UserError(f"{path}: has {state.st_size} bytes; expected at most {max_bytes}")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({describe_error(error)})") from error


def read_text(path: pathlib.Path, lossy: bool = False, max_bytes: int = MAX_TEXT_BYTES) -> str:
    """Read a text file in UTF-8, or in UTF-16 or UTF-32 as Windows writes them, without its byte order mark.

    Args:
      path: of the file.
      lossy: replace invalid bytes by a replacement character, as for logs truncated by a kill.
      max_bytes: the largest size to read.

    Raises:
      UserError: if it cannot be read, or is in another encoding.
    """
    data = read_bytes(path, max_bytes)
    try:
        return data.decode(detect_encoding(data), "replace" if lossy else "strict")
    except UnicodeDecodeError as error:
        found = f"is not {error.encoding.upper()} text (byte {error.start}: {error.reason})"
        raise UserError(f"{path}: {found}; save it as UTF-8") from error


def detect_encoding(data: bytes) -> str:
    """Detect the encoding of a text from its first bytes: UTF-8 unless a mark or the zeros of UTF-16 differ."""
    return next((name for mark, name in BYTE_ORDER_MARKS.items() if data.startswith(mark)), None) or _without_mark(data)


def _without_mark(data: bytes) -> str:
    """Detect the encoding of a text without byte order mark: in UTF-16, every other byte of Latin letters is 0."""
    sample = data[:4096]
    if len(sample) >= 2 and len(data) % 2 == 0:
        if sample[1::2].count(0) > len(sample) / 4 and not sample[::2].count(0):
            return "utf-16-le"
        if sample[::2].count(0) > len(sample) / 4 and not sample[1::2].count(0):
            return "utf-16-be"
    return "utf-8"


def read_json(path: pathlib.Path, max_bytes: int = MAX_TEXT_BYTES) -> Any:
    """Read a JSON file of at most `max_bytes`. Raises UserError if it cannot be read or is not JSON."""
    return parse_json(read_text(path, max_bytes=max_bytes), str(path))


def parse_json(text: str, source: str) -> Any:
    """Parse a JSON text. Raises UserError naming `source` if it is not valid."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise UserError(f"{source} is not valid JSON: its brackets are too deep") from error
    except ValueError as error:
        raise UserError(f"{source} is not valid JSON: {error}") from error


def write_bytes(path: pathlib.Path, data: bytes | bytearray | memoryview) -> None:
    """Write a file atomically; replace an existing one and create folders. Raises UserError on failure."""
    # A short, unique name: `path.name` may have the maximal length, and other processes may write the same file.
    temporary = path.with_name(f".{zlib.crc32(os.fsencode(path.name)):08x}-{os.getpid()}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except (OSError, ValueError) as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise UserError(f"{path}: cannot be written ({describe_error(error)})") from error


def write_text(path: pathlib.Path, text: str) -> None:
    """Write a text file in UTF-8 as `write_bytes` does."""
    write_bytes(path, text.encode("utf-8", "surrogateescape"))  # file names may hold bytes that are not text


def write_json(path: pathlib.Path, value: Any) -> None:
    """Write a JSON file as `write_bytes` does."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def check_writable(folder: pathlib.Path) -> None:
    """Check that files can be written below `folder`, which need not exist; leave nothing behind."""
    there = next(parent for parent in (folder, *folder.absolute().parents) if os.path.lexists(parent))
    expected = "expected a folder, or a name for a new one"
    if there.is_symlink() and not there.exists():
        broken = f"{there} is a link to {os.readlink(there)}, which does not exist"
        raise UserError(f"{folder}: cannot be written ({broken}); {expected}")
    try:
        if not there.is_dir():
            raise UserError(f"{folder}: cannot be written ({there} is a file); {expected}")
        with tempfile.TemporaryFile(dir=there), contextlib.suppress(FileNotFoundError):
            folder.stat()  # fails for an invalid name
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({there}: {describe_error(error)}); {expected}") from error


def make_folder(folder: pathlib.Path) -> None:
    """Create a folder and its parents if they are missing. Raises UserError on failure."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: cannot be created ({describe_error(error)})") from error


@contextlib.contextmanager
def atomic_folder(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yield a temporary folder that replaces `folder` if the block succeeds, and is deleted if it fails.

    Concurrent readers with `read_consistently` get either the old or the new folder. Remains of killed programs are
    removed. Raises UserError if it cannot be written.
    """
    check_writable(folder)
    folder = folder.resolve()  # keeps a link a link
    make_folder(folder.parent)
    try:
        _remove_abandoned(folder)
        temporary = pathlib.Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}{UNFINISHED}"))
        held = os.open(temporary, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({describe_error(error)})") from error
    try:
        with contextlib.suppress(OSError):  # not every file system can lock
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        temporary.chmod(0o755)
        yield temporary
        _put_in_place(temporary, folder)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({describe_error(error)})") from error
    finally:
        os.close(held)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(f"{temporary}.old", ignore_errors=True)


def _remove_abandoned(folder: pathlib.Path) -> None:
    """Remove temporary folders of dead writers, whose locks ended with them."""
    for path in folder.parent.glob(f".{glob.escape(folder.name)}{UNFINISHED}*"):
        with contextlib.suppress(OSError):
            opened = os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(opened)


def _put_in_place(temporary: pathlib.Path, folder: pathlib.Path) -> None:
    """Rename `temporary` to `folder`; exchange the two names in one step if the system can."""
    if not folder.exists():
        temporary.rename(folder)
    elif not _exchange(temporary, folder):
        folder.rename(f"{temporary}.old")
        temporary.rename(folder)


def _exchange(one: pathlib.Path, other: pathlib.Path) -> bool:
    """Exchange the names of two folders in one step; return whether the system and file system can."""
    if sys.platform != "linux":
        return False
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):  # a C library without it
        return False
    return rename(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0


def read_consistently(folder: pathlib.Path, read: Callable[[], Value]) -> Value:
    """Call `read` until the files in `folder` all come from one save, even if it is replaced meanwhile.

    Returns what `read` returns. Raises the errors of `read`, and UserError if the folder never stays the same.
    """
    for _ in range(MAX_ATTEMPTS):
        try:
            opened = os.open(folder, os.O_RDONLY)
        except OSError:
            return read()  # which reports what is wrong
        try:  # while it is open, no other folder gets its inode
            try:
                value, fault = read(), None
            except UserError as error:
                value, fault = None, error
            before = os.fstat(opened)
            with contextlib.suppress(FileNotFoundError):
                after = folder.stat()
                if (before.st_dev, before.st_ino) == (after.st_dev, after.st_ino):
                    if fault:
                        raise fault
                    return value  # pyright: ignore[reportReturnType]
        finally:
            os.close(opened)
        time.sleep(0.001)
    raise UserError(f"{folder}: is replaced again and again while it is read; try again")
