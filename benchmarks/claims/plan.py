"""Which cells of the grid are worth their computing: every strength once, further seeds of the chosen strength only."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.claims import grid, verdicts
from benchmarks.claims.grid import Cell, Setting
from benchmarks.claims.lines import Line


def wanted(lines: Sequence[Line]) -> list[Cell]:
    """The cells that verdicts need, those that are done among them, in the order in which they are computed.

    All strengths are trained with the first seed. With further seeds, a method is trained at the strength that the
    first seed's held-out images choose. If that one turns out not to match the standard network's clean accuracy over
    all seeds, the second best follows, and so on.

    Args:
        lines: the cells of the grid as it is declared now; one that was not measured on held-out images counts as
            missing.
    """
    lines = [line for line in lines if "held_out" in line]
    repeated = {
        (setting.name, method): _repeated(lines, setting, method)
        for setting in grid.SETTINGS
        for method in setting.strengths
    }
    return [
        cell for cell in grid.cells() if cell.seed == 0 or cell.strength in repeated[cell.setting.name, cell.method]
    ]


def to_come(lines: Sequence[Line]) -> int:
    """How many cells are still to be computed, as far as the finished ones tell."""
    cells, done = wanted(lines), {line["name"] for line in lines}
    planned = {(cell.setting.name, cell.method, cell.seed) for cell in cells}
    open_ = {(cell.setting.name, cell.method, cell.seed) for cell in grid.cells()} - planned
    return sum(cell.name not in done for cell in cells) + len(open_)


def judgeable(lines: Sequence[Line]) -> list[Line]:
    """The lines of methods that are trained at all their strengths: a part of them would make a method look weak.

    Lines of a setting that the grid does not have stay.
    """
    first = {(line["setting"], line["method"], line["strength"]) for line in lines if line["seed"] == 0}
    partly = {
        (setting.name, method)
        for setting in grid.SETTINGS
        for method, strengths in setting.strengths.items()
        if not all((setting.name, method, strength) in first for strength in strengths)
    }
    return [line for line in lines if (line["setting"], line["method"]) not in partly]


def _repeated(lines: Sequence[Line], setting: Setting, method: str) -> list[float]:
    """The strengths to train with further seeds; none before all are trained with the first."""
    here = [line for line in lines if line["setting"] == setting.name]
    first = [line for line in here if line["seed"] == 0 and line["method"] == method]
    standard = [line for line in here if line["method"] == "standard"]
    if len(first) < len(setting.strengths[method]) or not any(line["seed"] == 0 for line in standard):
        return []
    found = []
    for (line,) in verdicts.ranked([(line,) for line in first], verdicts.least_clean(standard[:1])):
        found.append(line["strength"])
        cells = tuple(one for one in here if (one["method"], one["strength"]) == (method, line["strength"]))
        if len(cells) < setting.seeds or verdicts.held_out(cells, "clean_accuracy") >= verdicts.least_clean(standard):
            break
    return found
