"""What is worth its computing: every strength once, further seeds and most measures for the chosen strength only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.claims import cell, grid, verdicts
from benchmarks.claims.grid import Cell, Setting
from benchmarks.json_lines import Line


class Wanted(NamedTuple):
    """A cell that verdicts need.

    Attributes:
        cell: of the grid.
        measures: names of `cell.MEASURES`, as far as the finished cells tell.
        missing: whether the cell lacks its line, or one of these in it; none is taken if its training diverged.
    """

    cell: Cell
    measures: frozenset[str]
    missing: bool


def wanted(lines: Sequence[Line]) -> list[Wanted]:
    """The cells that verdicts need, those that are done among them, in the order in which they are computed.

    All strengths are trained with the first seed and measured on held-out images. The one that these choose is measured
    on test images, and trained with further seeds. If it turns out not to match the standard network's clean accuracy
    over all seeds, the second best follows, and so on.

    Args:
        lines: the cells of the grid as it is declared now; one that was not measured on held-out images counts as
            missing.
    """
    known = {line["name"]: line.keys() for line in lines}
    diverged = {line["name"] for line in lines if line.get("diverged")}
    chosen = _chosen_by_method([line for line in lines if "held_out" in line])

    def of(one: Cell) -> Wanted:
        whole = one.setting.curves or one.strength in chosen[one.setting.name, one.method]
        measures = frozenset(cell.MEASURES if whole else ("held_out",))
        return Wanted(one, measures, one.name not in diverged and not measures <= known.get(one.name, set()))

    return [of(one) for one in grid.cells() if one.seed == 0 or one.strength in chosen[one.setting.name, one.method]]


def to_come(lines: Sequence[Line]) -> int:
    """How many cells are still to be computed or measured, as far as the finished ones tell."""
    cells = wanted(lines)
    planned = {(one.cell.setting.name, one.cell.method, one.cell.seed) for one in cells}
    open_ = {(one.setting.name, one.method, one.seed) for one in grid.cells()} - planned
    return sum(one.missing for one in cells) + len(open_)


def judgeable(lines: Sequence[Line]) -> list[Line]:
    """The lines of methods that are trained at all their strengths, and wholly measured at the one that held-out images
    choose: a part of the strengths would make a method look weak.

    Lines of a setting that the grid does not have stay.
    """
    lines = [line for line in lines if "held_out" in line]
    first = {(line["setting"], line["method"], line["strength"]) for line in lines if line["seed"] == 0}
    partly = {
        (setting.name, method)
        for setting in grid.SETTINGS
        for method, strengths in setting.strengths.items()
        if not all((setting.name, method, strength) in first for strength in strengths)
    }
    rest = [line for line in lines if (line["setting"], line["method"]) not in partly]
    for setting in verdicts.settings(rest):
        for method, one in verdicts.chosen(rest, setting).items():
            if not all(cell.MEASURES.keys() <= line.keys() for line in one.lines):
                partly.add((setting, method))
    return [line for line in rest if (line["setting"], line["method"]) not in partly]


def _chosen_by_method(lines: Sequence[Line]) -> dict[tuple[str, str], list[float]]:
    return {
        (setting.name, method): _chosen(lines, setting, method)
        for setting in grid.SETTINGS
        for method in setting.strengths
    }


def _chosen(lines: Sequence[Line], setting: Setting, method: str) -> list[float]:
    """The strengths to train with further seeds: the best, and those before it that did not match over all seeds; none
    before all are trained with the first. If none matches, one stands for the method."""
    here = [line for line in lines if line["setting"] == setting.name]
    first = [line for line in here if line["seed"] == 0 and line["method"] == method]
    standard = [line for line in here if line["method"] == "standard"]
    if len(first) < len(setting.strengths[method]) or not any(line["seed"] == 0 for line in standard):
        return []
    found, least = [], verdicts.least_clean(standard[:1])
    for (line,) in verdicts.ranked([(line,) for line in first], least):
        found.append(line["strength"])
        if line["held_out"]["clean_accuracy"] < least:
            break
        cells = tuple(one for one in here if (one["method"], one["strength"]) == (method, line["strength"]))
        if len(cells) < setting.seeds or verdicts.held_out(cells, "clean_accuracy") >= verdicts.least_clean(standard):
            break
    return found
