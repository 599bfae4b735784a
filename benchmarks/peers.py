"""Our training step against the same step in plain PyTorch, on the same cores, in turn."""

from __future__ import annotations

import sys
from typing import Any

from benchmarks import harness
from benchmarks.cost import METHODS, TrainingStep
from benchmarks.torch_peer import torch_peer


def measure(
    *,
    model: str = "vgg-11",
    batch_size: int = 128,
    image_size: int = 32,
    dtype: str = "float32",
    rounds: int = 7,
    quick: bool = False,
    torch_python: str = sys.executable,
) -> list[dict[str, Any]]:
    """Times our standard and flow-gradient steps against PyTorch's.

    Args:
        model: a VGG.
        batch_size: images per step.
        image_size: side in pixels.
        dtype: of our network's arithmetic; PyTorch's is float32 in any case.
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
        words = ["--server", "--method", method, "--model", model]
        words += ["--batch-size", str(batch_size), "--image-size", str(image_size)]
        with torch_peer(torch_python, "torch_fgr.py", words) as theirs:
            ours = TrainingStep(METHODS[method], model, batch_size, image_size, dtype)
            samples = harness.interleave(
                {"deformreg": ours.run, "pytorch": theirs}, rounds=rounds, budget_seconds=110 if quick else None
            )
        rows += [
            {
                "implementation": name,
                "method": method,
                "model": model,
                "batch_size": batch_size,
                "dtype": dtype if name == "deformreg" else "float32",
                **harness.summary(samples[name]),
                "ratio_to_ours": harness.ratio(samples, name, "deformreg")["ratio"],
                "ratio_quartiles": harness.ratio(samples, name, "deformreg")["ratio_quartiles"],
            }
            for name in samples
        ]
    return rows
