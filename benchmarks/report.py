"""Writes the tables and plots of a document from JSON files.

The document names its tables in comments; the lines between such a comment and the next ``<!-- end -->`` are replaced::

    <!-- table cost-cpu.json: method, ratio_to_standard -->
    <!-- setting cost-cpu.json -->
    <!-- plot benchmarks-cost.png: what it shows -->
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.plots import PLOTS
from benchmarks.rows import Rows, markdown, read
from train.errors import ConfigError
from train.files import write_text

RESULTS, DOCUMENT = Path(__file__).with_name("results"), "benchmarks.md"
BLOCK = re.compile(r"<!-- (table|setting|plot) ([\w.-]+)(?:: ([^>]*?))? -->\n.*?<!-- end -->", re.DOTALL)

TITLES = {
    "milliseconds": "ms",
    "ratio_to_standard": "relative time",
    "flops_ratio": "relative FLOPs (XLA)",
    "temporary_ratio": "relative temporary memory",
    "model_passes": "passes",
    "examples_per_second": "examples/s",
    "ratio_to_ours": "time relative to ours",
    "bandwidth_fraction": "share of a copy's bandwidth",
    "images_per_second": "images/s",
    "share_of_constant": "speed relative to one batch",
    "batch_milliseconds": "ms of the input alone",
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
PERCENT = (
    "standing",
    "share_of_calls",
    "share_of_time",
    "share_of_constant",
    "warp_share",
    "weak_scaling",
    "clean_accuracy",
    "robust_accuracy",
)
FORMATS: dict[str, Callable[[float], str]] = {
    "flops": lambda value: f"{value / 1e9:.0f}",
    "hbm_bytes": lambda value: f"{value / 1e9:.2f}",
    "temporary_bytes": lambda value: f"{value / 1e6:.0f}",
    "collective_bytes": lambda value: f"{value / 1e6:.1f}",
    **dict.fromkeys(PERCENT, lambda value: f"{100 * value:.1f} %"),
    "bandwidth_fraction": lambda value: f"{100 * value:.0f} %",
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Replaces the tables of benchmarks.md by those of JSON files, and draws the plots beside it."""

    results: Path = RESULTS
    """Folder of the JSON files."""
    output: Path = Path("docs")
    """Folder of benchmarks.md."""


def run(options: Options) -> str:
    """Writes document and plots; returns their paths, one a line.

    Raises:
        ConfigError: there is no document, or a file that it names is not a benchmark's or lacks a column.
    """
    document = options.output / DOCUMENT
    if not document.is_file():
        raise ConfigError(f"there is no {document}: --output names the folder that holds it")
    lines = [f"tables: {document}"]
    for name, (file, plot) in PLOTS.items():
        if (options.results / file).is_file():
            plot(read(options.results / file)["rows"]).savefig(options.output / name, dpi=150)
            lines.append(f"plot: {options.output / name}")
    text = document.read_text(encoding="utf-8")
    write_text(document, BLOCK.sub(lambda block: _filled(block, options.results, options.output), text))
    return "\n".join(lines)


def _filled(block: re.Match[str], results: Path, output: Path) -> str:
    kind, name, words = block.groups()
    opening = block.group(0).splitlines()[0]
    if kind == "plot" and (output / name).is_file():
        text = f"![{words}]({name})"
    elif not (results / name).is_file():
        text = f"*Not measured yet: `{name}` is missing.*"
    else:
        content = read(results / name)
        try:
            text = setting(content["environment"]) if kind == "setting" else table(content["rows"], words.split(", "))
        except (KeyError, AttributeError) as error:
            raise ConfigError(f"{DOCUMENT}, {opening}: {name} lacks {error}") from error
    return "\n".join([opening, text, "<!-- end -->"])


def setting(environment: dict[str, Any]) -> str:
    """Command, commit, versions and hardware as a sentence."""
    packages, devices = environment["packages"], environment["devices"]
    if environment["platform"] != "cpu":
        where = f"{len(devices)} x {devices[0]}"
    else:
        where = f"{environment['cores']} cores ({environment['processor']})"
    return (
        f"`{environment['command']}`: commit {environment['commit']}, JAX {packages['jax']}, "
        f"Python {environment['python']}, {where}."
    )


def table(rows: Rows, columns: list[str]) -> str:
    """The named columns as a Markdown table, without the rows that lack one of them."""
    rows = [row for row in rows if set(columns) <= set(row)]
    if not rows:
        raise KeyError(", ".join(columns))
    titles = [TITLES.get(column, column.replace("_", " ")) for column in columns]
    rule = ["---" if isinstance(rows[0][column], str) else "---:" for column in columns]
    return markdown([titles, rule, *([cell(column, row[column]) for column in columns] for row in rows)])


def cell(column: str, value: Any) -> str:
    """A value as tables show it: in the column's format, else with three figures."""
    if value in ("", None):
        return ""
    if column in FORMATS:
        return FORMATS[column](value)
    if isinstance(value, float):
        return f"{value:.2f}" if abs(value) < 10 else f"{value:,.0f}"
    return str(value)
