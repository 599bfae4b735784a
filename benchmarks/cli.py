"""The command line: ``python -m benchmarks {cost,peers,storage}``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from train.runs import write_json

DESCRIPTION = "Measures what deformreg costs; ratios are taken inside one run, candidates in turn."


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a benchmark, prints its table, writes its JSON, and returns the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(arguments)
    settings = {
        "model": options.model,
        "batch_size": options.batch_size,
        "image_size": options.image_size,
        "rounds": options.rounds,
        "quick": options.quick,
    }
    from benchmarks import cost, harness, peers, storage

    try:
        if options.name == "cost":
            rows = cost.measure(**settings)
        elif options.name == "storage":
            rows = storage.measure(**settings)
        else:
            rows = peers.measure(**settings, torch_python=options.torch_python)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(rows))
    if options.json:
        write_json(options.json, {"environment": harness.setting(arguments), "rows": rows})
        print(f"written: {options.json}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=DESCRIPTION)
    parser.add_argument(
        "name",
        choices=("cost", "peers", "storage"),
        help="cost: one training step per method; peers: against plain PyTorch; storage: checkpoints beside the steps",
    )
    parser.add_argument("--model", default="vgg-11", help="network, full width (default: vgg-11)")
    parser.add_argument("--batch-size", type=_count, default=128, help="images per step (default: 128)")
    parser.add_argument("--image-size", type=_count, default=32, help="side in pixels (default: 32)")
    parser.add_argument("--rounds", type=_count, default=7, help="timed rounds (default: 7)")
    parser.add_argument("--quick", action="store_true", help="fewer methods, at most five minutes on two cores")
    parser.add_argument("--json", type=Path, help="write environment and rows to this file")
    parser.add_argument("--torch-python", default=sys.executable, help="an interpreter with PyTorch, for peers")
    return parser


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as a Markdown table, without the columns that are lists or the same everywhere."""
    columns = [
        name
        for name, value in rows[0].items()
        if not isinstance(value, list) and (len({row[name] for row in rows}) > 1 or name == "method")
    ]
    lines = [columns, ["--"] * len(columns), *([_cell(row[name]) for name in columns] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 10 else f"{value:.0f}"
    return str(value)
