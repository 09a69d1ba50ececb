"""Finds the raw data: an unpacked folder, an archive, or a folder that holds either."""

import gzip
import pathlib
import shutil
import tarfile
import zlib
from collections.abc import Callable, Sequence

from mtlora_jax.errors import UserError
from tfds_pascal_context.raw import Raw


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
        raise UserError(f"{place}: holds neither {raw.images}/ nor {raw.archive}; expected {raw.archive} or the folder it unpacks to")
    return found


def open_raw(raw: type[Raw], found: pathlib.Path, tasks: Sequence[str], work: pathlib.Path, report: Callable[[str], None]) -> Raw:
    """The data set in a folder or archive; of an archive, what `tasks` need is unpacked to `work`, unless it is there already.

    Raises UserError for an archive that is cut off, damaged or another one.
    """
    return raw(found if found.is_dir() else _unpack(raw, found, tasks, work / "unpacked", report))


def _unpack(
    raw: type[Raw], archive: pathlib.Path, tasks: Sequence[str], folder: pathlib.Path, report: Callable[[str], None]
) -> pathlib.Path:
    state = archive.stat()
    mark = f"{archive.resolve()} {state.st_size} {state.st_mtime_ns} {' '.join(tasks)}\n"
    done = folder / "unpacked.txt"
    if not (done.is_file() and done.read_text() == mark):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        blank = raw(folder)
        wanted = [f"{name}/" for name in (raw.images, raw.lists, *(name for task in tasks for name in blank.folders(task)))]
        report(f"unpacking {archive}")
        try:
            if not _extract(archive, folder, wanted):
                raise UserError(f"{archive}: holds no {raw.images}/; expected {raw.archive}")
        except BaseException:
            shutil.rmtree(folder)
            raise
        done.write_text(mark)
    return folder


def _extract(archive: pathlib.Path, folder: pathlib.Path, wanted: Sequence[str]) -> bool:
    """Unpacks the files below the `wanted` folders, wherever in the archive these are; whether there were images."""
    images = False
    try:
        with gzip.open(archive) as stream, tarfile.open(fileobj=stream, mode="r|") as members:
            for member in members:
                start = next((at for name in wanted if (at := f"/{member.name}".find(f"/{name}")) >= 0), -1)
                if start >= 0 and member.isfile():
                    member.name = member.name[start:]
                    members.extract(member, folder, filter="data")
                    images |= member.name.startswith(wanted[0])
            while stream.read(1 << 20):  # up to the checksum at the end
                pass
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(
            f"{archive}: cannot be unpacked ({error}); it is cut off, damaged or no {archive.suffix}: fetch it again"
        ) from error
    return images
