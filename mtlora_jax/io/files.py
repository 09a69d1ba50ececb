"""Paths, files and folders of users: the one place that expands paths, reads text and writes files.

Whatever the system refuses is a UserError that names the path.
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
LARGEST_TEXT = 2**28  # bytes of a text file; what is larger is something else
UNFINISHED = ".unfinished-"  # in the names of folders that are being written
# The longest marks first: that of UTF-16 begins that of UTF-32.
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
ATTEMPTS = 100  # to read a folder that is replaced again and again
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of Linux


def user_path(text: str | os.PathLike[str]) -> pathlib.Path:
    """A path as people write it: `~` and `~name` are home folders, as in a shell.

    Raises UserError for an empty path, a NUL character, and a user who does not exist.
    """
    name = os.fspath(text)
    if not name or "\0" in name:
        raise UserError(f"path {name!r} is empty" if not name else f"path {name!r} has a NUL character")
    expanded = os.path.expanduser(name)  # that of pathlib drops a leading "./" first
    if expanded.startswith("~"):
        raise UserError(f"{name}: the home folder {name.split('/')[0]} is not known; write ./{name} for a name that begins so")
    return pathlib.Path(expanded)


def same_form(name: str) -> str:
    """A name in one Unicode form: macOS stores an accented letter as two characters, other systems as one."""
    return unicodedata.normalize("NFC", name)


def reason_of(error: BaseException) -> str:
    """An error of the system, or of a library that passes it on, in a few words."""
    if is_full(error):
        return "no space left on the disk"
    told = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(told.split())[:300] or type(error).__name__


def is_full(error: BaseException) -> bool:
    """Whether an error says that the disk, or one's share of it, is full; libraries say it in their own words."""
    return (isinstance(error, OSError) and error.errno in DISK_FULL) or any(
        words in str(error) for words in ("No space left on device", "quota exceeded")
    )


def read_bytes(path: pathlib.Path, largest: int | None = None) -> bytes:
    """The contents of a file. Raises UserError if it cannot be read, is no ordinary file, or has more than `largest` bytes."""
    try:
        state = path.stat()
        if not stat.S_ISREG(state.st_mode):  # a pipe or a device would be waited for
            raise UserError(f"{path}: cannot be read (it is {'a folder' if stat.S_ISDIR(state.st_mode) else 'no ordinary file'})")
        if largest is not None and state.st_size > largest:
            raise UserError(f"{path}: has {state.st_size} bytes; expected at most {largest}")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({reason_of(error)})") from error


def read_text(path: pathlib.Path, lossy: bool = False, largest: int = LARGEST_TEXT) -> str:
    """A text file in UTF-8, or in UTF-16 or UTF-32 as Windows writes them; a byte order mark is no part of the text.

    Args:
      path: of the file.
      lossy: what is no text becomes a replacement character, as in logs that a kill cut off.
      largest: bytes that it may have.

    Raises:
      UserError: if it cannot be read, or is in another encoding.
    """
    data = read_bytes(path, largest)
    try:
        return data.decode(encoding_of(data), "replace" if lossy else "strict")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not {error.encoding.upper()} text (byte {error.start}: {error.reason}); save it as UTF-8") from error


def encoding_of(data: bytes) -> str:
    """The encoding of a text that begins with `data`: UTF-8, unless a byte order mark or the zeros of UTF-16 say otherwise."""
    return next((name for mark, name in BYTE_ORDER_MARKS.items() if data.startswith(mark)), None) or _without_mark(data)


def _without_mark(data: bytes) -> str:
    """The encoding of a text without byte order mark: every other byte of Latin letters in UTF-16 is 0."""
    sample = data[:4096]
    if len(sample) >= 2 and len(data) % 2 == 0:
        if sample[1::2].count(0) > len(sample) / 4 and not sample[::2].count(0):
            return "utf-16-le"
        if sample[::2].count(0) > len(sample) / 4 and not sample[1::2].count(0):
            return "utf-16-be"
    return "utf-8"


def read_json(path: pathlib.Path, largest: int = LARGEST_TEXT) -> Any:
    """The value of a JSON file of at most `largest` bytes. Raises UserError if it cannot be read or is no JSON."""
    return parse_json(read_text(path, largest=largest), str(path))


def parse_json(text: str, source: str) -> Any:
    """The value of a JSON text. Raises UserError naming `source` if it is none."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise UserError(f"{source} is not valid JSON: its brackets are too deep") from error
    except ValueError as error:
        raise UserError(f"{source} is not valid JSON: {error}") from error


def write_bytes(path: pathlib.Path, data: bytes | bytearray | memoryview) -> None:
    """Writes a file, whole or not at all; an existing one is replaced, folders are made. Raises UserError if that cannot be done."""
    # A short name of its own: `path.name` may be as long as names can be, and others may be writing the same file.
    temporary = path.with_name(f".{zlib.crc32(os.fsencode(path.name)):08x}-{os.getpid()}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except (OSError, ValueError) as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise UserError(f"{path}: cannot be written ({reason_of(error)})") from error


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a text file in UTF-8 as `write_bytes` does."""
    write_bytes(path, text.encode("utf-8", "surrogateescape"))  # names of files may hold bytes that are no text


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a JSON file as `write_bytes` does."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def check_writable(folder: pathlib.Path) -> None:
    """Raises UserError unless files can be written below `folder`, there or still to be made. Leaves nothing behind."""
    there = next(parent for parent in (folder, *folder.absolute().parents) if os.path.lexists(parent))
    expected = "expected a folder, or a name for a new one"
    if there.is_symlink() and not there.exists():
        raise UserError(f"{folder}: cannot be written ({there} is a link to {os.readlink(there)}, which is not there); {expected}")
    try:
        if not there.is_dir():
            raise UserError(f"{folder}: cannot be written ({there} is a file); {expected}")
        with tempfile.TemporaryFile(dir=there), contextlib.suppress(FileNotFoundError):
            folder.stat()  # for what is wrong with its name
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({there}: {reason_of(error)}); {expected}") from error


def make_folder(folder: pathlib.Path) -> None:
    """Makes a folder and those above it, where they are missing. Raises UserError if they cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: cannot be made ({reason_of(error)})") from error


@contextlib.contextmanager
def replacing(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """A temporary folder beside `folder` that takes its place when the block ends well, and vanishes when it does not.

    Whoever reads the folder meanwhile by `undisturbed` has the old one or the new one. What a killed program left half-written there is
    removed. Raises UserError for what cannot be written.
    """
    check_writable(folder)
    folder = folder.resolve()  # a link stays one
    make_folder(folder.parent)
    try:
        _remove_abandoned(folder)
        temporary = pathlib.Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}{UNFINISHED}"))
        held = os.open(temporary, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({reason_of(error)})") from error
    try:
        with contextlib.suppress(OSError):  # not every file system can lock
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        temporary.chmod(0o755)
        yield temporary
        _put_in_place(temporary, folder)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({reason_of(error)})") from error
    finally:
        os.close(held)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(f"{temporary}.old", ignore_errors=True)


def _remove_abandoned(folder: pathlib.Path) -> None:
    """Removes what writers that are gone have left: the lock of each ended with it."""
    for path in folder.parent.glob(f".{glob.escape(folder.name)}{UNFINISHED}*"):
        with contextlib.suppress(OSError):
            opened = os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(opened)


def _put_in_place(temporary: pathlib.Path, folder: pathlib.Path) -> None:
    """Gives `temporary` the name of `folder`, whose old contents take the other name where the system can exchange the two at once."""
    if not folder.exists():
        temporary.rename(folder)
    elif not _exchange(temporary, folder):
        folder.rename(f"{temporary}.old")
        temporary.rename(folder)


def _exchange(one: pathlib.Path, other: pathlib.Path) -> bool:
    """Exchanges the names of two folders in one step; whether this system and file system can."""
    if sys.platform != "linux":
        return False
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):  # a C library without it
        return False
    return rename(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0


def undisturbed(folder: pathlib.Path, read: Callable[[], Value]) -> Value:
    """What `read` makes of the files in `folder`, all of them of one save though the folder is replaced meanwhile.

    `read` is called again where that happened. Its errors are raised where it did not.
    """
    for _ in range(ATTEMPTS):
        try:
            opened = os.open(folder, os.O_RDONLY)
        except OSError:
            return read()  # and says what is wrong
        try:  # while it is open, no other folder gets its number
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
    raise UserError(f"{folder}: is replaced again and again while it is read; try once more")
