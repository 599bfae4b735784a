"""The command line: ``python -m benchmarks {cost,kernels,peers}``."""

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
    from benchmarks import harness

    try:
        rows = _measure(options)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(rows))
    if options.json:
        write_json(options.json, {"environment": harness.setting(arguments), "rows": rows})
        print(f"written: {options.json}")
    return 0


def _measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    from benchmarks import cost, kernels, peers

    rounds = {"rounds": options.rounds, "quick": options.quick}
    step = {"model": options.model, "batch_size": options.batch_size, "image_size": options.image_size}
    if options.name == "cost":
        return cost.measure(**step, **rounds)
    if options.name == "kernels":
        return kernels.measure(**rounds, torch_python=options.torch_python)
    return peers.measure(**step, **rounds, torch_python=options.torch_python or sys.executable)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=DESCRIPTION)
    parser.add_argument(
        "name",
        choices=("cost", "kernels", "peers"),
        help="cost: one training step per method; kernels: the warp and its gradients; peers: against plain PyTorch",
    )
    parser.add_argument("--model", default="vgg-11", help="network, full width (default: vgg-11)")
    parser.add_argument("--batch-size", type=_count, default=128, help="images per step (default: 128)")
    parser.add_argument("--image-size", type=_count, default=32, help="side in pixels (default: 32)")
    parser.add_argument("--rounds", type=_count, default=7, help="timed rounds (default: 7)")
    parser.add_argument("--quick", action="store_true", help="fewer methods, at most five minutes on two cores")
    parser.add_argument("--json", type=Path, help="write environment and rows to this file")
    parser.add_argument("--torch-python", help="an interpreter with PyTorch, for peers and kernels")
    return parser


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as a Markdown table, without the columns that are lists or the same everywhere."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = [
        name
        for name in names
        if not any(isinstance(row.get(name), list) for row in rows)
        and (len({row.get(name) for row in rows}) > 1 or name == "method")
    ]
    lines = [columns, ["--"] * len(columns), *([_cell(row.get(name, "")) for name in columns] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 10 else f"{value:.0f}"
    return str(value)
