"""Line charts: SVG that stretches, with labels in HTML that do not, so that they can be read at every width."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

from deformreg.evaluation.html.elements import COLORS, Html, element, join, percent, swatch, table


class Point(NamedTuple):
    """A point of a line; `low` and `high` are the ends of its interval, where it has one."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


class Line(NamedTuple):
    """A line of a chart: the run's number and name, and its points, x increasing."""

    number: int
    name: str
    points: Sequence[Point]


class Axis(NamedTuple):
    """An axis: its label, its unit (``%`` for shares) and its last value; the first is zero."""

    label: str
    unit: str
    end: float

    def place(self, value: float) -> float:
        """Where a value is, in percent of the axis."""
        return round(100 * min(max(value / self.end, 0.0), 1.0), 3)

    def text(self, value: float) -> str:
        """A value with its unit."""
        return percent(value) if self.unit == "%" else f"{value:.4g} {self.unit}".rstrip()

    def tick(self, value: float) -> str:
        """A value beside the axis."""
        return f"{100 * value:.0f} %" if self.unit == "%" else f"{value:g}"


def axis(label: str, unit: str, values: Sequence[float]) -> Axis:
    """An axis that holds all values; of shares, it ends at 100 %."""
    return Axis(label, unit, 1.0 if unit == "%" else max([value for value in values if value > 0], default=1.0))


def chart(title: str, x: Axis, y: Axis, lines: Sequence[Line], *, numbers: bool = True) -> Html:
    """Draws a chart.

    Every x has a band across the chart that shows its values when the pointer or the keyboard's focus is on it.

    Args:
        title: what the chart shows.
        x: the horizontal axis.
        y: the vertical axis.
        lines: the lines.
        numbers: whether a table of all values follows.

    Returns:
        The chart with its legend, and the table.
    """
    drawing = element(
        "svg", *(_grid(x, y)), *(mark for line in lines for mark in _draw(x, y, line)),
        viewBox="0 0 100 100", preserveAspectRatio="none", aria_hidden="true", focusable="false",
    )  # fmt: skip
    plot = element(
        "div", drawing, *_ticks(x, y), element("div", *_bands(x, y, lines), class_="bands"), class_="plot",
        role="group", aria_label=f"{title}. The arrow keys move from value to value.",
    )  # fmt: skip
    legend = [element("li", swatch(line.number), line.name) for line in lines]
    figure = element(
        "figure",
        element("figcaption", element("strong", title), element("ul", *legend, class_="legend") if legend else None),
        plot,
        element("div", f"{x.label}, {x.unit}" if x.unit else x.label, class_="xlabel", aria_hidden="true"),
        class_="chart",
    )
    return join([figure, _numbers(title, x, y, lines) if numbers else None])


def ticks(end: float) -> list[float]:
    """About five round values from zero to the end of an axis."""
    rough = end / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    return [float(f"{number * step:.12g}") for number in range(math.floor(end / step + 1e-9) + 1)]


def _grid(x: Axis, y: Axis) -> list[Html]:
    across = [f"M0 {100 - y.place(value)}H100" for value in ticks(y.end)]
    down = [f"M{x.place(value)} 0V100" for value in ticks(x.end)]
    return [element("path", class_="grid", d=" ".join(across + down))]


def _draw(x: Axis, y: Axis, line: Line) -> list[Html]:
    kind = f"run-{line.number % COLORS}"
    at = [(x.place(point.x), 100 - y.place(point.y)) for point in line.points]
    upper = [(x.place(p.x), 100 - y.place(p.high)) for p in line.points if p.high is not None]
    lower = [(x.place(p.x), 100 - y.place(p.low)) for p in line.points if p.low is not None]
    area = " ".join(f"{across},{down}" for across, down in [*upper, *lower[::-1]])
    path = "L".join(f"{across} {down}" for across, down in at)
    # Dots are lines of no length: their round ends keep their shape when the drawing stretches.
    dots = "".join(f"M{across} {down}h0" for across, down in at)
    return [
        *([element("polygon", class_=f"range {kind}", points=area)] if area else []),
        *([element("path", class_=f"line {kind}", d=f"M{path}")] if path else []),
        *([element("path", class_=f"dots {kind}", d=dots)] if len(at) <= 12 else []),
    ]


def _ticks(x: Axis, y: Axis) -> list[Html]:
    below = [element("span", x.tick(value), class_="xtick", style=f"left:{x.place(value)}%") for value in ticks(x.end)]
    beside = [
        element("span", y.tick(value), class_="ytick", style=f"bottom:{y.place(value)}%") for value in ticks(y.end)
    ]
    return [element("div", *below, *beside, aria_hidden="true")]


def _bands(x: Axis, y: Axis, lines: Sequence[Line]) -> list[Html]:
    """One band per x, up to the middle between it and its neighbours."""
    values = sorted({point.x for line in lines for point in line.points})
    at = [x.place(value) for value in values]
    middles = [(left + right) / 2 for left, right in itertools.pairwise(at)]
    bands = []
    for index, (value, left, right) in enumerate(zip(values, [0.0, *middles], [*middles, 100.0], strict=True)):
        found = [(line, point) for line in lines for point in line.points if point.x == value]
        spoken = "; ".join(f"{line.name} {_value(y, point)}" for line, point in found)
        shown = [
            element("div", swatch(line.number), element("span", line.name), element("b", _value(y, point)))
            for line, point in found
        ]
        side = "left" if at[index] > 50 else "right"
        tip = element("div", element("div", x.text(value), class_="where"), *shown, class_=f"tip {side}")
        cursor = element("div", tip, class_="cursor", style=f"left:{_within(at[index], left, right)}%")
        bands.append(
            element(
                "div", cursor, class_="band", style=f"left:{left:.3f}%;width:{right - left:.3f}%",
                tabindex=0 if index == 0 else -1, role="img", aria_label=f"{x.text(value)}: {spoken}",
            )
        )  # fmt: skip
    return bands


def _within(at: float, left: float, right: float) -> float:
    return round(100 * (at - left) / (right - left), 3) if right > left else 0.0


def _value(y: Axis, point: Point) -> str:
    if point.low is None or point.high is None:
        return y.text(point.y)
    low = y.text(point.low).removesuffix(y.unit).rstrip()
    return f"{y.text(point.y)} ({low} to {y.text(point.high)})"


def _numbers(title: str, x: Axis, y: Axis, lines: Sequence[Line]) -> Html:
    values = sorted({point.x for line in lines for point in line.points})
    by_line = [{point.x: _value(y, point) for point in line.points} for line in lines]
    rows = [[x.text(value), *(points.get(value, "") for points in by_line)] for value in values]
    header = [x.label, *(line.name for line in lines)]
    return element("details", element("summary", "The numbers"), table(header, rows, caption=title))
