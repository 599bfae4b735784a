"""The metric log of a run: JSON lines, and the same for TensorBoard."""

from __future__ import annotations

import json
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from train import processes, runs


def read_metrics(run: runs.Run) -> list[dict[str, Any]]:
    """The lines of the metric log; one that is cut off or damaged, or whose time is no number, is left out."""
    if not run.metrics.is_file():
        return []
    lines = []
    for text in run.metrics.read_text(encoding="utf-8", errors="replace").splitlines():
        with suppress(ValueError, RecursionError):  # deep nesting, beside what is no JSON
            line = json.loads(text)
            if isinstance(line, dict) and isinstance(line.get("step"), int) and _is_time(line.get("seconds", 0.0)):
                lines.append(line)
    return lines


def _is_time(value: Any) -> bool:
    """Whether a value is a finite number of seconds: no text, no NaN, no integer beyond all floats."""
    return isinstance(value, (int, float)) and 0 <= value <= sys.float_info.max


class MetricLog:
    """Appends metrics to the JSONL log and to TensorBoard events, from a given step on; process 0 for all.

    Raises:
        StorageError: they cannot be written.
    """

    def __init__(self, run: runs.Run, *, after_step: int = 0) -> None:
        # A resumed run repeats the steps after its checkpoint: their old lines go.
        kept = [line for line in read_metrics(run) if line["step"] <= after_step]
        self.seconds = max((line.get("seconds", 0.0) for line in kept), default=0.0)
        self._run = run
        if processes.is_lead():
            runs.write_text(run.metrics, "".join(json.dumps(line) + "\n" for line in kept))
            self._file = run.metrics.open("a", encoding="utf-8")
            self._events = _Events(run.folder, after_step)

    def write(self, step: int, values: dict[str, float]) -> None:
        if not processes.is_lead():
            return
        try:
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()
            self._events.write(step, values)
        except OSError as error:
            raise runs.StorageError(
                f"{self._run.metrics} cannot be written ({error.strerror}): make room or mend the disk, and --resume "
                "continues from the last checkpoint"
            ) from error

    def close(self) -> None:
        if processes.is_lead():
            with suppress(OSError):  # all that was written has been flushed
                self._file.close()
            self._events.close()


class _Events:
    """TensorBoard events, written in the calling thread: tensorboardX's own would block for ever on a full disk."""

    def __init__(self, folder: Path, after_step: int) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2
        from tensorboardX.summary import scalar

        self._event, self._scalar = event_pb2.Event, scalar
        self._writer = EventsWriter(str(folder / "events"))
        # Tells TensorBoard to forget the steps that are about to be repeated.
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(step=after_step + 1, session_log=start)
        self._writer.flush()

    def write(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._write(step=step, summary=self._scalar(name, value))
        self._writer.flush()

    def _write(self, **content: Any) -> None:
        self._writer.write_event(self._event(wall_time=time.time(), **content))

    def close(self) -> None:
        with suppress(OSError):
            self._writer.close()
