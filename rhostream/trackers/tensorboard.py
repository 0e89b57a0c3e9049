"""TensorBoard: events below `<run>/tensorboard`, or in the folder that was named.

A resumed run purges what an attempt before it wrote of the steps that are taken again: TensorBoard's own way.
"""

from __future__ import annotations

import json
import time
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.summary.writer.event_file_writer import EventFileWriter


class Tracker:
    """See `child.Tracker`."""

    def __init__(self, about: dict[str, Any]) -> None:
        self.where = about["target"] or f"{about['folder']}/tensorboard"
        self.first = 0
        self._events = EventFileWriter(self.where)
        if about["step"]:
            self._add(about["step"], session_log=SessionLog(status=SessionLog.START))
        else:
            self._text("config", about["config"], 0)
        self._last = about["step"]

    def write(self, rows: list[tuple[int, dict[str, float]]]) -> None:
        for step, numbers in rows:
            values = [Summary.Value(tag=name, simple_value=value) for name, value in numbers.items()]
            self._add(step, summary=Summary(value=values))
            self._last = step
        self._events.flush()

    def end(self, complete: bool, summary: dict[str, Any]) -> None:
        if complete:
            self._text("summary", summary, self._last)
        self._events.close()

    def _text(self, name: str, values: dict[str, Any], step: int) -> None:
        text = "".join(f"    {key}: {json.dumps(value)}\n" for key, value in values.items())
        about = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
        tensor = TensorProto(dtype="DT_STRING", string_val=[text.encode()])
        self._add(step, summary=Summary(value=[Summary.Value(tag=name, metadata=about, tensor=tensor)]))

    def _add(self, step: int, **what: Any) -> None:
        self._events.add_event(Event(wall_time=time.time(), step=step, **what))
