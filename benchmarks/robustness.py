"""What a method buys and what it costs: accuracies of trained runs beside the time of their training step."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from benchmarks import rows
from benchmarks.options import Written
from benchmarks.rows import Rows
from train.errors import ConfigError

COPIED = ("clean_accuracy", "robust_accuracy", "radius_pixels", "examples")


@dataclass(frozen=True, kw_only=True)
class Options(Written):
    """Puts the accuracies of trained runs beside the cost of their training step; benchmarks/robustness.sh makes the
    runs. A run folder has the name of its method in the cost file, with dashes for spaces and without commas."""

    comparison: Path
    """comparison.json of `python -m train evaluate`."""
    cost: Path
    """JSON file of `python -m benchmarks cost` for the same network."""


def run(options: Options) -> Rows:
    """A row per run.

    Raises:
        ConfigError: a file is not what it should be, or has no method for a run.
    """
    costs = {_folder(row["method"]): row for row in rows.read(options.cost)["rows"]}
    try:
        runs = json.loads(options.comparison.read_text(encoding="utf-8"))
        found = {
            name: {**{key: run[key] for key in COPIED}, "attacks": list(run["attacks"])} for name, run in runs.items()
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ConfigError(f"{options.comparison} is not a comparison of runs: {error!r}") from error
    missing = [name for name in found if name not in costs]
    if missing:
        raise ConfigError(f"{options.cost} has no method for the run {missing[0]}: {', '.join(costs)}")
    return [
        {"method": costs[name]["method"], **run, "ratio_to_standard": costs[name]["ratio_to_standard"]}
        for name, run in found.items()
    ]


def _folder(method: str) -> str:
    return method.replace(",", "").replace(" + ", "-").replace(" ", "-")
