"""Tables and plots from the JSON files of a folder: ``python -m benchmarks report``.

A document names its tables in comments, and the lines between such a comment and the next ``<!-- end -->`` are
replaced::

    <!-- table cost-cpu.json: method, ratio_to_standard -->
    <!-- pivot kernels-cpu.json: kernel, shape | implementation | ratio_to_ours -->
    <!-- setting cost-cpu.json -->
    <!-- plot benchmarks-cost.png: what it shows -->
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from train.runs import write_json, write_text

Rows = list[dict[str, Any]]

DOCUMENT = "benchmarks.md"
BLOCK = re.compile(r"<!-- (table|pivot|setting|plot) ([\w.-]+)(?:: ([^>]*?))? -->\n.*?<!-- end -->", re.DOTALL)

TITLES = {
    "milliseconds": "ms",
    "ratio_to_standard": "time to standard",
    "flops_ratio": "FLOPs to standard (XLA)",
    "temporary_ratio": "temporary memory to standard",
    "model_passes": "passes",
    "examples_per_second": "examples/s",
    "ratio_to_ours": "time to ours",
    "bandwidth_fraction": "of the copy's bandwidth",
    "images_per_second": "images/s",
    "share_of_constant": "speed of one constant batch",
    "batch_milliseconds": "ms of a batch alone",
    "flops": "GFLOP",
    "hbm_bytes": "HBM GB",
    "temporary_bytes": "temporary MB",
    "collective_operations": "collectives",
    "collective_bytes": "MB sent",
    "roofline_milliseconds": "roofline ms",
    "communication_milliseconds": "all-reduce ms",
    "weak_scaling": "weak scaling",
    "largest_batch_estimate": "largest batch, estimated",
    "largest_batch": "largest batch that compiles",
    "gathers_and_scatters": "gathers, scatters",
    "clean_accuracy": "clean",
    "robust_accuracy": "robust",
}
FORMATS: dict[str, Callable[[Any], str]] = {
    "flops": lambda value: f"{value / 1e9:.0f}",
    "hbm_bytes": lambda value: f"{value / 1e9:.2f}",
    "temporary_bytes": lambda value: f"{value / 1e6:.0f}",
    "collective_bytes": lambda value: f"{value / 1e6:.1f}",
    "bandwidth_fraction": lambda value: f"{100 * value:.0f} %",
    "standing": lambda value: f"{100 * value:.1f} %",
    "share_of_calls": lambda value: f"{100 * value:.1f} %",
    "share_of_time": lambda value: f"{100 * value:.1f} %",
    "share_of_constant": lambda value: f"{100 * value:.1f} %",
    "warp_share": lambda value: f"{100 * value:.1f} %",
    "weak_scaling": lambda value: f"{100 * value:.1f} %",
    "clean_accuracy": lambda value: f"{100 * value:.1f} %",
    "robust_accuracy": lambda value: f"{100 * value:.1f} %",
}


class ReportError(ValueError):
    """A report cannot be made; the message is one line with the culprit."""


def write(results: Path, output: Path) -> str:
    """Replaces the tables of the document in `output` and draws the plots beside it.

    Args:
        results: folder of JSON files.
        output: folder of ``benchmarks.md``.

    Returns:
        What was written, a line each.

    Raises:
        ReportError: the document is not there, or a file that it names is not a benchmark's or lacks a column.
    """
    from benchmarks import plots

    document = output / DOCUMENT
    if not document.is_file():
        raise ReportError(f"there is no {document}: --output names the folder that holds it")
    drawn = plots.draw(results, output)
    text = document.read_text(encoding="utf-8")
    write_text(document, BLOCK.sub(lambda block: _filled(block, results, output), text))
    return "\n".join([f"tables: {document}", *(f"plot: {path}" for path in drawn)])


def read(path: Path) -> dict[str, Any]:
    """A benchmark's JSON file.

    Raises:
        ReportError: it is not there or not such a file.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        content["rows"][0]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ReportError(f"{path} is not a benchmark's JSON file: {error}") from error
    return content


def _filled(block: re.Match[str], results: Path, output: Path) -> str:
    kind, name, words = block.groups()
    opening = block.group(0).splitlines()[0]
    if kind == "plot" and (output / name).is_file():
        return "\n".join([opening, f"![{words}]({name})", "<!-- end -->"])
    if not (results / name).is_file():
        return "\n".join([opening, f"*Not measured yet: `{name}` is not there.*", "<!-- end -->"])
    content = read(results / name)
    try:
        if kind == "setting":
            lines = [setting(content["environment"])]
        elif kind == "table":
            lines = table(content["rows"], [word.strip() for word in words.split(",")])
        else:
            rows, across, value = ([word.strip() for word in part.split(",")] for part in words.split("|"))
            lines = pivot(content["rows"], rows, across[0], value[0])
    except (KeyError, AttributeError, ValueError) as error:
        raise ReportError(f"{DOCUMENT}, {opening}: {error!r} is not in {name}") from error
    return "\n".join([opening, *lines, "<!-- end -->"])


def setting(environment: dict[str, Any]) -> str:
    """Command, commit, versions and hardware in a line."""
    packages, devices = environment["packages"], environment["devices"]
    if environment["platform"] != "cpu":
        where = f"{len(devices)} x {devices[0]}"
    else:
        where = f"{environment['cores']} cores ({environment['processor']})"
    return (
        f"`{environment['command']}`: commit {environment['commit']}, JAX {packages['jax']}, "
        f"Python {environment['python']}, {where}."
    )


def table(rows: Rows, columns: list[str]) -> list[str]:
    """Rows as Markdown, the named columns only; a row without one of them is left out."""
    rows = [row for row in rows if set(columns) <= set(row)]
    if not rows:
        raise KeyError(", ".join(columns))
    return _markdown(
        [TITLES.get(column, column.replace("_", " ")) for column in columns],
        [[cell(column, row[column]) for column in columns] for row in rows],
        numeric=[not isinstance(rows[0][column], str) for column in columns],
    )


def pivot(rows: Rows, down: list[str], across: str, value: str) -> list[str]:
    """A Markdown table with one column for each value of `across`."""
    rows = [row for row in rows if {*down, across, value} <= set(row)]
    if not rows:
        raise KeyError(", ".join((*down, across, value)))
    columns = list(dict.fromkeys(row[across] for row in rows))
    cells: dict[tuple[Any, ...], dict[str, str]] = {}
    for row in rows:
        cells.setdefault(tuple(row[name] for name in down), {})[row[across]] = cell(value, row[value])
    return _markdown(
        [*(name.replace("_", " ") for name in down), *map(str, columns)],
        [[*map(str, key), *(found.get(column, "") for column in columns)] for key, found in cells.items()],
        numeric=[False] * len(down) + [True] * len(columns),
    )


def cell(column: str, value: Any) -> str:
    """A value as a table shows it: three figures, or as the column asks."""
    if value in ("", None):
        return ""
    if column in FORMATS:
        return FORMATS[column](value)
    if isinstance(value, float):
        return f"{value:.2f}" if abs(value) < 10 else f"{value:,.0f}"
    return str(value)


def _markdown(header: list[str], lines: list[list[str]], numeric: list[bool]) -> list[str]:
    rule = ["---:" if right else "---" for right in numeric]
    return ["| " + " | ".join(line) + " |" for line in (header, rule, *lines)]


def robustness(comparison: Path, cost: Path, command: list[str], output: Path) -> Rows:
    """What a method buys and what it costs: accuracies of trained runs beside the time of their training step.

    Args:
        comparison: ``comparison.json`` of ``python -m train evaluate``; a run folder is named as its method in `cost`,
            but for commas, with dashes for spaces.
        cost: JSON of ``python -m benchmarks cost`` for the same network.
        command: for the setting.
        output: the JSON file to write.

    Returns:
        A row per run.

    Raises:
        ReportError: a file is not what it should be, or a run's method is not in `cost`.
    """
    from benchmarks import harness

    try:
        runs = json.loads(comparison.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ReportError(f"{comparison} is not a comparison of runs: {error}") from error
    costs = {row["method"].replace(",", "").replace(" ", "-").replace("-+-", "-"): row for row in read(cost)["rows"]}
    missing = [name for name in runs if name not in costs]
    if missing:
        raise ReportError(f"{cost} has no method for the run {missing[0]}: {', '.join(costs)}")
    rows = [
        {
            "method": costs[name]["method"],
            "clean_accuracy": run["clean_accuracy"],
            "robust_accuracy": run["robust_accuracy"],
            "radius_pixels": run["radius_pixels"],
            "examples": run["examples"],
            "attacks": list(run["attacks"]),
            "ratio_to_standard": costs[name]["ratio_to_standard"],
        }
        for name, run in runs.items()
    ]
    write_json(output, {"environment": harness.setting(command), "rows": rows})
    return rows
