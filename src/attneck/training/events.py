"""A run's figures as TensorBoard reads them.

Written here, event by event, with TensorBoard's own records: torch's SummaryWriter writes from a thread, and
where the disk is full that thread prints a traceback beside whatever the run says.
"""

from __future__ import annotations

import io
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from attneck.files import writing

if TYPE_CHECKING:
    from tensorboard.compat.proto.event_pb2 import Event


class Events:
    """An events file in `folder`; what an earlier one says of steps from `start` on is not shown.

    Raises, from every member:
        NotWritten: the folder or the file.
    """

    def __init__(self, folder: Path, start: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        now = time.time()
        self.path = folder / f"events.out.tfevents.{int(now):010d}.{socket.gethostname()}.{os.getpid()}.0"
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        log = SessionLog(status=SessionLog.START)
        self._append([Event(wall_time=now, file_version="brain.Event:2")])
        self._append([Event(wall_time=now, step=start, session_log=log)])

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Figures by their tag, such as "val/loss"."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        rows = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._append([Event(wall_time=time.time(), step=step, summary=Summary(value=[row])) for row in rows])

    def _append(self, events: list[Event]) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        buffer = io.BytesIO()
        records = RecordWriter(buffer)
        for event in events:
            records.write(event.SerializeToString())
        with writing(self.path), self.path.open("ab", buffering=0) as file:
            file.write(buffer.getvalue())
