"""The parts of docs/results.md: Markdown from the lines of finished cells."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from benchmarks.claims import grid, judged, plan, verdicts
from benchmarks.claims.verdicts import Chosen
from benchmarks.json_lines import Line
from benchmarks.rows import markdown
from deformreg.statistics import wilson_interval

LOSSES = (0.01, 0.02, 0.03, 0.05)
"""Losses of clean accuracy at which `fronts` compares."""


def state(lines: Sequence[Line]) -> str:
    """How much of the grid is computed."""
    left = plan.to_come(lines)
    if not left:
        return f"All {len(lines)} cells of the grid are computed."
    return f"**{len(lines)} cells of the grid are computed, {left} are not.** Verdicts may change with the others."


def matched(lines: Sequence[Line]) -> str:
    """A table for each setting: every method at its chosen strength."""
    return "\n\n".join(_matched(lines, setting) for setting in verdicts.settings(lines))


def _matched(lines: Sequence[Line], setting: str) -> str:
    found = verdicts.chosen(lines, setting)
    if not found:
        return f"`{setting}`: the standard network is not computed yet."
    radii = next(iter(found.values())).lines[0]["seen"]["radii"]
    kinds = _unseen_attacks(next(iter(found.values())).lines[0])
    titles = [
        "method",
        "strength",
        "clean",
        *(f"{radius:g} px" for radius in radii),
        f"{radii[1]:g} px, 95 %",
        *kinds,
        "ADef px (broken)",
        "stability",
        "passes",
    ]
    rows = [_cells(one) for one in found.values()]
    examples = next(iter(found.values())).lines[0]["seen"]["examples"]
    head = (
        f"`{setting}`: {examples} test images, {_seeds([len(one.lines) for one in found.values()])}; accuracies in %."
    )
    head += _unseen(setting)
    table = markdown([titles, ["---", *["---:"] * (len(titles) - 1)], *rows])
    return "\n\n".join(filter(None, [head, table, _carried(found)]))


def _carried(found: Mapping[str, Chosen]) -> str:
    """What training against flows gains against pixel changes, and the other way round, in a sentence."""
    if not {"standard", "deformation", "pixel adversarial"} <= set(found):
        return ""
    measures = {"pixels": lambda line: float(line["unseen"]["accuracies"]["pixels"]), "flows": verdicts.seen}
    flows, pixels, standard = (found[name] for name in ("deformation", "pixel adversarial", "standard"))

    def accuracies(one: Chosen, other: Chosen, name: str) -> str:
        own, its, least = (100 * one_.mean(measures[name]) for one_ in (one, other, standard))
        return f"{own:.1f} % (`{other.method}` {its:.1f}, standard {least:.1f})"

    return (
        "Does training against one kind of attack help against the other? Under pixel changes, `deformation` keeps "
        f"{accuracies(flows, pixels, 'pixels')}; under flows of the middle radius, `pixel adversarial` keeps "
        f"{accuracies(pixels, flows, 'flows')}."
    )


def _seeds(counts: Sequence[int]) -> str:
    """What the figures of a table are taken over."""
    if max(counts) == 1:
        return "one seed"
    most = max(counts) if {*counts} <= {1, max(counts)} else f"up to {max(counts)}"
    return f"means over {most} seeds (lowest-highest), one seed where no range stands"


def _unseen_attacks(line: Line) -> list[str]:
    """The unseen attacks, the one on pixel values behind the deformations."""
    return sorted(line["unseen"]["accuracies"], key=lambda name: name == "pixels")


def _unseen(setting: str) -> str:
    """The budgets of the unseen attacks in a sentence; nothing for a setting that the grid no longer has."""
    for one in grid.SETTINGS:
        if one.name == setting:
            budgets = one.budgets
            return (
                f" Budgets of the unseen attacks: elastic {budgets.smooth:g} px, pixels {budgets.pixels:.3g}, "
                f"rotation {budgets.degrees:g} degrees with translation {budgets.shift:g} px, pixelwise-l2 "
                f"{1.5 * budgets.seen[1]:g} px, stadv {2 * budgets.seen[1]:g} px."
            )
    return ""


def _cells(one: Chosen) -> list[str]:
    first = one.lines[0]
    kinds = _unseen_attacks(first)
    smallest = [line["unseen"]["adef_displacement"] for line in one.lines]
    broken = fmean(line["unseen"]["adef_broken"] for line in one.lines)
    name = one.method if one.matched else f"{one.method} (not matched)"
    strength = "" if one.method == "standard" else f"{one.strength:g}"
    return [
        name,
        strength,
        _range([verdicts.clean(line) for line in one.lines]),
        *(_range([line["seen"]["accuracies"][place] for line in one.lines]) for place in range(3)),
        _interval(one),
        *(_range([line["unseen"]["accuracies"][kind] for line in one.lines]) for kind in kinds),
        "" if None in smallest else f"{fmean(smallest):.2f} ({100 * broken:.0f} %)",
        f"{fmean(line['stability']['ratio'] for line in one.lines):.2f}",
        f"{first['passes']:g}",
    ]


def _interval(one: Chosen) -> str:
    """The Wilson interval of the accuracy under flows; seeds share the images, so it is that of one set of images."""
    examples = one.lines[0]["seen"]["examples"]
    low, high = wilson_interval(round(one.mean(verdicts.seen) * examples), examples)
    return f"{100 * low:.0f}-{100 * high:.0f}"


def gains(lines: Sequence[Line]) -> str:
    """What robustness costs: each method's gain over the standard network at matched clean accuracy, against its cost.

    The gain counts under flows. Beside it stand the gains of exact flow gradient regularization and of deformation
    training on the same seeds, which are named, and the method's share of each.
    """
    titles = ["setting", "method", "strength", "cost in standard steps", "seeds", "gain in points"]
    titles += [title for method in _COMPARED for title in (f"{method}'s gain, same seeds", "share of it")]
    rows = []
    for setting in verdicts.settings(lines):
        found = {name: one for name, one in verdicts.chosen(lines, setting).items() if one.matched}
        if "standard" not in found:
            continue
        ordered = sorted(found.values(), key=lambda one: float(one.lines[0]["passes"]))
        rows += [
            [
                f"`{setting}`",
                one.method,
                "" if one.method == "standard" else f"{one.strength:g}",
                f"{one.lines[0]['passes'] / 3:.2f}",
                *_gains(one, found),
            ]
            for one in ordered
        ]
    return markdown([titles, ["---", "---", *["---:"] * (len(titles) - 2)], *rows])


_COMPARED = ("flow gradient", "deformation")


def _gains(one: verdicts.Chosen, found: Mapping[str, verdicts.Chosen]) -> list[str]:
    """A row's seeds, its gain, and the gains that it is compared with, all on the seeds that these methods share."""
    beside = {name: found[name] for name in ("standard", *_COMPARED) if name in found}
    seeds = one.seeds.intersection(*(other.seeds for other in beside.values()))
    if not seeds:
        return [""] * (2 + 2 * len(_COMPARED))
    standard, gain = beside["standard"].mean(verdicts.seen, seeds), {}
    for name, other in {**beside, "": one}.items():
        gain[name] = 100 * (other.mean(verdicts.seen, seeds) - standard)
    cells = [", ".join(map(str, sorted(seeds))), f"{gain['']:.1f}"]
    for name in _COMPARED:
        cells.append(f"{gain[name]:.1f}" if name in gain else "")
        cells.append(f"{100 * gain[''] / gain[name]:.0f} %" if gain.get(name, 0.0) > 0 else "")
    return cells


def activations(lines: Sequence[Line]) -> str:
    """Networks that differ in their activation only, side by side: accuracy clean, under flows and unseen
    deformations."""
    found = {setting: verdicts.chosen(lines, setting) for setting in verdicts.settings(lines)}
    rows = []
    for network, settings in _networks(lines).items():
        for method in grid.SMOOTHED:
            shown = [_activation(found[setting].get(method), setting) for setting in settings]
            rows += [[f"`{network}`", method, *cells] for cells in shown if cells]
    titles = ["network", "method", "activation", "strength", "seeds", "clean", "under flows", "unseen"]
    return markdown([titles, ["---", "---", "---", *["---:"] * 5], *rows])


def strengths(lines: Sequence[Line]) -> str:
    """These networks at every strength: accuracies clean and under flows of the first seed on held-out images."""
    found = {
        (line["setting"], line["method"], line["strength"]): line["held_out"]
        for line in lines
        if line["seed"] == 0 and "held_out" in line
    }
    networks = _networks(lines)
    names = list(dict.fromkeys(setting.rpartition("-")[2] for settings in networks.values() for setting in settings))
    rows = []
    for network in networks:
        for method in grid.SMOOTHED:
            tried = sorted({key[2] for key in found if key[0].rpartition("-")[0] == network and key[1] == method})
            for strength in tried:
                cells = [_both(found.get((f"{network}-{name}", method, strength))) for name in names]
                rows.append([f"`{network}`", method, "" if method == "standard" else f"{strength:g}", *cells])
    return markdown([["network", "method", "strength", *names], ["---", "---", *["---:"] * (1 + len(names))], *rows])


def fronts(lines: Sequence[Line]) -> str:
    """What each method keeps under flows if it may lose so much clean accuracy, and the strength that keeps it.

    Accuracies of the first seed on held-out images; the loss counts from the standard network's there. A plus marks the
    largest strength that was tried.
    """
    titles = ["setting", "method", *(f"at most {100 * loss:g}" for loss in LOSSES)]
    rows = []
    for setting in verdicts.settings(lines):
        here = [line for line in lines if line["setting"] == setting and line["seed"] == 0 and "held_out" in line]
        standard = [line for line in here if line["method"] == "standard"]
        for method in grid.COMPARED if standard else ():
            tried = [(line,) for line in here if line["method"] == method]
            if method != "standard" and tried:
                cells = [_best(tried, verdicts.least_clean(standard, loss)) for loss in LOSSES]
                rows.append([f"`{setting}`", method, *cells])
    return markdown([titles, ["---", "---", *["---:"] * len(LOSSES)], *rows])


def _best(candidates: Sequence[tuple[Line, ...]], least: float) -> str:
    """The highest robust accuracy of those with so much clean accuracy, with the strength; nothing if none has it."""
    best = verdicts.ranked(candidates, least)[0]
    if verdicts.held_out(best, "clean_accuracy") < least:
        return ""
    strength = best[0]["strength"]
    largest = "+" if strength == max(line["strength"] for (line,) in candidates) else ""
    return f"{100 * verdicts.held_out(best, 'robust_accuracy'):.1f} ({strength:.3g}{largest})"


def _networks(lines: Sequence[Line]) -> dict[str, list[str]]:
    """The settings of each network that has several activations."""
    networks: dict[str, list[str]] = {}
    for setting in verdicts.settings(lines):
        networks.setdefault(setting.rpartition("-")[0], []).append(setting)
    return {network: settings for network, settings in networks.items() if len(settings) > 1}


def _both(held_out: Mapping[str, Any] | None) -> str:
    if held_out is None:
        return ""
    return " / ".join(f"{100 * held_out[name]:.1f}" for name in ("clean_accuracy", "robust_accuracy"))


def _activation(one: Chosen | None, setting: str) -> list[str]:
    """A row's cells from the activation on; none for a method that is not computed yet."""
    if one is None:
        return []
    name = setting.rpartition("-")[2]
    return [
        name if one.matched else f"{name} (not matched)",
        "" if one.method == "standard" else f"{one.strength:g}",
        str(len(one.lines)),
        *(_range([measure(line) for line in one.lines]) for measure in (verdicts.clean, *verdicts.MEASURES.values())),
    ]


def _range(accuracies: Sequence[float]) -> str:
    """The mean over the seeds in percent and, if there are several, the range."""
    values = [100 * accuracy for accuracy in accuracies]
    mean = f"{sum(values) / len(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.1f}-{max(values):.1f})"


def every_cell(lines: Sequence[Line]) -> str:
    """A table of all finished cells."""
    titles = ["cell", "held-out clean", "held-out robust", "clean", "under flows", "unseen", "flags"]
    rows = [
        [
            f"`{line['name']}`",
            *(f"{100 * line['held_out'][name]:.1f}" for name in ("clean_accuracy", "robust_accuracy")),
            *(_on_test(line) if "seen" in line else [""] * 4),
        ]
        for line in lines
        if "held_out" in line
    ]
    return markdown([titles, ["---", *["---:"] * 5, "---"], *rows])


def _on_test(line: Line) -> list[str]:
    """A row's cells of what was measured on test images."""
    return [
        f"{100 * verdicts.clean(line):.1f}",
        " / ".join(f"{100 * share:.1f}" for share in line["seen"]["accuracies"]),
        f"{100 * verdicts.unseen(line):.1f}",
        ", ".join(line["seen"]["flags"]),
    ]


PARTS: dict[str, Callable[[Sequence[Line]], str]] = {
    "state": state,
    "summary": lambda lines: judged.summary(plan.judgeable(lines)),
    "verdicts": lambda lines: judged.in_full(plan.judgeable(lines)),
    "matched": lambda lines: matched(plan.judgeable(lines)),
    "gains": lambda lines: gains(plan.judgeable(lines)),
    "activations": lambda lines: activations(plan.judgeable(lines)),
    "strengths": strengths,
    "fronts": lambda lines: fronts(plan.judgeable(lines)),
    "cells": every_cell,
}
"""What the document can show, by the name in its comment."""
