"""The command line: ``python -m benchmarks {cost,kernels,attacks,input,peers,pods,storage,robustness,report}``."""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

DESCRIPTION = "Measures what deformreg costs; ratios are taken inside one run, candidates in turn."
NAMES = {
    "cost": "one training step per method",
    "kernels": "the warp and its gradients against other samplers and a copy",
    "attacks": "images per second of the multi-step attack",
    "input": "a preset's steps with its data against the same on one batch",
    "storage": "checkpoints beside the training steps",
    "peers": "a training step against plain PyTorch",
    "pods": "training steps compiled for TPU pods, without one",
    "robustness": "accuracies of trained runs beside the cost of their steps",
    "report": "tables and plots from the JSON files of a folder",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a benchmark, prints its table, writes its JSON, and returns the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(arguments)
    if options.name == "pods":
        os.environ["JAX_PLATFORMS"] = "cpu"  # libtpu would look for a TPU
    from benchmarks import harness

    try:
        if options.name == "report":
            from benchmarks import report

            print(report.write(options.results, options.output))
            return 0
        if options.name == "robustness":
            from benchmarks import report

            if None in (options.comparison, options.cost, options.json):
                raise report.ReportError("robustness needs --comparison, --cost and --json")
            print(harness.table(report.robustness(options.comparison, options.cost, arguments, options.json)))
            return 0
        rows = _measure(options)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(harness.table(rows))
    if options.json:
        harness.write(options.json, arguments, rows)
        print(f"written: {options.json}")
    return 0


def _measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    rounds = {"rounds": options.rounds, "quick": options.quick}
    cases = [
        {"model": model, "batch_size": batch_size, "image_size": image_size, "dtype": dtype}
        for model, batch_size, image_size, dtype in itertools.product(
            options.model or ["vgg-11"], options.batch_size, options.image_size, options.dtype
        )
    ]
    models = {"models": tuple(options.model)} if options.model else {}
    if options.name == "cost":
        from benchmarks import cost

        methods = tuple(options.methods) if options.methods else None
        return [row for case in cases for row in cost.measure(**case, **rounds, methods=methods)]
    if options.name == "kernels":
        from benchmarks import kernels

        shapes = {"shapes": tuple(options.shape)} if options.shape else {}
        return kernels.measure(**rounds, **shapes, torch_python=options.torch_python)
    if options.name == "attacks":
        from benchmarks import attacks

        size = options.batch_size[0]
        return attacks.measure(**models, **rounds, batch_size=size, torch_python=options.torch_python)
    if options.name == "input":
        from benchmarks import input as input_benchmark

        names = {"names": tuple(options.preset)} if options.preset else {}
        return input_benchmark.measure(**names, **rounds, data_dir=options.data_dir)
    if options.name == "storage":
        from benchmarks import storage

        cases = [{key: value for key, value in case.items() if key != "dtype"} for case in cases]
        return [row for case in cases for row in storage.measure(**case, **rounds)]
    if options.name == "peers":
        from benchmarks import peers

        torch_python = options.torch_python or sys.executable
        return [row for case in cases for row in peers.measure(**case, **rounds, torch_python=torch_python)]
    from benchmarks import pods

    topologies = {"topologies": tuple(options.topology)} if options.topology else {}
    methods = {"methods": tuple(options.methods)} if options.methods else {}
    return [
        row
        for batch_size, image_size, dtype, norm in itertools.product(
            options.batch_size, options.image_size, options.dtype, options.norm
        )
        for row in pods.measure(
            **topologies, **models, **methods, batch_size=batch_size, image_size=image_size, dtype=dtype, norm=norm,
            effort=options.effort, fit=options.fit, quick=options.quick,
        )
    ]  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=DESCRIPTION,
        epilog="; ".join(f"{name}: {text}" for name, text in NAMES.items()) + ". Options with several values are run "
        "in all combinations.",
    )
    parser.add_argument("name", choices=tuple(NAMES), help="which benchmark")
    parser.add_argument("--quick", action="store_true", help="at most five minutes on two cores")
    parser.add_argument("--json", type=Path, help="write environment and rows to this file")
    parser.add_argument("--rounds", type=_count, default=7, help="timed rounds (default: 7)")
    parser.add_argument("--model", nargs="+", help="networks, full width (default: vgg-11, for attacks small-cnn too)")
    parser.add_argument("--batch-size", type=_count, nargs="+", default=[128], help="images per step (default: 128)")
    parser.add_argument("--image-size", type=_count, nargs="+", default=[32], help="side in pixels (default: 32)")
    parser.add_argument("--dtype", nargs="+", choices=("float32", "bfloat16"), default=["float32"], help="arithmetic")
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help="cost, pods: only these")
    parser.add_argument("--torch-python", help="an interpreter with PyTorch, for peers, kernels and attacks")
    parser.add_argument("--preset", nargs="+", help="input: which (default: mnist5k-standard digits-standard)")
    parser.add_argument("--data-dir", help="input: folder of prepared data sets, for the CIFAR-10 presets")
    parser.add_argument("--shape", type=_shape, nargs="+", help="kernels: for example 16x224x224x3")
    parser.add_argument("--topology", nargs="+", help="pods: for example v5e:2x2")
    parser.add_argument("--norm", nargs="+", choices=("batch", "group"), default=["batch"], help="pods: normalization")
    parser.add_argument("--effort", type=float, default=0.0, help="pods: the compiler's, in [-1, 1] (default: 0)")
    parser.add_argument("--fit", action="store_true", help="pods: the largest batch per chip that fits its memory")
    parser.add_argument("--comparison", type=Path, help="robustness: comparison.json of `python -m train evaluate`")
    parser.add_argument("--cost", type=Path, help="robustness: JSON of `cost` for the same network")
    parser.add_argument("--results", type=Path, default=Path(__file__).with_name("results"), help="report: JSON folder")
    parser.add_argument("--output", type=Path, default=Path("docs"), help="report: folder of the plots and tables")
    return parser


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def _shape(text: str) -> tuple[int, ...]:
    sizes = tuple(_count(size) for size in text.split("x"))
    if len(sizes) != 4:
        raise argparse.ArgumentTypeError(f"must be four sizes as in 16x224x224x3, got {text}")
    return sizes
