"""Our training step against the same step in plain PyTorch, on the same cores, in turn."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from benchmarks import harness
from benchmarks.cost import METHODS, TrainingStep
from benchmarks.options import Case, Networks, Timed
from benchmarks.rows import Rows
from benchmarks.torch_peer import torch_peer


@dataclass(frozen=True, kw_only=True)
class Options(Networks, Timed):
    """Times the standard and the flow-gradient step against the same in PyTorch, which computes in float32."""

    quick: bool = False
    """At most two minutes per method."""
    torch_python: str = sys.executable
    """An interpreter with PyTorch."""


def run(options: Options) -> Rows:
    """A row per case, method and implementation.

    Raises:
        UserError: there is no PyTorch, or its script does not know the network.
    """
    methods = ("standard", "flow-gradient")
    return [row for case in options.cases() for method in methods for row in _measure(case, method, options)]


def _measure(case: Case, method: str, options: Options) -> Rows:
    words = ["--server", "--method", method, "--model", case.model]
    words += ["--batch-size", str(case.batch_size), "--image-size", str(case.image_size)]
    with torch_peer(options.torch_python, "torch_fgr.py", words) as theirs:
        ours = TrainingStep(METHODS[method], case)
        samples = harness.interleave(
            {"deformreg": ours.run, "pytorch": theirs},
            rounds=options.rounds,
            budget_seconds=110 if options.quick else None,
        )
    return [
        {
            "implementation": name,
            "method": method,
            "model": case.model,
            "batch_size": case.batch_size,
            "dtype": case.dtype if name == "deformreg" else "float32",
            **harness.compared(samples, name, "deformreg"),
        }
        for name in samples
    ]
