"""The paper's claims as a grid of trainings: trains and evaluates the cells that are missing, then judges.

Every finished cell is one line of JSON; `plan` reads from them which are worth computing next. Several processes may
add lines to one file, each with its part of the grid (``--only``). A stopped grid continues with the next missing cell;
a cell that was stopped in its training continues from its newest checkpoint. `python -m benchmarks report` writes the
tables, plots and verdicts of docs/results.md from the lines.
"""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path

import jax
from tqdm import tqdm

from benchmarks import json_lines
from benchmarks.claims import cell, grid, lines, plan
from benchmarks.rows import check_writable, commit
from train.errors import ConfigError, NonFiniteLoss
from train.options import to_json

FORGET = 20
"""After so many cells the compiled programs are dropped: JAX keeps those of every `pmap` that it has seen, and after
some eighty trainings Linux refuses the process another memory map."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Trains and evaluates the cells of the grid whose lines are missing, in the grid's order."""

    only: str = ""
    """Only the cells whose name contains this text; see --names."""
    names: bool = False
    """Print the names of the cells and whether each has its line; compute nothing."""
    lines: Path = lines.FILE
    """The file of finished cells, one line of JSON each."""
    runs: Path = Path("runs/claims")
    """Folder for the runs of the cells; a run is needed until its line has all its measures."""
    data_dir: str | None = None
    """The folder of data sets."""


def run(options: Options) -> str:
    """Computes what is missing; returns the names of the cells with their state, one a line.

    Raises:
        ConfigError: no cell has such a name, none with it is needed, or the file of lines cannot be written or read.
    """
    if not any(options.only in one.name for one in grid.cells()):
        raise ConfigError(f"no cell's name contains {options.only!r}: --names lists them")
    if options.names:
        cells = _wanted(lines.read(options.lines), options)
        _check_wanted(cells, options)
        return "\n".join(f"{'missing' if one.missing else 'done   '}  {one.cell.name}" for one in cells)
    check_writable(options.lines, "--lines")
    commit()  # of the code that computes, which may be another one than the checkout's hours later
    number = 0
    with tqdm(desc="cells", disable=not sys.stderr.isatty()) as bar:
        while True:
            found = lines.read(options.lines)
            cells = _wanted(found, options)
            _check_wanted(cells, options)
            missing = [one for one in cells if one.missing]
            if not missing:
                return f"{len(cells)} cells are finished: {options.lines}"
            bar.total = number + len(missing)
            one, measures, _ = missing[0]
            known = lines.of_cell(found, one)
            folder = options.runs / one.name / _digest(one)
            try:
                line = cell.compute(one, folder, measures=measures, data_dir=options.data_dir, known=known)
            except NonFiniteLoss as error:
                tqdm.write(f"{one.name}: {error}")
                line = cell.diverged(one, folder)
            json_lines.append(options.lines, line)
            tqdm.write(lines.summary(line))
            bar.update()
            number += 1
            if number % FORGET == 0:
                jax.clear_caches()


def _wanted(found: list[json_lines.Line], options: Options) -> list[plan.Wanted]:
    current = lines.current(found, grid.cells())
    return [one for one in plan.wanted(current) if options.only in one.cell.name]


def _check_wanted(cells: list[plan.Wanted], options: Options) -> None:
    if not cells:
        raise ConfigError(
            f"no cell to compute has {options.only!r} in its name: further seeds are trained at the strength that the "
            "first seed chooses; --names without --only lists what is computed"
        )


def _digest(one: grid.Cell) -> str:
    """Names the run of a cell, so that another config under the same name is another run."""
    return hashlib.sha256(to_json(one.config).encode()).hexdigest()[:8]
