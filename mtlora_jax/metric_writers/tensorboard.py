"""What TensorBoard shows, in WORKDIR/tensorboard."""

import pathlib
import time
from collections.abc import Mapping

import numpy as np
from tensorboardX import summary  # imports PyTorch where that is installed, and that takes seconds
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]  (made at run time)


class TensorBoard:
    """A file of events, written where it is called.

    The SummaryWriter of tensorboardX leaves that to a thread. On a full disk it ends with a traceback; its queue then fills up, and the
    program waits for it forever. Here the caller gets an OSError.

    Args:
      folder: of the files; made if need be.
      purge_step: what earlier files hold of this step and later ones is not shown any more.
    """

    def __init__(self, folder: pathlib.Path, purge_step: int):
        folder.mkdir(parents=True, exist_ok=True)
        self._file = EventsWriter(str(folder / "events"))
        self._write(purge_step, session_log=SessionLog(status=SessionLog.START))

    def scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Curves by tag: one more point for each. They are on the disk when this returns."""
        for tag, value in scalars.items():
            self._write(step, summary=summary.scalar(tag, value))
        self._file.flush()

    def images(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Pictures by tag, RGB uint8 (H, W, 3)."""
        for tag, picture in pictures.items():
            self._write(step, summary=summary.image(tag, picture, dataformats="HWC"))
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _write(self, step: int, **what: object) -> None:
        self._file.write_event(Event(step=step, wall_time=time.time(), **what))
