"""Event files for TensorBoard, in WORKDIR/tensorboard."""

import pathlib
import time
from collections.abc import Mapping

import numpy as np
from tensorboardX import summary  # takes seconds where PyTorch is installed, since it imports it
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]  (made at run time)


class TensorBoard:
    """A file of events, written in the caller's thread.

    The SummaryWriter of tensorboardX writes in a thread of its own. On a full disk that thread ends with a traceback,
    its queue fills up, and the program waits forever. Here the caller gets an OSError.

    Args:
      folder: of the files; created if needed.
      purge_step: TensorBoard no longer shows entries of earlier files from this step on.
    """

    def __init__(self, folder: pathlib.Path, purge_step: int):
        folder.mkdir(parents=True, exist_ok=True)
        self._file = EventsWriter(str(folder / "events"))
        self._write(purge_step, session_log=SessionLog(status=SessionLog.START))

    def scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Adds a point to the curve of each tag. Points are on the disk when this returns."""
        for tag, value in scalars.items():
            self._write(step, summary=summary.scalar(tag, value))
        self._file.flush()

    def images(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Adds pictures by tag, RGB uint8 (H, W, 3)."""
        for tag, picture in pictures.items():
            self._write(step, summary=summary.image(tag, picture, dataformats="HWC"))
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _write(self, step: int, **what: object) -> None:
        self._file.write_event(Event(step=step, wall_time=time.time(), **what))
