"""Checks every checkpoint of trained runs against its checksums."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from train import checkpoints, files, reports, runs
from train.errors import ConfigError, printable
from train.restored import check_each_once

DAMAGED = 1
"""The exit code if a checkpoint is damaged."""


@dataclass(frozen=True)
class Verify:
    """Checks every checkpoint of runs: all arrays against their checksums, and the config against the run's."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders."""
    json: Path | None = None
    """Also write the findings to this file, for scripts."""


def run(arguments: list[str]) -> int:
    """Prints the finding of every checkpoint; returns `DAMAGED` if one is damaged, else 0."""
    options = tyro.cli(Verify, prog="python -m train verify", args=arguments)
    if not options.runs:
        raise ConfigError("verify needs at least one run folder, for example runs/mnist5k-flow")
    check_each_once(options.runs)
    reports.check_writable([], options.json)
    findings: dict[str, dict[int, str | None]] = {}
    for folder in options.runs:
        found = findings[str(folder)] = {}
        config = runs.load_config(folder)
        for step, damage in checkpoints.verify(runs.Run(folder).checkpoints, config):
            found[step] = damage
            print(printable(f"{folder}: step {step}: {damage or 'intact'}"), flush=True)
        if not found:
            print(printable(f"{folder}: no checkpoint"))
    if options.json:
        files.write_json(options.json, findings)
    return DAMAGED if any(damage for found in findings.values() for damage in found.values()) else 0
