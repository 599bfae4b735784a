"""What checkpoints cost a training run: steps with one written beside them, against the same steps without."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import jax

from benchmarks import harness
from benchmarks.cost import TrainingStep
from train import checkpoints, runs
from train.config import Config, Method

EVERY = 100
"""Steps between checkpoints for which the cost is stated."""


def measure(
    *, model: str = "vgg-11", batch_size: int = 128, image_size: int = 32, rounds: int = 7, quick: bool = False
) -> list[dict[str, Any]]:
    """Times standard training steps with and without a checkpoint, in turn.

    The checkpoint, with its checksums, begins before the first of the steps and must be on disk after the last; what
    the steps take longer is its whole cost, however much of it is hidden behind them.

    Args:
        model: of `train.models`, full width, batch norm.
        batch_size: images per step, on one device.
        image_size: side in pixels.
        rounds: timed rounds.
        quick: five steps in place of ten.

    Returns:
        A row per candidate; `cost_percent` is the extra time over that of `EVERY` steps.
    """
    steps, step = 5 if quick else 10, TrainingStep(Method(), model, batch_size, image_size)
    config, saved, blocked = Config(), 0, []

    def plain() -> None:
        for _ in range(steps):
            step.run()

    with tempfile.TemporaryDirectory() as folder:
        run = runs.Run(Path(folder) / "run")
        runs.create(run, config)
        with checkpoints.open_writer(run, config) as writer:

            def with_checkpoint() -> None:
                nonlocal saved
                saved += 1
                start = time.perf_counter()
                writer.save(saved, step.state)
                blocked.append(1e3 * (time.perf_counter() - start))
                plain()
                writer.manager.wait_until_finished()

            candidates = {f"{steps} steps": plain, f"{steps} steps and a checkpoint": with_checkpoint}
            samples = harness.interleave(candidates, rounds=rounds)
    alone, beside = samples.values()
    extra = statistics.median(b - a for a, b in zip(alone, beside, strict=True))
    per_step = statistics.median(alone) / steps
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(step.state))
    return [
        {
            "method": name,
            "model": model,
            "batch_size": batch_size,
            "state_megabytes": size / 1e6,
            **harness.summary(samples[name]),
            "blocked_milliseconds": statistics.median(blocked) if cost else 0.0,
            "extra_milliseconds": extra if cost else 0.0,
            "cost_percent": 100 * extra / (EVERY * per_step) if cost else 0.0,
        }
        for name, cost in zip(samples, (False, True), strict=True)
    ]
