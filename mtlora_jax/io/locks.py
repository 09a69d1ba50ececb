"""Locks a folder for one writer; a second program learns who holds the lock and changes nothing."""

import contextlib
import datetime
import errno
import fcntl
import os
import pathlib
import socket
from collections.abc import Iterator

from mtlora_jax.errors import UserError
from mtlora_jax.io import files

NAME = ".lock"
NOT_SUPPORTED = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)  # from file systems that cannot lock


@contextlib.contextmanager
def hold_lock(folder: pathlib.Path, advice: str = "wait for its end, or choose another folder") -> Iterator[None]:
    """Hold the lock of `folder` until the block or this process ends. Creates the folder if it does not exist.

    The system releases the lock when the process dies, so a leftover lock file means nothing. Readers are not affected.
    Folders created here that are still empty at the end are removed. Raises UserError naming host, process and start
    time if another program holds the lock; nothing is changed then.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    files.make_folder(folder)
    try:
        with _locked(folder / NAME, folder, advice):
            yield
    finally:
        with contextlib.suppress(OSError):  # if they are not empty
            for path in made:
                path.rmdir()


@contextlib.contextmanager
def hold_lock_beside(
    folder: pathlib.Path, advice: str = "wait for its end, or choose another folder"
) -> Iterator[None]:
    """Like `hold_lock`, for a folder that is replaced as a whole: the lock file is beside it."""
    folder = folder.resolve()
    files.make_folder(folder.parent)
    with _locked(folder.with_name(f".{folder.name[:200]}{NAME}"), folder, advice):
        yield


@contextlib.contextmanager
def _locked(path: pathlib.Path, folder: pathlib.Path, advice: str) -> Iterator[None]:
    opened = _acquire(path, folder, advice)
    try:
        yield
    finally:
        # Unlinked while still locked, so that nobody locks a file that has no name.
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(opened)


def _acquire(path: pathlib.Path, folder: pathlib.Path, advice: str) -> int:
    """Return an open descriptor that holds the lock."""
    while True:
        try:
            opened = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UserError(f"{folder}: cannot be written ({files.describe_error(error)})") from error
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in NOT_SUPPORTED:
                return opened
            owner = os.pread(opened, 1000, 0).decode(errors="replace").strip()
            os.close(opened)
            raise UserError(
                f"{folder}: another program writes there ({owner or 'it has just started'}); {advice}"
            ) from error
        if _is(opened, path):
            break
        os.close(opened)  # its owner ended and removed it between the two calls
    since = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
    os.ftruncate(opened, 0)
    os.pwrite(opened, f"host {socket.gethostname()}, process {os.getpid()}, since {since}\n".encode(), 0)
    return opened


def _is(opened: int, path: pathlib.Path) -> bool:
    """Whether an open file is still the one with this name."""
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    mine = os.fstat(opened)
    return (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino)
