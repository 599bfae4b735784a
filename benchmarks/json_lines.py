"""Files of one JSON object a line: appended, so that a run that is killed loses at most the line that it was at."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from train.errors import ConfigError

Line = dict[str, Any]


def read(path: Path) -> Iterator[tuple[int, Line]]:
    """The lines with their numbers, from 1; none without a file. A half-written last line is left out.

    A last line that lacks only its end counts.

    Raises:
        ConfigError: another line is no JSON object.
    """
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    whole, end, last = text.rpartition("\n")
    for number, one in enumerate((text if _is_whole(last) else whole + end).splitlines(), start=1):
        try:
            line = json.loads(one)
        except ValueError as error:
            raise ConfigError(f"{path}, line {number} is no JSON: {error}") from error
        if not isinstance(line, dict):
            raise ConfigError(f"{path}, line {number} is no JSON object")
        yield number, line


def append(path: Path, line: Line) -> None:
    """Adds a line; on return it is on the disk. Several processes may add lines to one file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # until the file is closed: what looks half-written may be half written now
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 1))
        if file.read(1) not in (b"", b"\n"):
            content = path.read_bytes()
            whole = content.rfind(b"\n") + 1
            if _is_whole(content[whole:]):
                file.write(b"\n")
            else:  # a writer was killed in the middle of the line
                os.truncate(path, whole)
        file.write(json.dumps(line, sort_keys=True).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _is_whole(line: str | bytes) -> bool:
    """Whether a line without its end is a whole one."""
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False
