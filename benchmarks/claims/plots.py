"""The plots of docs/results.md, from the lines of finished cells."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.claims import grid, plan, verdicts
from benchmarks.json_lines import Line

COLORS = {
    "standard": "#6e7781",
    "random flows": "#953800",
    "input gradient": "#1a7f37",
    "input gradient, dual norm": "#4ac26b",
    "flow gradient": "#0969da",
    "flow gradient, dual norm": "#0a3069",
    "flow gradient, random start": "#54aeff",
    "flow gradient, every 4th step": "#218bff",
    "flow gradient, a quarter": "#80ccff",
    "flow gradient, last third": "#0550ae",
    "flow gradient, growing": "#033d8b",
    "flow gradient, finite difference": "#b6e3ff",
    "flow and input gradient": "#6639ba",
    "flow, input and affine gradient": "#c297ff",
    "displacement penalty": "#0e8a8a",
    "local linearity": "#bf8700",
    "pixel adversarial": "#cf222e",
    "deformation": "#bc4c00",
    "deformation, greedy": "#7d4e00",
    "deformation, 1 step": "#fb8f44",
    "worst of 10 rotations": "#bf3989",
    "TRADES": "#8250df",
    "flow gradient + deformation": "#1b1f24",
    "flow gradient + pixel adversarial": "#82071e",
}


SHOWN_LOSS = 12
"""Points of clean accuracy: a training that loses more lies outside the plot."""

SHOWN = ("digits/small-cnn-relu", "mnist5k/small-cnn-relu")
"""Settings that repeat the cheaper methods, too."""


def curves(lines: Sequence[Line]) -> Figure:
    """Robust accuracy at the middle radius against clean accuracy: a panel for each setting, a line for each method.

    Settings where only the chosen strengths are measured on test images have no curves. Nor has a training that
    diverged a point.
    """
    pointwise = {setting.name for setting in grid.SETTINGS if not setting.curves}
    lines = [line for line in lines if "seen" in line and line["setting"] not in pointwise]

    def draw(axes: Axes, setting: str) -> None:
        here = [line for line in lines if line["setting"] == setting]
        for method, color in COLORS.items():
            points = [line for line in here if line["method"] == method and line["seed"] == 0]
            xs, ys = ([100 * measure(line) for line in points] for measure in (verdicts.clean, verdicts.seen))
            if points:
                axes.plot(xs, ys, "o-", color=color, label=method, markersize=5, linewidth=1.2)
        axes.set_xlabel("clean accuracy in %")
        axes.set_ylabel(f"accuracy in % under flows of {here[0]['seen']['radii'][1]:g} px")
        axes.set_ylim(0, 100)
        axes.set_xlim(100 * max(verdicts.clean(line) for line in here) - SHOWN_LOSS, 100.5)

    return _panels(lines, draw)


def costs(lines: Sequence[Line]) -> Figure:
    """Accuracy under flows (filled) and unseen deformations (open) against a step's cost, at matched clean accuracy."""

    def draw(axes: Axes, setting: str) -> None:
        for method, one in verdicts.chosen(lines, setting).items():
            if one.matched:
                cost, color = one.lines[0]["passes"] / 3, COLORS[method]
                axes.plot(cost, 100 * one.mean(verdicts.seen), "o", color=color, label=method)
                axes.plot(cost, 100 * one.mean(verdicts.unseen), "o", color=color, fillstyle="none")
        radius = next(line["seen"]["radii"][1] for line in lines if line["setting"] == setting and "seen" in line)
        _mark(axes)
        axes.set_xlabel("passes of a training step, in standard steps")
        axes.set_ylabel(f"accuracy under attack in % (flows: {radius:g} px)")
        axes.set_ylim(0, 100)
        axes.set_xlim(0.9, 8)
        axes.set_xscale("log", base=2)
        axes.set_xticks([1, 2, 4, 8], ["1", "2", "4", "8"])

    several = [setting for setting in verdicts.settings(lines) if len(verdicts.chosen(lines, setting)) > 1]
    return _panels([line for line in lines if line["setting"] in several] or lines, draw)


def methods(lines: Sequence[Line]) -> Figure:
    """Methods that were trained with several seeds, the cheapest step on top: accuracy under flows (filled) and unseen
    deformations (open) at matched clean accuracy, means and ranges."""
    found = {setting: here for setting in SHOWN if (here := _repeated(lines, setting))}
    if not found:
        return Figure()
    costs = {name: one.lines[0]["passes"] / 3 for here in found.values() for name, one in here.items()}
    names = sorted(costs, key=lambda name: (costs[name], name))
    figure = Figure(figsize=(10, 1.2 + 0.34 * len(names)), layout="constrained")
    places = figure.subplots(1, len(found), sharey=True, squeeze=False).flat
    for axes, (setting, here) in zip(places, found.items(), strict=True):
        for row, name in enumerate(names):
            if name in here:
                for measure, fill in ((verdicts.unseen, "none"), (verdicts.seen, "full")):
                    values = [100 * measure(line) for line in here[name].lines]
                    axes.plot([min(values), max(values)], [row, row], color=COLORS[name], linewidth=2, alpha=0.5)
                    axes.plot(fmean(values), row, "o", color=COLORS[name], fillstyle=fill)
        axes.set_title(setting, fontsize=10)
        axes.set_xlabel("accuracy in %")
        axes.set_xlim(-3, 100)
        axes.set_yticks(range(len(names)), [f"{name} ({costs[name]:.3g})" for name in names])
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.grid(alpha=0.25)
    _mark(axes)
    axes.legend(loc="lower right", fontsize=8)
    return figure


def _mark(axes: Axes) -> None:
    """Explains filled and open circles in the legend."""
    axes.plot([], [], "o", color="black", label="filled: under flows")
    axes.plot([], [], "o", color="black", fillstyle="none", label="open: unseen deformations")


def _repeated(lines: Sequence[Line], setting: str) -> dict[str, verdicts.Chosen]:
    found = verdicts.chosen(lines, setting)
    return {name: one for name, one in found.items() if one.matched and len(one.lines) > 1}


def _panels(lines: Sequence[Line], draw: Callable[[Axes, str], None]) -> Figure:
    """A panel for each setting, and one legend for all."""
    settings = verdicts.settings(lines)
    if not settings:
        return Figure()
    columns = min(len(settings), 3)
    rows = math.ceil(len(settings) / columns)
    figure = Figure(figsize=(4.6 * columns + 2.6, 4.2 * rows), layout="constrained")
    places = figure.subplots(rows, columns, squeeze=False).flat
    legend: dict[str, Artist] = {}
    for setting, axes in zip(settings, places, strict=False):  # the settings first: zip drops no axes then
        draw(axes, setting)
        axes.set_title(setting, fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        handles, labels = axes.get_legend_handles_labels()
        legend |= dict(zip(labels, handles, strict=True))
    for axes in places:  # those that are left over
        axes.set_visible(False)
    labels = sorted(legend, key=lambda label: label not in COLORS)  # the methods before the marks
    figure.legend([legend[label] for label in labels], labels, loc="outside right center", frameon=False, fontsize=8)
    return figure


PLOTS: dict[str, Callable[[Sequence[Line]], Figure]] = {
    "claims-curves.png": curves,
    "claims-cost.png": lambda lines: costs(plan.judgeable(lines)),
    "claims-methods.png": lambda lines: methods(plan.judgeable(lines)),
}
"""The plots, by file name."""
