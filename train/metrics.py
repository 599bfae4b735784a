"""The metric log of a run: JSON lines, and the same values for TensorBoard."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from train import files, processes
from train.errors import RunError, StorageError
from train.runs import Run, check_ours

Line = dict[str, Any]
"""A logged step: ``step``, and values by name."""


_LARGEST = 1 << 30
"""Bytes of a log: a line takes about two hundred."""

_LONGEST = 1 << 16
"""Bytes of a line."""


def read_metrics(run: Run) -> Iterator[Line]:
    """The lines of the metric log, without those that are cut off, damaged, or have no valid step or time.

    They are read one by one: a log may be larger than memory.

    Raises:
        RunError: the log is not a regular file, or too large.
    """
    try:
        with files.open_regular(run.metrics, limit=_LARGEST) as file:
            yield from _parse(file)
    except FileNotFoundError:
        return
    except ValueError as error:
        raise RunError(f"{run.folder}: {error}; it is no metric log: move it away") from error


def _parse(file: BinaryIO) -> Iterator[Line]:
    while text := file.readline(_LONGEST):
        # Of a longer line every piece fails: the last one, too, which lacks the beginning.
        with suppress(ValueError, RecursionError):  # not JSON, or nested too deeply
            line = json.loads(text.decode(errors="replace"))
            if isinstance(line, dict) and isinstance(line.get("step"), int) and _is_time(line.get("seconds", 0.0)):
                yield line


def train_seconds(lines: Iterable[Line]) -> float:
    """The time that the run had trained at the last of these lines."""
    return max((line.get("seconds", 0.0) for line in lines), default=0.0)


def _is_time(value: Any) -> bool:
    """Whether a value is a finite number of seconds: no text, no NaN, no integer too large for a float."""
    return isinstance(value, (int, float)) and 0 <= value <= sys.float_info.max


class MetricLog:
    """Appends metrics to the JSON lines and to TensorBoard's events, after a given step (process 0 for all).

    Attributes:
        seconds: that the run has trained before.
    """

    def __init__(self, run: Run, *, after_step: int = 0) -> None:
        # A resumed run repeats the steps after its checkpoint: their old lines go.
        def kept() -> Iterator[Line]:
            return (line for line in read_metrics(run) if line["step"] <= after_step)

        self.seconds = train_seconds(kept())
        self._run = run
        if processes.is_lead():
            check_ours(run)
            files.write_chunks(run.metrics, lambda: (f"{json.dumps(line)}\n".encode() for line in kept()))
            self._file = run.metrics.open("a", encoding="utf-8")
            self._events = _Events(run.folder, after_step)

    def values(self, name: str) -> list[float]:
        """The values of that name in the lines so far."""
        found = (line.get(name) for line in read_metrics(self._run))
        return [value for value in found if isinstance(value, float)]

    def write(self, step: int, values: dict[str, float]) -> None:
        """Appends one line.

        Raises:
            StorageError: it cannot be written, or the folder is no longer this training's.
        """
        if not processes.is_lead():
            return
        check_ours(self._run)
        try:
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()
            self._events.write(step, values)
        except OSError as error:
            raise StorageError(
                f"{self._run.metrics} cannot be written ({error.strerror}): free some space or repair the disk, and "
                "--resume continues from the last checkpoint"
            ) from error

    def close(self) -> None:
        if processes.is_lead():
            with suppress(OSError):  # all that was written has been flushed
                self._file.close()
            self._events.close()


class _Events:
    """TensorBoard events, written in the calling thread: tensorboardX's own thread would block on a full disk."""

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
