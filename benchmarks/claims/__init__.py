"""The paper's claims as a grid of trainings: trains and evaluates the cells that are missing, then judges.

Every finished cell is one line of JSON. A stopped grid continues with the next missing cell; a cell that was stopped in
its training continues from its newest checkpoint. `python -m benchmarks report` writes the tables, plots and verdicts
of docs/results.md from the lines.
"""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path

import jax
from tqdm import tqdm

from benchmarks.claims import cell, grid, lines
from benchmarks.rows import check_writable
from train.errors import ConfigError
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
    """Folder for the runs of the cells; a run is needed only until its line is written."""
    data_dir: str | None = None
    """The folder of data sets."""


def run(options: Options) -> str:
    """Computes what is missing; returns the names of the cells with their state, one a line.

    Raises:
        ConfigError: no cell has such a name, or the file of lines cannot be written or read.
    """
    chosen = [one for one in grid.cells() if options.only in one.name]
    if not chosen:
        raise ConfigError(f"no cell's name contains {options.only!r}: --names lists them")
    found = lines.read(options.lines)
    known = {one.name: lines.of_cell(found, one) for one in chosen}
    missing = [one for one in chosen if not cell.MEASURES.keys() <= (known[one.name] or {}).keys()]
    if options.names:
        return "\n".join(f"{'missing' if one in missing else 'done   '}  {one.name}" for one in chosen)
    check_writable(options.lines)
    for number, one in enumerate(tqdm(missing, desc="cells", disable=not sys.stderr.isatty())):
        if number % FORGET == FORGET - 1:
            jax.clear_caches()
        line = cell.compute(
            one, options.runs / one.name / _digest(one), data_dir=options.data_dir, known=known[one.name]
        )
        lines.append(options.lines, line)
        tqdm.write(lines.summary(line))
    return f"{len(chosen)} cells are finished: {options.lines}"


def _digest(one: grid.Cell) -> str:
    """Names the run of a cell, so that another config under the same name is another run."""
    return hashlib.sha256(to_json(one.config).encode()).hexdigest()[:8]
