"""Finished cells as lines of JSON: appended, so that a grid that is killed loses at most the cell it was at."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from benchmarks.claims.grid import Cell
from train import options
from train.config import Config
from train.errors import ConfigError

FILE = Path(__file__).parents[1] / "results" / "claims.jsonl"

Line = dict[str, Any]


def read(path: Path = FILE) -> list[Line]:
    """The lines of finished cells; of two with the same name the later one counts. A half-written last one is left out.

    Raises:
        ConfigError: another line is not a cell's.
    """
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    found: dict[str, Line] = {}
    whole, _, _half_written = text.rpartition("\n")
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            content = json.loads(line)
            found[content["name"]] = content
            missing = {"setting", "method", "strength", "seed", "config"} - content.keys()
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ConfigError(f"{path}, line {number} is not a finished cell: {error}") from error
        if missing:
            raise ConfigError(f"{path}, line {number} is not a finished cell: it lacks {', '.join(sorted(missing))}")
    return list(found.values())


def append(path: Path, line: Line) -> None:
    """Adds a finished cell; on return it is on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 1))
        if file.read(1) not in (b"", b"\n"):  # a writer was killed in the middle of a line
            _drop_half_written(path)
        file.write(json.dumps(line, sort_keys=True).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _drop_half_written(path: Path) -> None:
    content = path.read_bytes()
    os.truncate(path, content.rfind(b"\n") + 1)


def current(found: list[Line], cells: list[Cell]) -> list[Line]:
    """The lines of the cells that the grid declares now, in its order."""
    lines = [of_cell(found, cell) for cell in cells]
    return [line for line in lines if line is not None]


def of_cell(found: list[Line], cell: Cell) -> Line | None:
    """The line of this cell as the grid declares it now, if there is one."""
    return next((line for line in found if line["name"] == cell.name and _config(line) == cell.config), None)


def _config(line: Line) -> Config | None:
    """The config of a line; an option that was added since has its default. None for a config of another form."""
    try:
        return options.from_tree(line["config"])
    except ConfigError:
        return None


def summary(line: Line) -> str:
    """A finished cell in one line for the terminal."""
    if "seen" not in line:
        found = line["held_out"]
        clean, robust = (100 * found[name] for name in ("clean_accuracy", "robust_accuracy"))
        return f"{line['name']}: {clean:.1f} % clean, {robust:.1f} % robust on held-out images"
    seen = line["seen"]
    robust = ", ".join(f"{100 * share:.1f}" for share in seen["accuracies"])
    return f"{line['name']}: {100 * seen['clean_accuracy']:.1f} % clean; {robust} % at {seen['radii']} px"
