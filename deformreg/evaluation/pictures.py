"""Pictures of evaluations, with Matplotlib; and deformed images in one file with their flows.

Matplotlib is optional: ``pip install matplotlib``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from deformreg.evaluation.curves import Curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RIGHT, WRONG = "#1a7f37", "#cf222e"


def gallery(
    images: ArrayLike,
    flows: ArrayLike,
    deformed: ArrayLike,
    *,
    captions: Sequence[tuple[str, str]] | None = None,
    image_range: tuple[float, float] = (0.0, 1.0),
) -> Figure:
    """Draws clean images, flows, deformed images and differences, with a color wheel as the flows' key.

    Args:
        images: float[n, h, w, c], one, three or four channels.
        flows: float[n, h, w, 2], in pixels.
        deformed: float[n, h, w, c].
        captions: for each image the predictions before and after; green where they are the same.
        image_range: black and white.

    Returns:
        The figure; `savefig` writes it.
    """
    clean, fields, moved = (np.asarray(array, np.float64) for array in (images, flows, deformed))
    clean, moved = ((array - image_range[0]) / (image_range[1] - image_range[0]) for array in (clean, moved))
    largest = max(float(np.hypot(fields[..., 0], fields[..., 1]).max()), 1e-9)
    gain = 0.5 / max(float(np.abs(moved - clean).max()), 1e-6)
    figure = _figure(8.6, 1.8 * len(clean) + 0.4)
    axes = figure.subplots(len(clean), 5, squeeze=False, width_ratios=[4, 4, 4, 4, 2.4])
    for row, (image, field, other) in enumerate(zip(clean, fields, moved, strict=True)):
        show_image(axes[row, 0], image)
        show_flow(axes[row, 1], field, largest)
        show_image(axes[row, 2], other)
        difference = 0.5 + gain * (other - image)
        difference[..., 3:] = 1  # opaque
        show_image(axes[row, 3], difference)
        axes[row, 4].set_axis_off()
        if captions is not None:
            before, after = captions[row]
            axes[row, 0].set_xlabel(before, fontsize=9)
            axes[row, 2].set_xlabel(after, fontsize=9, color=RIGHT if before == after else WRONG)
    titles = ("clean", f"flow, at most {largest:.3g} px", "deformed", f"difference (gain {gain:.1f})")
    for axis, title in zip(axes[0], titles, strict=False):
        axis.set_title(title, fontsize=9)
    show_wheel(axes[0, 4], largest)
    return figure


def curves(by_name: Mapping[str, Curve]) -> Figure:
    """Draws robust accuracy against the radius with its 95 % intervals, one line per model.

    Args:
        by_name: from `deformreg.accuracy_curve`, by the models' names.

    Returns:
        The figure.
    """
    figure = _figure(5, 3.6)
    axis = figure.add_subplot()
    for name, curve in by_name.items():
        (line,) = axis.plot(curve.radii, [100 * share for share in curve.accuracies], "o-", label=name, markersize=4)
        low, high = 100 * np.array(curve.intervals).T
        axis.fill_between(curve.radii, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    axis.set(xlabel="radius, px", ylabel="robust accuracy, %", ylim=(0, 101))
    axis.set_xlim(left=0)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=9)
    return figure


def save_npz(path: Path | str, **arrays: ArrayLike) -> None:
    """Writes deformed images with their flows and whatever else belongs to them to one compressed ``.npz`` file.

    Args:
        path: of the file.
        arrays: by name, first axis the example; for example ``images=..., flows=..., deformed=..., labels=...``.

    Returns:
        Nothing.

    Raises:
        ValueError: no arrays, or arrays of different lengths.
    """
    lengths = {name: len(np.asarray(array)) for name, array in arrays.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"arrays must have one entry per example, got the lengths {lengths}")
    values: dict[str, Any] = {name: np.asarray(array) for name, array in arrays.items()}
    np.savez_compressed(path, **values)


def _figure(width: float, height: float) -> Figure:
    """An empty figure, in inches."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("pictures need Matplotlib: pip install matplotlib") from None
    return Figure(figsize=(width, height), layout="constrained")


def flow_colors(flow: Any, largest: float) -> np.ndarray[Any, Any]:
    """Colors of a flow, float[h, w, 3]: the hue is the direction, the saturation the length."""
    from matplotlib.colors import hsv_to_rgb

    angle = np.arctan2(flow[..., 0], flow[..., 1]) / (2 * np.pi) % 1
    length = np.clip(np.hypot(flow[..., 0], flow[..., 1]) / largest, 0, 1)
    colors: np.ndarray[Any, Any] = hsv_to_rgb(np.stack([angle, length, np.ones_like(angle)], axis=-1))
    return colors


def show_image(axis: Axes, image: Any) -> None:
    """Draws an image with values in [0, 1]."""
    axis.imshow(np.clip(image[..., 0] if image.shape[-1] == 1 else image, 0, 1), cmap="gray", vmin=0, vmax=1)
    axis.set(xticks=[], yticks=[])


def show_flow(axis: Axes, flow: Any, largest: float) -> None:
    """Draws a flow as colors under arrows to where content comes from; `largest` is its longest vector, in pixels."""
    largest = max(largest, 1e-9)  # where nothing moves
    axis.imshow(flow_colors(flow, largest))
    every = max(flow.shape[0] // 14, 1)
    rows, columns = np.mgrid[0 : flow.shape[0] : every, 0 : flow.shape[1] : every]
    sampled = flow[::every, ::every]
    axis.quiver(
        columns, rows, sampled[..., 1], sampled[..., 0], angles="xy", scale_units="xy", scale=largest / every,
        width=0.006, color="#24292f",
    )  # fmt: skip
    axis.set(xticks=[], yticks=[])


def show_wheel(axis: Axes, largest: float) -> None:
    """Draws the key of `show_flow`: each direction's color, up to the longest vector."""
    at = np.linspace(-largest, largest, 101)
    wheel = np.stack(np.meshgrid(at, at, indexing="ij"), axis=-1)
    outside = np.hypot(wheel[..., 0], wheel[..., 1]) > largest
    axis.imshow(np.dstack([flow_colors(wheel, largest), ~outside]), extent=(-1, 1, 1, -1))
    axis.set_axis_off()
    axis.set_title(f"from where,\nedge: {largest:.3g} px", fontsize=8)
