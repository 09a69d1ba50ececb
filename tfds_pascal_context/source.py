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

# Bounds of an archive, beside that of its data set in bytes.
RATIO = 100  # of unpacked to packed bytes: photographs hardly shrink, and the label arrays of NYUD_MT to a tenth or so
LEAST = 2**28  # bytes; an archive that unpacks to less may be packed as it likes
MOST_MEMBERS = 500_000  # some five times those of PASCAL_MT
DEEPEST = 8  # folders
LARGEST_HEADER = 2**16  # bytes of an extension, such as a long name
EXTENSIONS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)


def find(raw: type[Raw], place: pathlib.Path) -> pathlib.Path | None:
    """The unpacked folder or the archive that `place` is or holds; None if there is neither."""
    inside = pathlib.Path(raw.archive).stem
    for folder in (place, place / inside):
        if (folder / raw.images).is_dir():
            return folder
    return next((file for file in (place, place / raw.archive) if file.is_file()), None)


def find_or_fail(raw: type[Raw], place: pathlib.Path) -> pathlib.Path:
    """As `find`; raises UserError if there is neither."""
    if not place.exists():
        raise UserError(f"{place}: no such file or folder; expected {raw.archive} or the folder it unpacks to")
    found = find(raw, place)
    if found is None:
        raise UserError(
            f"{place}: holds neither {raw.images}/ nor {raw.archive}; expected {raw.archive} or the folder it unpacks to"
        )
    return found


def open_raw(
    raw: type[Raw], found: pathlib.Path, tasks: Sequence[str], work: pathlib.Path, report: Callable[[str], None]
) -> Raw:
    """The data set in a folder or archive; of an archive, what `tasks` need is unpacked to `work`, unless it is there already.

    Raises UserError for an archive that is cut off, damaged or another one.
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
        blank = raw(folder)
        wanted = [
            f"{name}/" for name in (raw.images, raw.lists, *(name for task in tasks for name in blank.folders(task)))
        ]
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
    """Unpacks the files below the `wanted` folders, wherever in the archive these are; whether there were images."""
    images = False
    try:
        with _Bounded(archive, room) as stream, tarfile.open(fileobj=stream, mode="r|", tarinfo=_Member) as members:
            for member in _each(members):
                start = next((at for name in wanted if (at := f"/{member.name}".find(f"/{name}")) >= 0), -1)
                if start >= 0 and member.isfile():
                    _write(members, member, folder, member.name[start:])
                    images |= member.name[start:].startswith(wanted[0])
            while stream.read(1 << 20):  # up to the checksum at the end
                pass
    except (UserError, MemoryError):
        raise
    except Exception as error:  # tarfile passes on whatever it stumbles over
        raise UserError(
            f"{archive}: cannot be unpacked ({files.describe_error(error)}); it is cut off, damaged or no {archive.suffix}: fetch it again"
        ) from error
    return images


class _Bounded(gzip.GzipFile):
    """An archive that may unpack to so many bytes, those that nobody wants included."""

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
    """A header, which tarfile would read into memory whatever its length."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Member":
        member = super().frombuf(buf, encoding, errors)
        if member.size < 0 or (member.type in EXTENSIONS and member.size > LARGEST_HEADER):
            raise tarfile.ReadError(f"it has a header of {member.size} bytes")
        return member


def _each(members: Any) -> Iterator[tarfile.TarInfo]:
    """The members, of which tarfile would keep all, and in each all that global headers say."""
    for _ in range(MOST_MEMBERS):
        member = members.next()
        if member is None:
            return
        yield member
        members.members.clear()
        members.pax_headers.clear()
    raise ValueError(f"it has more than {MOST_MEMBERS} members")


def _write(members: tarfile.TarFile, member: tarfile.TarInfo, folder: pathlib.Path, name: str) -> None:
    """Writes one file; what else a member says of it is of no use here, but for its time, by which a changed file is known."""
    told = f"its file {name[:100]!r}"
    parts = pathlib.PurePosixPath(name).parts
    if ".." in parts or len(parts) > DEEPEST:
        raise ValueError(f"{told} has no place in this data set")
    if member.sparse is not None or member.size > LARGEST:
        raise ValueError(f"{told} has {member.size} bytes; expected at most {LARGEST}, none of them left out")
    content = members.extractfile(member)
    assert content is not None  # it is a file
    data, path = content.read(), folder / name
    if os.path.lexists(path) and path.read_bytes() != data:
        raise ValueError(f"{told} is there twice, with different contents")
    try:
        files.write_bytes(path, data)
    except UserError as error:
        reason = error.__cause__ or error
        if files.is_disk_full(reason):
            raise
        raise ValueError(f"{told}: {files.describe_error(reason)}") from error
    with contextlib.suppress(OSError, OverflowError, ValueError):  # times that are none
        os.utime(path, (member.mtime, member.mtime))
