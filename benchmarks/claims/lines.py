"""Finished cells: read from their file, and matched with the cells that the grid declares."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks import json_lines
from benchmarks.claims.grid import Cell
from benchmarks.json_lines import Line
from train import options
from train.config import Config
from train.errors import ConfigError

FILE = Path(__file__).parents[1] / "results" / "claims.jsonl"


def read(path: Path = FILE) -> list[Line]:
    """The lines of finished cells; of two with the same name the later one counts.

    Raises:
        ConfigError: a line is not a cell's.
    """
    found: dict[str, Line] = {}
    for number, line in json_lines.read(path):
        if missing := {"name", "setting", "method", "strength", "seed", "config"} - line.keys():
            raise ConfigError(f"{path}, line {number} is not a finished cell: it lacks {', '.join(sorted(missing))}")
        found[line["name"]] = line
    return list(found.values())


def current(found: list[Line], cells: list[Cell]) -> list[Line]:
    """The lines of the cells that the grid declares now, in its order."""
    lines = [of_cell(found, cell) for cell in cells]
    return [line for line in lines if line is not None]


def of_cell(found: list[Line], cell: Cell) -> Line | None:
    """The line of this cell as the grid declares it now, if there is one."""
    return next((line for line in found if line["name"] == cell.name and _is_of(line, cell)), None)


def _is_of(line: Line, cell: Cell) -> bool:
    """Whether a line was trained and attacked as the grid declares now."""
    return cell.attacked | _attacked(line) == cell.attacked and _config(line) == cell.config


def _attacked(line: Line) -> dict[str, Any]:
    """How a line says that it was attacked; older ones lack some or all of it, but their measures tell."""
    measured: dict[str, Any] = {}
    if "held_out" in line:
        measured["examples"] = line["held_out"]["examples"]
        measured["held_out"] = line["held_out"].get("clean_examples", measured["examples"])
    if "seen" in line:
        measured["seen"] = line["seen"]["radii"]
    said: dict[str, Any] = line.get("attacked", {})
    return said | measured


def _config(line: Line) -> Config | None:
    """The config of a line; an option that was added since has its default. None for a config of another form."""
    try:
        return options.from_tree(line["config"])
    except ConfigError:
        return None


def summary(line: Line) -> str:
    """A finished cell in one line for the terminal."""
    if line.get("diverged"):
        return f"{line['name']}: its training diverged"
    if "seen" not in line:
        found = line["held_out"]
        clean, robust = (100 * found[name] for name in ("clean_accuracy", "robust_accuracy"))
        return f"{line['name']}: {clean:.1f} % clean, {robust:.1f} % robust on held-out images"
    seen = line["seen"]
    robust = ", ".join(f"{100 * share:.1f}" for share in seen["accuracies"])
    return f"{line['name']}: {100 * seen['clean_accuracy']:.1f} % clean; {robust} % at {seen['radii']} px"
