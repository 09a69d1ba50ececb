"""Opens damaged files as the commands do, in a process with limits of memory and time.

    python tests/support/fuzzing.py KIND FOLDER COUNT

Writes FOLDER/results.jsonl, a line for each file. A file whose outcome was bad, or that ended the process, stays in
FOLDER/inputs.
"""

import contextlib
import faulthandler
import json
import os
import pathlib
import random
import resource
import signal
import sys
import time
import traceback
import warnings
from typing import Any

import fuzz_data
import fuzz_models
from fuzz_kind import Way

from mtlora_jax import cli
from mtlora_jax.errors import UserError

MEMORY = 2**32  # bytes that a file may take in addition to those in use already
SECONDS = 20
LONGEST = 2000  # characters of a message

KINDS = fuzz_data.KINDS | fuzz_models.KINDS


class TooLong(BaseException):
    """A file that takes longer than `SECONDS`."""


def main(name: str, folder: pathlib.Path, count: int) -> None:
    world, inputs = folder / "world", folder / "inputs"
    for made in (world, inputs):
        made.mkdir(parents=True)
    kind = KINDS[name](world)
    for place, data in kind.genuine.items():
        (world / place).parent.mkdir(parents=True, exist_ok=True)
        (world / place).write_bytes(data)
    bound()
    os.dup2(os.open(folder / "said.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND), sys.stderr.fileno())
    refused = None
    with (folder / "results.jsonl").open("w", buffering=1) as results:
        for seed in range(-len(kind.genuine) * len(kind.ways), count):
            rng = random.Random(f"{name} {seed}")
            place = list(kind.genuine)[seed % len(kind.genuine)] if seed < 0 else rng.choice(list(kind.genuine))
            data = kind.genuine[place]
            if seed >= 0:
                data = kind.damage(rng, data, rng.choice(list(kind.genuine.values())))
            copy = inputs / f"{seed}-{pathlib.Path(place).name}"
            copy.write_bytes(data)
            (world / place).write_bytes(data)
            way = kind.ways[seed % len(kind.ways)]
            print(json.dumps({"at": str(copy)}), file=results)
            start = time.monotonic()
            printed = os.fstat(2).st_size
            outcome, told = outcome_of(way, data, world / place)
            try:
                kind.after(world, outcome == "refused")
            except Exception:
                outcome, told = "left behind", traceback.format_exc()
            result = {"outcome": outcome, "told": told, "seconds": time.monotonic() - start, "genuine": seed < 0}
            print(json.dumps(result), file=results)
            (world / place).write_bytes(kind.genuine[place])
            first = place == next(iter(kind.genuine)) and way is kind.ways[0] and seed >= 0
            if refused is None and first and outcome == "refused" and not words(printed):
                refused = place, data
            if outcome in ("right", "refused"):
                copy.unlink()
        if refused:
            (world / refused[0]).write_bytes(refused[1])
            print(json.dumps({"command": kind.command(world / refused[0])}), file=results)


def bound() -> None:
    """Limits the memory and the size of files, and makes the alarm of `outcome_of` raise TooLong."""
    status = pathlib.Path("/proc/self/status").read_text().splitlines()
    taken = next(int(line.split()[1]) * 1024 for line in status if "VmData" in line)
    resource.setrlimit(resource.RLIMIT_DATA, (taken + MEMORY, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**30, 2**30))

    def end(number: int, frame: Any) -> None:
        raise TooLong(f"more than {SECONDS} seconds")

    signal.signal(signal.SIGALRM, end)


def outcome_of(way: Way, data: bytes, path: pathlib.Path) -> tuple[str, str]:
    """("right", "refused" or a description of the fault; the message or the traceback)."""
    said = os.fstat(2).st_size
    signal.alarm(SECONDS)
    faulthandler.dump_traceback_later(2 * SECONDS, exit=True)
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            try:
                found = way.open(path)
            except UserError as error:
                return judged(error, path, [*(str(item.message) for item in warned), *words_after(said)])
        way.check(found, data, path)
    except BaseException:
        return "wrong", traceback.format_exc()
    finally:
        signal.alarm(0)
        faulthandler.cancel_dump_traceback_later()
    return "right", ""


def words_after(start: int) -> list[str]:
    """Lines on stderr from a position on, except those of image libraries that OpenCV does not silence."""
    of_libraries = ("libpng ", "Corrupt JPEG", "Warning: unknown JFIF", "Inconsistent")
    return [line for line in words(start) if not line.startswith(of_libraries)]


def words(start: int) -> list[str]:
    return pathlib.Path(os.readlink("/proc/self/fd/2")).read_bytes()[start:].decode(errors="replace").splitlines()


def judged(error: UserError, path: pathlib.Path, warned: list[str]) -> tuple[str, str]:
    line = cli._user_message(error) or ""
    complaints = {
        "is empty": not line.strip(),
        "has several lines": len(line.splitlines()) > 1,
        "has unprintable characters": not line.isprintable(),
        "is long": len(line) > LONGEST,
        "names no file": not any(part in line for part in (str(path.parent), path.name, path.stem)),
        f"came with {warned}": bool(warned),
    }
    wrong = [complaint for complaint, holds in complaints.items() if holds]
    if not wrong:
        return "refused", line
    return f"the message {', '.join(wrong)}", f"{line!r}\n{''.join(traceback.format_exception(error))}"


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        main(sys.argv[1], pathlib.Path(sys.argv[2]), int(sys.argv[3]))
