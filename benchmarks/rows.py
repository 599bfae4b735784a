"""Rows of measurements: written to JSON with their setting, read back, and as a table for the terminal."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from train import environment, files
from train.errors import ConfigError

Rows = list[dict[str, Any]]


def write(path: Path, command: list[str], rows: Rows) -> None:
    """Writes rows as JSON, with the setting that they were measured in."""
    files.write_json(path, {"environment": setting(command), "rows": rows})


def check_writable(path: Path, option: str = "--json") -> None:
    """Raises `ConfigError`, before minutes of work, if a file cannot be written."""
    folder = next(folder for folder in path.absolute().parents if folder.exists())
    if path.is_dir() or not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
        raise ConfigError(f"{option} {path} cannot be written: choose another file")


def read(path: Path) -> dict[str, Any]:
    """Reads a benchmark's JSON file: ``{"environment": setting, "rows": rows}``.

    Raises:
        ConfigError: there is no such file, or it is not a benchmark's.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        content["rows"][0]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ConfigError(f"{path} is not a benchmark's JSON file: {error}") from error
    return content


def setting(command: list[str]) -> dict[str, Any]:
    """What belongs beside a figure: command, commit, versions, hardware; without paths of the machine."""
    command = [Path(word).name if Path(word).is_absolute() else word for word in command]
    return {"command": "python -m benchmarks " + shlex.join(command), "commit": commit(), **environment.describe()}


@cache
def commit() -> str | None:
    """The checkout's commit at the first call, marked if more than results and texts has changed; None without one."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(Path(__file__).parents[1]), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!docs", ":!benchmarks/results")
        return git("describe", "--always", "--abbrev=12") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def table(rows: Rows) -> str:
    """Rows as a Markdown table, without columns that hold lists, dictionaries or the same value in every row."""
    names = dict.fromkeys(name for row in rows for name in row)
    columns = [name for name in names if _is_shown(name, [row.get(name) for row in rows])]
    cells = [[_cell(row.get(name, "")) for name in columns] for row in rows]
    return markdown([list(columns), ["--"] * len(columns), *cells])


def markdown(lines: list[list[str]]) -> str:
    """Lines of cells as Markdown."""
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _is_shown(name: str, values: list[Any]) -> bool:
    if any(isinstance(value, (list, dict)) for value in values):
        return False
    return name == "method" or len(values) == 1 or len(set(values)) > 1


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 10 else f"{value:.0f}"
    return str(value)
