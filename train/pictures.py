"""Pictures: attacked images beside the flows that deform them, and accuracy against the radius."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from deformreg.evaluation.pictures import RIGHT, WRONG, show_flow, show_image
from train.certification import Certified
from train.evaluation import Study, budget
from train.files import write_bytes
from train.smoothing import FAMILIES

COLORS = ("#0969da", "#bc4c00", "#8250df", "#1a7f37", "#bf3989", "#6e7781")

mpl.rcParams["text.parse_math"] = False  # names of runs and classes with dollars in them are not formulas


def save_curves(path: Path, rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Draws accuracy against the radius, one line per run."""
    figure = Figure(figsize=(5, 3.6), layout="constrained")
    _draw_curves(figure.add_subplot(), rows)
    _save(figure, path)


def save_examples(path: Path, study: Study, class_names: Sequence[str], *, count: int = 5) -> None:
    """Draws a grid of clean image, flow, deformed image and difference, with the predicted labels.

    The first `count` images: those that an attack broke before the others.
    """
    images, labels, flows, deformed, before, after = study.sample
    order = np.argsort((after == labels).astype(int) + (before != labels), kind="stable")[:count]
    figure = Figure(figsize=(7.2, 1.75 * len(order) + 0.5), layout="constrained")
    axes = figure.subplots(len(order), 4, squeeze=False)
    largest = float(np.abs(flows[order]).max())
    gain = 1 / max(float(np.abs(deformed[order] - images[order]).max()), 1e-6)
    for row, index in zip(axes, order, strict=True):
        show_image(row[0], images[index])
        _label(row[0], class_names, before[index], labels[index])
        show_flow(row[1], flows[index], np.sqrt(2) * largest)
        show_image(row[2], deformed[index])
        _label(row[2], class_names, after[index], labels[index])
        show_image(row[3], np.clip(0.5 + 0.5 * gain * (deformed[index] - images[index]), 0, 1))
    titles = ("clean", f"flow, at most {largest:.3g} px", "deformed", f"difference (gain {gain:.1f})")
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=9)
    _save(figure, path)


def save_comparison(path: Path, studies: Mapping[str, Study], class_names: Sequence[str], *, count: int = 6) -> None:
    """Draws the accuracy curves of several runs above the same test images, deformed against each of them."""
    found = {name: study.sample for name, study in studies.items()}
    first = next(iter(found.values()))
    right = np.all([sample.before == sample.labels for sample in found.values()], axis=0)
    survived = np.sum([sample.after == sample.labels for sample in found.values()], axis=0)
    # First the images that tell the runs apart: all classify them right when clean, only some when attacked.
    telling = right & (survived > 0) & (survived < len(found))
    order = np.argsort(~telling, kind="stable")[:count]
    largest = max(float(np.abs(sample.flows[order]).max()) for sample in found.values())
    figure = Figure(figsize=(1.35 * (count + 1), 3.4 + 1.55 * (1 + len(found))), layout="constrained")
    upper, lower = figure.subfigures(2, 1, squeeze=False, height_ratios=[3.2, 1.55 * (1 + len(found))])[:, 0]
    _draw_curves(upper.add_subplot(), {name: study.row for name, study in studies.items()})
    axes = lower.subplots(1 + len(found), len(order), squeeze=False)
    for column, index in enumerate(order):
        show_image(axes[0, column], first.images[index])
        axes[0, column].set_xlabel(_shown(class_names[first.labels[index]]), fontsize=9)
        for line, sample in enumerate(found.values(), 1):
            show_image(axes[line, column], sample.deformed[index])
            _label(axes[line, column], class_names, sample.after[index], sample.labels[index])
    for axis, name in zip(axes[:, 0], ("clean", *(f"against\n{name}" for name in found)), strict=True):
        axis.set_ylabel(name, fontsize=9)
    lower.suptitle(f"deformed by at most {largest:.3g} px; predictions below, green where right", fontsize=10)
    _save(figure, path)


def save_certified(path: Path, name: str, certified: Certified) -> None:
    """Draws certified accuracy against the radius, beside the network's own accuracy without noise."""
    row, curve = certified.row, certified.fine
    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axis = figure.add_subplot()
    accuracies, (low, high) = 100 * np.array(curve.accuracies), 100 * np.array(curve.intervals).T
    axis.step(curve.radii, accuracies, where="post", color=COLORS[0], label=f"{_label_of(name)}, certified")
    axis.fill_between(curve.radii, low, high, step="post", color=COLORS[0], alpha=0.15, linewidth=0)
    axis.axhline(100 * row["clean_accuracy"], color=COLORS[5], linestyle=":", label="the network itself, clean")
    size = f"{row['norm'][:2]} norm, {row['unit']}"
    _style(axis, f"certified radius of the {FAMILIES[row['family']].threat} ({size})", "certified accuracy, %")
    axis.set_xlim(right=row["ceiling"])
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    """Writes a picture, like every report, whole or not at all."""
    data = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # letters that the font lacks are drawn as boxes
        figure.savefig(data, dpi=160)
    write_bytes(path, data.getvalue())


def _draw_curves(axis: Axes, rows: Mapping[str, Mapping[str, Any]]) -> None:
    for color, (name, row) in zip(COLORS * len(rows), rows.items(), strict=False):
        curve = row["curve"]
        radii = [point["radius_pixels"] for point in curve]
        axis.plot(
            radii, [100 * point["accuracy"] for point in curve], "o-", color=color, label=_label_of(name), markersize=4
        )
        low, high = ([100 * point[end] for point in curve] for end in ("low", "high"))
        axis.fill_between(radii, low, high, color=color, alpha=0.15, linewidth=0)
    _style(axis, f"largest {budget(next(iter(rows.values()))['suite'])}, px", "accuracy, %")


def _label_of(name: str) -> str:
    """A run's name for a legend, which leaves out labels that begin with an underscore."""
    return f" {name}" if name.startswith("_") else name


def _style(axis: Axes, xlabel: str, ylabel: str) -> None:
    axis.set(xlabel=xlabel, ylabel=ylabel, ylim=(0, 101))
    axis.set_xlim(left=0)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=9)


def _label(axis: Axes, class_names: Sequence[str], predicted: int, label: int) -> None:
    axis.set_xlabel(_shown(class_names[predicted]), fontsize=9, color=RIGHT if predicted == label else WRONG)


def _shown(class_name: str) -> str:
    """A name as it can be drawn: folders of classes may have names that are not UTF-8."""
    return class_name.encode(errors="backslashreplace").decode()
