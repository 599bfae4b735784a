"""Whether a regularized network is best trained from a trained one: the flow gradient penalty for a few epochs.

The preset `mnist5k-flow` is trained for two epochs from the network of `mnist5k-standard`, and from random weights for
as many and for its own number of epochs.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import jax

from benchmarks.options import Several, Written
from benchmarks.rows import Rows
from deformreg.evaluation import Evaluator, evaluator, suites
from deformreg.statistics import wilson_interval
from train import presets
from train.config import Config
from train.loop import fit
from train.methods.method import STANDARD_PASSES
from train.ranges import Count, Positive, Seed
from train.restored import open_run

START = "mnist5k-standard"
REGULARIZED = "mnist5k-flow"


@dataclass(frozen=True, kw_only=True)
class Options(Written):
    """Trains with the flow gradient penalty from a standard network and from random weights, and attacks both."""

    seeds: Several[Seed] = (0, 1, 2)
    """Seeds of the trainings."""
    epochs: Count = 2
    """Epochs with the penalty after the standard training."""
    radius: Positive = 0.3
    """Budget of the attacks, in pixels per flow component."""
    examples: Count = 250
    """Test images to attack, with the suite `standard`."""


def run(options: Options) -> Rows:
    """A row per training: means over the seeds."""
    run = evaluator(suites.standard, batch_size=options.examples, image_range=(0.0, 1.0), diagnosis=False)
    start, regularized = (presets.find(name).config for name in (START, REGULARIZED))
    found: dict[tuple[str, str, int], list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for seed in dict.fromkeys(options.seeds):
            first = Path(folder) / f"start-{seed}"
            found.setdefault((START, "random weights", start.epochs), []).append(
                _measured(replace(start, seed=seed), first, run, options)
            )
            trainings = ((str(first), options.epochs), (None, options.epochs), (None, regularized.epochs))
            for init, epochs in dict.fromkeys(trainings):  # two are one if --epochs is the preset's own number
                config = replace(regularized, seed=seed, init=init, epochs=epochs)
                place = Path(folder) / f"{'tuned' if init else 'whole'}-{epochs}-{seed}"
                origin = START if init else "random weights"
                found.setdefault((REGULARIZED, origin, epochs), []).append(_measured(config, place, run, options))
    return [_row(name, origin, epochs, rows, options) for (name, origin, epochs), rows in found.items()]


def _measured(config: Config, folder: Path, run: Evaluator, options: Options) -> dict[str, float]:
    """Trains a run and attacks it."""
    fit(config, folder)
    opened = open_run(folder, examples=options.examples)
    found = run(opened.logits_fn, opened.images[:], opened.labels, radius=options.radius, key=jax.random.key(0))
    return {
        "examples": found.examples,
        "clean_accuracy": found.clean_accuracy,
        "robust_accuracy": found.robust_accuracy,
        "standard_epochs": round(config.epochs * config.method.make().passes / STANDARD_PASSES, 2),
    }


def _row(name: str, origin: str, epochs: int, rows: list[dict[str, float]], options: Options) -> dict[str, Any]:
    robust = [row["robust_accuracy"] for row in rows]
    count = int(rows[0]["examples"])  # the same images for all seeds: they count once
    low, high = wilson_interval(round(fmean(robust) * count), count)
    return {
        "preset": name,
        "start": origin,
        "epochs": epochs,
        "standard_epochs": rows[0]["standard_epochs"],
        "clean_accuracy": fmean(row["clean_accuracy"] for row in rows),
        "robust_accuracy": fmean(robust),
        "robust_interval": f"{100 * low:.1f} to {100 * high:.1f}",
        "range": f"{100 * min(robust):.1f} to {100 * max(robust):.1f}",
        "seeds": len(rows),
        "examples": count,
        "radius_pixels": options.radius,
    }
