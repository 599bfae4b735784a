"""Writes the tables and plots of documents from JSON files.

A document names its tables in comments; the lines between such a comment and the next ``<!-- end -->`` are replaced::

    <!-- table cost-cpu.json: method, ratio_to_standard -->
    <!-- setting cost-cpu.json -->
    <!-- plot benchmarks-cost.png: what it shows -->
    <!-- claims verdicts -->
    <!-- ranking ranking.jsonl -->
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import ranking
from benchmarks.claims import grid, lines, page, plots
from benchmarks.json_lines import Line
from benchmarks.plots import PLOTS
from benchmarks.rows import Rows, markdown, read
from train.errors import ConfigError
from train.files import write_text

RESULTS = Path(__file__).with_name("results")
DOCUMENTS = ("benchmarks.md", "results.md", "attacks.md")
BLOCK = re.compile(r"<!-- (table|setting|plot|claims|ranking) ([\w.-]+)(?:: ([^>]*?))? -->\n.*?<!-- end -->", re.DOTALL)

TITLES = {
    "milliseconds": "ms",
    "ratio_to_standard": "relative time",
    "flops_ratio": "relative FLOPs (XLA)",
    "temporary_ratio": "relative temporary memory",
    "model_passes": "passes",
    "ratio_to_ours": "time relative to ours",
    "images_per_second": "images/s",
    "images_per_second_and_core": "images/s/core",
    "flops": "GFLOP",
    "hbm_bytes": "HBM GB",
    "temporary_bytes": "temporary MB",
    "argument_bytes": "state and batch MB",
    "shard_state": "sharded state",
    "collective_operations": "collectives",
    "collective_bytes": "MB sent",
    "roofline_milliseconds": "roofline ms",
    "weak_scaling": "weak scaling",
    "largest_batch": "largest batch that compiles",
    "cores_for_v5e-8_standard": "cores for v5e-8, standard",
    "cores_for_v5e-8_flow-gradient": "cores for v5e-8, flow gradient",
    "cores_for_8 H100_flow-gradient": "cores for 8 H100, flow gradient",
    "clean_accuracy": "clean",
    "robust_accuracy": "robust",
    "robust_interval": "95 % interval",
    "standard_epochs": "cost in standard epochs",
    "own": "deformed against it",
    "transferred": "deformed against any other",
}
PERCENT = (
    "weak_scaling",
    "clean_accuracy",
    "robust_accuracy",
    "own",
    "transferred",
)
FORMATS: dict[str, Callable[[float], str]] = {
    "flops": lambda value: f"{value / 1e9:.0f}",
    "hbm_bytes": lambda value: f"{value / 1e9:.2f}",
    "temporary_bytes": lambda value: f"{value / 1e6:.0f}",
    "argument_bytes": lambda value: f"{value / 1e6:.0f}",
    "shard_state": lambda value: "yes" if value else "no",
    "collective_bytes": lambda value: f"{value / 1e6:.1f}",
    "strength": lambda value: f"{value:g}" if value else "",
    **dict.fromkeys(PERCENT, lambda value: f"{100 * value:.1f} %"),
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Replaces the tables of the documents by those of JSON files, and draws the plots beside them."""

    results: Path = RESULTS
    """Folder of the JSON files."""
    output: Path = Path("docs")
    """Folder of benchmarks.md, results.md and attacks.md."""


def run(options: Options) -> str:
    """Writes documents and plots; returns their paths, one a line.

    Raises:
        ConfigError: there is no folder of results or no document, or a file that one names is not a benchmark's or
            lacks a column.
    """
    if not options.results.is_dir():
        raise ConfigError(f"--results: there is no folder {options.results}, and nothing has been written")
    documents = [options.output / name for name in DOCUMENTS if (options.output / name).is_file()]
    if not documents:
        raise ConfigError(f"there is no {' or '.join(DOCUMENTS)} in {options.output}: --output names their folder")
    cells = lines.current(lines.read(options.results / lines.FILE.name), grid.cells())
    written = [f"plot: {path}" for path in _plots(options, cells)]
    for document in documents:
        fill = partial(_filled, document=document.name, options=options, cells=cells)
        write_text(document, BLOCK.sub(fill, document.read_text(encoding="utf-8")))
    return "\n".join([*(f"tables: {document}" for document in documents), *written])


def _plots(options: Options, cells: Sequence[Line]) -> Iterator[Path]:
    """Draws the plots whose measurements are there."""
    drawings = {name: partial(plot, cells) for name, plot in plots.PLOTS.items() if cells}
    for name, (file, plot) in PLOTS.items():
        if (options.results / file).is_file():
            drawings[name] = partial(plot, read(options.results / file)["rows"])
    for name, draw in drawings.items():
        draw().savefig(options.output / name, dpi=150)
        yield options.output / name


def _filled(block: re.Match[str], document: str, options: Options, cells: Sequence[Line]) -> str:
    kind, name, words = block.groups()
    opening = block.group(0).splitlines()[0]
    try:
        text = _text(kind, name, words, options, cells)
    except (KeyError, AttributeError) as error:
        raise ConfigError(f"{document}, {opening}: {name} lacks {error}") from error
    return "\n".join([opening, text, "<!-- end -->"])


def _text(kind: str, name: str, words: str | None, options: Options, cells: Sequence[Line]) -> str:
    if kind == "plot" and (options.output / name).is_file():
        return f"![{words}]({name})"
    if kind == "claims" and cells:
        return page.PARTS[name](cells)
    if kind == "ranking" and (options.results / name).is_file():
        return ranking.table(ranking.read(options.results / name))
    if not (options.results / name).is_file():
        missing = lines.FILE.name if kind == "claims" else name
        return f"*Not measured yet: `{missing}` is missing.*"
    content = read(options.results / name)
    return setting(content["environment"]) if kind == "setting" else table(content["rows"], (words or "").split(", "))


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
    """A value as tables show it: in the column's format, else with two decimals below 10 and none above."""
    if value in ("", None):
        return ""
    if column in FORMATS:
        return FORMATS[column](value)
    if isinstance(value, float):
        return f"{value:.2f}" if abs(value) < 10 else f"{value:,.0f}"
    return str(value)
