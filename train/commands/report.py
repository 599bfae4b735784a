"""Writes one HTML page about evaluated runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from train import files, pages, reports, results, runs
from train.errors import ConfigError, printable


@dataclass(frozen=True)
class Report:
    """Writes one HTML page about evaluated runs, side by side: it holds everything it shows and loads nothing."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders, evaluated with the same suite on the same test images."""
    results: Path | None = None
    """The folder that was the --output of `evaluate`; by default the evaluations are in the run folders.
    Where certified.json lies beside an evaluation, as `certify` writes it, the page has a chart of it."""
    output: Path | None = None
    """The file to write.
    By default report.html, in the folder of one run, or above the first of several, or in --results."""


def run(arguments: list[str]) -> int:
    """Writes the report and prints its path."""
    options = tyro.cli(Report, prog="python -m train report", args=arguments)
    if not options.runs:
        raise ConfigError("report needs at least one run folder, for example runs/mnist5k-flow")
    names = runs.short_names(options.runs)
    if len(set(names)) < len(names):
        raise ConfigError("report takes each run once: leave one out")
    several = options.runs[0].parent if len(options.runs) > 1 else options.runs[0]
    path = options.output or (options.results or several) / "report.html"
    reports.check_writable([], path, option="--output")
    folders = reports.places(options.runs, options.results)
    found = {name: results.read_certification(folder) for name, folder in zip(names, folders, strict=True)}
    text = pages.write(
        {name: runs.Run(folder) for name, folder in zip(names, options.runs, strict=True)},
        {name: runs.load_config(folder) for name, folder in zip(names, options.runs, strict=True)},
        {name: results.read(folder) for name, folder in zip(names, folders, strict=True)},
        {name: one for name, one in found.items() if one is not None},
    )
    files.write_text(path, text)
    print(printable(f"report: {path}"))
    return 0
