"""The plots of ``docs/benchmarks.md``, drawn from rows."""

from __future__ import annotations

from collections.abc import Callable

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.rows import Rows

BLUE, ORANGE, GREEN, PURPLE, GREY = "#0969da", "#bc4c00", "#1a7f37", "#8250df", "#6e7781"
IMPLEMENTATIONS = {
    "deformreg": BLUE,
    "deformreg, promised": GREY,
    "grid_sample (PyTorch)": ORANGE,
    "map_coordinates": GREEN,
    "dm_pix": PURPLE,
}


def cost(rows: Rows) -> Figure:
    """Time of a step as bars, XLA's FLOPs as ticks, both relative to the standard step."""
    rows = sorted(rows, key=lambda row: -row["ratio_to_standard"])
    figure = Figure(figsize=(7, 0.34 * len(rows) + 1), layout="constrained")
    axes = figure.add_subplot()
    colors = [BLUE if "flow-gradient" in row["method"] and "+" not in row["method"] else GREY for row in rows]
    axes.barh([row["method"] for row in rows], [row["ratio_to_standard"] for row in rows], color=colors, height=0.7)
    axes.scatter(
        [row["flops_ratio"] for row in rows], range(len(rows)), marker="|", s=120, color="black", label="FLOPs (XLA)"
    )
    for place, row in enumerate(rows):
        end = max(row["ratio_to_standard"], row["flops_ratio"])
        axes.annotate(f"{row['ratio_to_standard']:.2f}", (end, place), (4, 0), textcoords="offset points", va="center")
    axes.set_xlabel(f"time of a training step, relative to standard ({rows[0]['model']}, n={rows[0]['batch_size']})")
    axes.set_xlim(0, 1.12 * max(max(row["ratio_to_standard"], row["flops_ratio"]) for row in rows))
    axes.legend(loc="upper right", frameon=False)
    _plain(axes)
    return figure


def kernels(rows: Rows) -> Figure:
    """Milliseconds of every implementation, a panel for each shape, flows below one pixel."""
    rows = [row for row in rows if row.get("flow") == "below one pixel" and "bandwidth_fraction" in row]
    shapes = list(dict.fromkeys(row["shape"] for row in rows))
    kernels = list(dict.fromkeys(row["kernel"] for row in rows))
    figure = Figure(figsize=(3.1 * len(shapes), 3.2), layout="constrained")
    panels = figure.subplots(1, len(shapes), squeeze=False)[0]
    for axes, shape in zip(panels, shapes, strict=True):
        for index, (name, color) in enumerate(IMPLEMENTATIONS.items()):
            found = {row["kernel"]: row for row in rows if row["implementation"] == name and row["shape"] == shape}
            places = [place + 0.15 * (index - 2) for place, kernel in enumerate(kernels) if kernel in found]
            heights = [found[kernel]["milliseconds"] for kernel in kernels if kernel in found]
            axes.plot(places, heights, "o", color=color, label=name)
        least = [_copy_time(rows, shape, kernel) for kernel in kernels]
        axes.scatter(range(len(kernels)), least, marker="_", s=700, color="black", label="copy of as many bytes")
        axes.set_yscale("log")
        axes.set_title(shape, fontsize=10)
        axes.set_xticks(range(len(kernels)), [kernel.replace(" ", "\n") for kernel in kernels], fontsize=8)
        _plain(axes)
    panels[0].set_ylabel("milliseconds")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    return figure


def _copy_time(rows: Rows, shape: str, kernel: str) -> float:
    row = next(row for row in rows if row["shape"] == shape and row["kernel"] == kernel)
    time: float = row["bandwidth_fraction"] * row["milliseconds"]
    return time


def robustness(rows: Rows) -> Figure:
    """Accuracy under attack against the time of a training step; points are numbered because names would overlap."""
    figure = Figure(figsize=(8, 3.8), layout="constrained")
    axes = figure.add_subplot()
    for number, row in enumerate(sorted(rows, key=lambda row: -row["robust_accuracy"]), start=1):
        color = BLUE if "flow-gradient" in row["method"] else ORANGE if "deformation" in row["method"] else GREY
        place = (row["ratio_to_standard"], 100 * row["robust_accuracy"])
        label = f"{number}  {row['method']} ({100 * row['clean_accuracy']:.1f})"
        axes.plot(*place, "o", color=color, markersize=14, label=label)
        axes.annotate(str(number), place, color="white", fontsize=8, ha="center", va="center_baseline")
    axes.set_xlabel("time of a training step, relative to standard")
    axes.set_ylabel(f"accuracy in %, deformed by at most {rows[0]['radius_pixels']:g} px")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=-4)
    figure.legend(
        loc="outside right center", frameon=False, fontsize=8, markerscale=0.5, title="method (clean accuracy)"
    )
    _plain(axes)
    return figure


def transfer(rows: Rows) -> Figure:
    """Accuracies on the images that were deformed against each network: a panel for each setting."""
    settings = list(dict.fromkeys(row["setting"] for row in rows))
    figure = Figure(figsize=(5.2 * len(settings), 5.2), layout="constrained")
    for axes, setting in zip(figure.subplots(1, len(settings), squeeze=False)[0], settings, strict=True):
        here = [row for row in rows if row["setting"] == setting]
        names = [row["method"] for row in here]
        kept = [[100 * row["from"][name] for name in names] for row in here]
        axes.imshow(kept, cmap="Blues", vmin=0, vmax=100)
        for place, accuracies in enumerate(kept):
            for source, accuracy in enumerate(accuracies):
                color, weight = ("white" if accuracy > 60 else "black"), ("bold" if source == place else "normal")
                axes.text(source, place, f"{accuracy:.0f}", color=color, weight=weight, ha="center", va="center")
        axes.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(names)), names)
        axes.set_xlabel("deformed against")
        axes.set_ylabel("shown to")
        axes.set_title(f"{setting}, {here[0]['radius_pixels']:g} px: accuracy in %", fontsize=10)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    return figure


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)


PLOTS: dict[str, tuple[str, Callable[[Rows], Figure]]] = {
    "benchmarks-cost.png": ("cost-cpu.json", cost),
    "benchmarks-kernels.png": ("kernels-cpu.json", kernels),
    "benchmarks-robustness.png": ("robustness-cpu.json", robustness),
    "results-transfer.png": ("transfer.json", transfer),
}
"""What each picture is drawn from, and how."""
