"""What checkpoints cost a training: steps while one is written, against the same steps without."""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import jax

from benchmarks import harness
from benchmarks.cost import TrainingStep
from benchmarks.options import Case, Networks, Timed
from benchmarks.rows import Rows
from train import runs, saving
from train.config import Config
from train.methods.standard import Standard

EVERY = 100
"""Steps between checkpoints for which the cost is stated."""


@dataclass(frozen=True, kw_only=True)
class Options(Networks, Timed):
    """Times standard training steps with and without a checkpoint, in turn."""

    quick: bool = False
    """Blocks of five steps instead of ten."""


def run(options: Options) -> Rows:
    """Two rows per case: a block of steps without a checkpoint, and with one.

    The checkpoint, with its checksums, begins before the first step of the block and is on disk after the last: the
    extra time is its whole cost. `cost_percent` relates it to the time of `EVERY` steps.
    """
    return [row for case in options.cases() for row in _measure(case, options)]


def _measure(case: Case, options: Options) -> Rows:
    steps, step = 5 if options.quick else 10, TrainingStep(Standard(), case)
    config = Config()
    blocked: list[float] = []

    def plain() -> None:
        for _ in range(steps):
            step.run()

    with tempfile.TemporaryDirectory() as folder:
        run = runs.Run(Path(folder) / "run")
        runs.create(run, config, training_images=case.batch_size)
        with saving.open_writer(run, config) as writer:

            def with_checkpoint() -> None:
                start = time.perf_counter()
                writer.save(len(blocked) + 1, step.state)
                blocked.append(1e3 * (time.perf_counter() - start))
                plain()
                writer.manager.wait_until_finished()

            candidates = {f"{steps} steps": plain, f"{steps} steps and a checkpoint": with_checkpoint}
            samples = harness.interleave(candidates, rounds=options.rounds)
    alone, beside = samples.values()
    extra = statistics.median(b - a for a, b in zip(alone, beside, strict=True))
    percent = 100 * extra * steps / (EVERY * statistics.median(alone))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(step.state))
    costs = {"blocked_milliseconds": statistics.median(blocked), "extra_milliseconds": extra, "cost_percent": percent}
    common = {"model": case.model, "batch_size": case.batch_size, "dtype": case.dtype, "state_megabytes": size / 1e6}
    return [
        {"method": name, **common, **harness.summary(samples[name]), **found}
        for name, found in zip(samples, (dict.fromkeys(costs, 0.0), costs), strict=True)
    ]
