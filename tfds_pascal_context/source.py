"""Finds the raw data: an unpacked folder, an archive, or a folder that holds either."""

import contextlib
import gzip
import os
import pathlib
import shutil
import tarfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mtlora_jax.errors import UserError
from mtlora_jax.io import files
from tfds_pascal_context.files import LARGEST
from tfds_pascal_context.raw import Raw

# Bounds of an archive, besides the number of bytes of its data set.
RATIO = 100  # unpacked to packed bytes: photographs hardly shrink, the label arrays of NYUD_MT to about a tenth
LEAST = 2**28  # bytes; RATIO does not apply to an archive that unpacks to less
MOST_MEMBERS = 500_000  # about five times those of PASCAL_MT
DEEPEST = 8  # folders
LARGEST_HEADER = 2**16  # bytes of an extension, such as a long name
PAX_EXTENSIONS = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
EXTENSIONS = (*PAX_EXTENSIONS, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)


def find(raw: type[Raw], place: pathlib.Path) -> pathlib.Path | None:
    """Finds the unpacked folder or the archive that `place` is or holds; None if neither exists."""
    inside = pathlib.Path(raw.archive).stem
    for folder in (place, place / inside):
        if (folder / raw.images).is_dir():
            return folder
    return next((file for file in (place, place / raw.archive) if file.is_file()), None)


def find_or_fail(raw: type[Raw], place: pathlib.Path) -> pathlib.Path:
    """As `find`, but raises UserError if neither exists."""
    if not place.exists():
        raise UserError(f"{place}: no such file or folder; expected {raw.archive} or the folder it unpacks to")
    found = find(raw, place)
    if found is None:
        raise UserError(
            f"{place}: holds neither {raw.images}/ nor {raw.archive}; expected the archive or the folder it unpacks to"
        )
    return found


def open_raw(
    raw: type[Raw], found: pathlib.Path, tasks: Sequence[str], work: pathlib.Path, report: Callable[[str], None]
) -> Raw:
    """Opens the data set in a folder or archive.

    The files of an archive that `tasks` need are unpacked to `work`, unless an earlier call did so. Raises UserError
    for an archive that is truncated, damaged or of another data set.
    """
    return raw(found if found.is_dir() else _unpack(raw, found, tasks, work / "unpacked", report))


def _unpack(
    raw: type[Raw], archive: pathlib.Path, tasks: Sequence[str], folder: pathlib.Path, report: Callable[[str], None]
) -> pathlib.Path:
    state = archive.stat()
    mark = os.fsencode(f"{archive.resolve()} {state.st_size} {state.st_mtime_ns} {' '.join(tasks)}\n")
    done = folder / "unpacked.txt"
    if not (done.is_file() and files.read_bytes(done) == mark):
        shutil.rmtree(folder, ignore_errors=True)
        files.make_folder(folder)
        empty = raw(folder)
        names = [raw.images, raw.lists, *(name for task in tasks for name in empty.folders(task))]
        wanted = [f"{name}/" for name in names]
        room = max(LEAST, min(raw.largest, RATIO * state.st_size))
        report(f"unpacking {archive}")
        try:
            if not _extract(archive, folder, wanted, room):
                raise UserError(f"{archive}: holds no {raw.images}/; expected {raw.archive}")
        except BaseException:
            shutil.rmtree(folder)
            raise
        files.write_bytes(done, mark)
    return folder


def _extract(archive: pathlib.Path, folder: pathlib.Path, wanted: Sequence[str], room: int) -> bool:
    """Unpacks the `wanted` folders from anywhere in the archive; returns whether it held images."""
    images = False
    try:
        with _Bounded(archive, room) as stream, tarfile.open(fileobj=stream, mode="r|", tarinfo=_Member) as members:
            for member in _each(members):
                start = next((at for name in wanted if (at := f"/{member.name}".find(f"/{name}")) >= 0), -1)
                if start >= 0 and member.isfile():
                    _write(members, member, folder, member.name[start:])
                    images |= member.name[start:].startswith(wanted[0])
            while stream.read(1 << 20):  # to the end, where gzip has its checksum
                pass
    except (UserError, MemoryError):
        raise
    except Exception as error:  # tarfile can raise anything on a damaged archive
        raise UserError(
            f"{archive}: cannot be unpacked ({files.describe_error(error)}); "
            f"it is truncated, damaged or not a {archive.suffix} file: fetch it again"
        ) from error
    return images


class _Bounded(gzip.GzipFile):
    """An archive that may unpack to at most `room` bytes, including the members that are skipped."""

    def __init__(self, path: pathlib.Path, room: int):
        super().__init__(path)
        self.room = self.left = room

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self.left -= len(data)
        if self.left < 0:
            raise ValueError(f"it unpacks to more than {self.room} bytes")
        return data


class _Member(tarfile.TarInfo):
    """A header of bounded size; tarfile would read one of any size into memory."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Member":
        member = super().frombuf(buf, encoding, errors)
        if member.size < 0 or (member.type in EXTENSIONS and member.size > LARGEST_HEADER):
            raise tarfile.ReadError(f"it has a header of {member.size} bytes")
        return member


def _each(members: Any) -> Iterator[tarfile.TarInfo]:
    """Yields the members and frees each, since tarfile would keep all of them and their global headers."""
    for _ in range(MOST_MEMBERS):
        member = members.next()
        if member is None:
            return
        yield member
        members.members.clear()
        members.pax_headers.clear()
    raise ValueError(f"it has more than {MOST_MEMBERS} members")


def _write(members: tarfile.TarFile, member: tarfile.TarInfo, folder: pathlib.Path, name: str) -> None:
    """Writes one file with its time of modification, which tells later whether it changed; ignores other attributes."""
    which = f"its file {name[:100]!r}"
    parts = pathlib.PurePosixPath(name).parts
    if ".." in parts or len(parts) > DEEPEST:
        raise ValueError(f"{which} does not belong in this data set")
    if member.sparse is not None or member.size > LARGEST:
        raise ValueError(f"{which} has {member.size} bytes; expected at most {LARGEST}, and not sparse")
    content = members.extractfile(member)
    assert content is not None  # it is a file
    data, path = content.read(), folder / name
    if os.path.lexists(path) and path.read_bytes() != data:
        raise ValueError(f"{which} occurs twice with different contents")
    try:
        files.write_bytes(path, data)
    except UserError as error:
        reason = error.__cause__ or error
        if files.is_disk_full(reason):
            raise
        raise ValueError(f"{which}: {files.describe_error(reason)}") from error
    with contextlib.suppress(OSError, OverflowError, ValueError):  # an invalid time
        os.utime(path, (member.mtime, member.mtime))
