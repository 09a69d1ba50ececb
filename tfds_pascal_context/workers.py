"""Runs calls in processes that may crash on a malicious file; the error then names the file.

A worker only reads. It tells the main process which file it is about to read, and sends back the result.
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

AHEAD = 4  # results per worker that may wait for that of an earlier call
KILLED = (signal.SIGKILL, signal.SIGTERM)  # sent from outside, as when memory runs out; others come from the reader

_main: multiprocessing.connection.Connection | None = None  # in a worker: to the main process
_read: str | None = None  # in a worker: the file that was read last


def note(origin: str | pathlib.Path) -> None:
    """In a worker, tells the main process which file is read next."""
    global _read
    if _main is not None and str(origin) != _read:
        _read = str(origin)
        _main.send(("reads", _read))


def _give_up(error: UserError) -> NoReturn:
    raise error


def in_parallel(
    function: Callable, calls: Sequence[tuple], workers: int, lost: Callable[[UserError], Any] = _give_up
) -> Iterator:
    """Yields `function(*call)` for every call, in order, using `workers` processes.

    Raises what the function raises. If a worker dies, the result is `lost(error)`, where the error names the file that
    was read; by default the error is raised.
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
    """Waits for a worker that has sent something or died; returns all such workers."""
    ready = multiprocessing.connection.wait([worker.pipe for worker in busy])
    return [worker for worker in busy if worker.pipe in ready]


class _Worker:
    """A process and its current call."""

    def __init__(self, function: Callable, workers: int):
        # Fork can hang if libraries have threads; spawn imports everything anew for every worker.
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
        with contextlib.suppress(ConnectionError):  # it is dead; `answer` reports that
            self.pipe.send(call)

    def answer(self) -> tuple[str, Any] | None:
        """Returns ("made", result), ("failed", exception), ("died", UserError), or None while the worker is busy."""
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
                f"one of {self.workers} worker processes was killed, perhaps because memory ran out; "
                "start again with fewer --workers"
            )
            return f"{self.reads}: while this file was read, {reason}" if self.reads else reason
        crash = f"crashes its reader ({signal.Signals(-code).name})"
        return f"{self.reads or 'a file'}: {crash}; it is damaged or malicious: fetch it again"


@contextlib.contextmanager
def _main_left_out() -> Iterator[None]:
    """Keeps workers from running the main script again, for scripts without a `__main__` guard."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _work(pipe: multiprocessing.connection.Connection, function: Callable) -> None:
    """Loop of a worker, until the main process ends it or is gone itself."""
    global _main, _read
    import cv2  # the other libraries are loaded already

    cv2.setNumThreads(1)  # there is one worker per core already
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process handles Ctrl-C and ends its workers
    _main = pipe
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            call = pipe.recv()
            _read = None
            try:
                answer = "made", function(*call)
            except MemoryError:
                advice = "needs more memory than there is; start again with fewer --workers"
                answer = "failed", UserError(f"{_read or 'an image'}: {advice}")
            except Exception as error:
                answer = "failed", _portable(error)
            pipe.send(answer)
    os._exit(0)


def _portable(error: Exception) -> Exception:
    """Returns an error that the main process can unpickle, with the traceback of this process."""
    if not isinstance(error, UserError):
        error.add_note(traceback.format_exc())
    try:
        return pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
