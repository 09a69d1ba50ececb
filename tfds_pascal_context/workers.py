"""Runs calls in processes that may die: what a file of strangers does to its reader ends in a line that names the file.

A worker only reads. It tells the main process which file it is about to read, and sends back what it made of it.
"""

import contextlib
import functools
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import pickle
import signal
import sys
import traceback
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from mtlora_jax.errors import UserError

AHEAD = 4  # calls of each worker whose results may wait for that of an earlier one
KILLED = (
    signal.SIGKILL,
    signal.SIGTERM,
)  # by somebody, such as a system without memory; other signals come of the reading

_main: multiprocessing.connection.Connection | None = None  # to the main process, in a worker
_read: str | None = None  # what was read last, in a worker


def note(origin: str | pathlib.Path) -> None:
    """Tells the main process, if this is a worker, what is read from now on."""
    global _read
    if _main is not None and str(origin) != _read:
        _read = str(origin)
        _main.send(("reads", _read))


def _give_up(error: UserError) -> NoReturn:
    raise error


def in_parallel(
    function: Callable, calls: Sequence[tuple], workers: int, lost: Callable[[UserError], Any] = _give_up
) -> Iterator:
    """`function(*call)` of every call, in order, over `workers` processes.

    Raises what the function raises. Where a worker dies, `lost` says what the result is, of an error that names the file that was read;
    by default that is raised.
    """
    start = functools.partial(_Worker, function, workers)
    idle, busy = [start() for _ in range(min(workers, len(calls)))], []
    results: dict[int, tuple[str, Any]] = {}
    given = 0
    try:
        for index in range(len(calls)):
            while index not in results:
                while idle and given < min(len(calls), index + AHEAD * workers):
                    worker = idle.pop()
                    busy.append(worker)
                    worker.begin(given, calls[given])
                    given += 1
                for worker in _heard(busy):
                    answer = worker.answer()
                    if answer is None:
                        continue
                    results[worker.index] = answer
                    busy.remove(worker)
                    idle.append(start() if answer[0] == "died" else worker)
            kind, value = results.pop(index)
            if kind == "failed":
                raise value
            yield lost(value) if kind == "died" else value
    finally:
        for worker in idle + busy:
            worker.end()


def _heard(busy: "list[_Worker]") -> "list[_Worker]":
    """Those that have sent something, or are dead; waits for one."""
    ready = multiprocessing.connection.wait([worker.pipe for worker in busy])
    return [worker for worker in busy if worker.pipe in ready]


class _Worker:
    """A process, and the call it is at."""

    def __init__(self, function: Callable, workers: int):
        # Neither fork, which can hang where libraries have threads, nor spawn, which imports everything anew for every worker.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tfds_pascal_context.convert"])
        self.workers, self.index, self.reads = workers, -1, ""
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, function), daemon=True)
        with _main_left_out():
            self.process.start()
        theirs.close()  # so that the death of the worker closes the pipe

    def begin(self, index: int, call: tuple) -> None:
        self.index, self.reads = index, ""
        with contextlib.suppress(ConnectionError):  # it is dead; the answer will say so
            self.pipe.send(call)

    def answer(self) -> tuple[str, Any] | None:
        """("made", result), ("failed", exception), ("died", UserError), or None where the worker is still at it."""
        try:
            kind, value = self.pipe.recv()
        except (EOFError, ConnectionError):
            self.end(wait=5)
            return "died", UserError(self._how_it_died())
        if kind != "reads":
            return kind, value
        self.reads = value
        return None

    def end(self, wait: float = 0) -> None:
        if wait:
            self.process.join(wait)
        self.process.kill()
        self.process.join()
        self.pipe.close()

    def _how_it_died(self) -> str:
        code = self.process.exitcode or 0
        if code >= 0 or -code in KILLED:
            reason = (
                f"a worker of {self.workers} was killed, perhaps for want of memory; start again, with fewer --workers"
            )
            return f"{self.reads}: while it read this file, {reason}" if self.reads else reason
        told = f"makes the program that reads it crash ({signal.Signals(-code).name}); it is damaged or made to do so: fetch it again"
        return f"{self.reads or 'a file'}: {told}"


@contextlib.contextmanager
def _main_left_out() -> Iterator[None]:
    """Workers would run the main script anew, and a script that calls `tfds.load` need not be written for that."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _work(pipe: multiprocessing.connection.Connection, function: Callable) -> None:
    """What a worker does until the main process ends it, or is gone itself."""
    global _main, _read
    import cv2  # the other libraries are there already

    cv2.setNumThreads(1)  # there is one worker per core already
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process, which ends its workers
    _main = pipe
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            call = pipe.recv()
            _read = None
            try:
                answer = "made", function(*call)
            except MemoryError:
                answer = (
                    "failed",
                    UserError(
                        f"{_read or 'an image'}: needs more memory than there is; start again, with fewer --workers"
                    ),
                )
            except Exception as error:
                answer = "failed", _portable(error)
            pipe.send(answer)
    os._exit(0)


def _portable(error: Exception) -> Exception:
    """An error that the main process can raise, with the traceback it has here."""
    if not isinstance(error, UserError):
        error.add_note(traceback.format_exc())
    try:
        return pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
