"""Our training step against the same step in plain PyTorch, on the same cores, in turn."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import harness
from benchmarks.cost import METHODS, TrainingStep

SCRIPT = Path(__file__).with_name("torch_fgr.py")


class PeerError(ValueError):
    """The peer cannot be run; the message is one line with the remedy."""


class TorchStep:
    """A PyTorch step in a process of its own; calling it runs one and returns its milliseconds."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def __call__(self) -> float:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise PeerError("the PyTorch process ended before its time; run benchmarks/torch_fgr.py alone to see why")
        return float(line)


@contextlib.contextmanager
def torch_step(python: str, method: str, model: str, batch_size: int, image_size: int) -> Iterator[TorchStep]:
    """Starts the PyTorch step in an interpreter that has PyTorch, and ends it.

    Raises:
        PeerError: that interpreter has no PyTorch.
    """
    words = [python, str(SCRIPT), "--server", "--method", method, "--model", model]
    words += ["--batch-size", str(batch_size), "--image-size", str(image_size), "--threads", str(os.cpu_count() or 1)]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        if process.stdout.readline().strip() != "ready":
            _, errors = process.communicate()
            last = (errors.strip().splitlines() or ["no message"])[-1]
            raise PeerError(f"{python} cannot run the PyTorch step ({last}): --torch-python names one that has PyTorch")
        yield TorchStep(process)
    finally:
        process.kill()
        process.communicate()


def measure(
    *,
    model: str = "vgg-11",
    batch_size: int = 128,
    image_size: int = 32,
    rounds: int = 7,
    quick: bool = False,
    torch_python: str = sys.executable,
) -> list[dict[str, Any]]:
    """Times our standard and flow-gradient steps against PyTorch's.

    Args:
        model: a VGG.
        batch_size: images per step.
        image_size: side in pixels.
        rounds: timed rounds; every round runs every candidate once.
        quick: at most two minutes a method.
        torch_python: an interpreter with PyTorch.

    Returns:
        A row per implementation and method.

    Raises:
        PeerError: PyTorch is not there.
    """
    rows = []
    for method in ("standard", "flow-gradient"):
        with torch_step(torch_python, method, model, batch_size, image_size) as theirs:
            ours = TrainingStep(METHODS[method], model, batch_size, image_size)
            samples = harness.interleave(
                {"deformreg": ours.run, "pytorch": theirs}, rounds=rounds, budget_seconds=110 if quick else None
            )
        rows += [
            {
                "implementation": name,
                "method": method,
                "model": model,
                "batch_size": batch_size,
                **harness.summary(samples[name]),
                "ratio_to_ours": harness.ratio(samples, name, "deformreg")["ratio"],
                "ratio_quartiles": harness.ratio(samples, name, "deformreg")["ratio_quartiles"],
            }
            for name in samples
        ]
    return rows
