"""Evaluation of trained runs: the attack suite on the test images, the accuracy curve, and the examples to look at."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from tqdm import tqdm

import deformreg
from deformreg import reports, suites
from deformreg.evaluation import Evaluator, Progress, evaluator
from deformreg.losses import cross_entropy
from deformreg.statistics import wilson_interval
from train import checkpoints, logs, runs
from train.config import Config
from train.data import center_view, load
from train.loop import build
from train.steps import predict

Suite = Literal["released", "quick", "standard", "full"]

CURVE = (0.25, 0.5, 0.75, 1.0, 1.5)
"""Budgets of the accuracy curve, as multiples of the suite's."""


class Predictor(NamedTuple):
    """`predict` of one architecture. Equal for equal architectures, so that several runs share what is compiled."""

    model: nn.Module

    def __call__(self, params: Any, batch_stats: Any, images: Array) -> Array:
        return predict(self.model, params, batch_stats, images)


class Trained(NamedTuple):
    """A run read back.

    Attributes:
        config: its config.
        logits_fn: ``float[n, h, w, c] -> logits[n, classes]`` on running statistics.
        images: float[n, h, w, c], the test images as the network sees them.
        labels: int32[n].
        class_names: one per label.
        step: of the checkpoint.
        train_seconds: time spent training, compilation included.
    """

    config: Config
    logits_fn: Callable[[Array], Array]
    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    step: int
    train_seconds: float


class Sample(NamedTuple):
    """The first test images under the multi-step flow attack, for curves and pictures.

    Attributes:
        images: float[n, h, w, c], clean.
        labels: int32[n].
        flows: float[n, h, w, 2], in pixels.
        deformed: float[n, h, w, c].
        before: int[n], predictions on the clean images.
        after: int[n], predictions on the deformed ones.
    """

    images: Array
    labels: Array
    flows: Array
    deformed: Array
    before: Array
    after: Array


class Study(NamedTuple):
    """An evaluated run: `row` is what ``evaluation.json`` holds, `sample` what the pictures show."""

    row: dict[str, Any]
    sample: Sample


def open_run(folder: Path, *, data_dir: str | None = None, examples: int = 0) -> Trained:
    """Restores a run's network and opens its test images.

    Args:
        folder: the run folder.
        data_dir: where the data lies now; None for where it lay in training.
        examples: how many test images, from the first; 0 for the config's choice.

    Raises:
        RunError, ConfigError, CheckpointError, DataError: something cannot be used; one line says what.
    """
    config = runs.load_config(folder)
    run = runs.Run(folder)
    test = load(
        config.data.name,
        split="test",
        data_dir=data_dir or config.data.data_dir,
        image_size=config.data.image_size,
        max_corrupt=config.data.max_corrupt,
    )
    chosen, damaged = checkpoints.best_step(run.checkpoints) if config.select == "best" else (None, {})
    network = build(config, test)
    step, state, skipped = checkpoints.restore(run.checkpoints, network.state, config=config, step=chosen)
    for other, reason in {**damaged, **skipped}.items():
        print(f"skipped the damaged checkpoint of step {other}: {reason}", file=sys.stderr)
    count = min(examples or config.evaluation.examples or len(test), len(test))
    indices = np.arange(count)
    images, labels = test.read(indices)
    readable = ~test.corrupt(indices)
    images, labels, count = images[readable], labels[readable], int(np.sum(readable))
    view = jax.jit(partial(center_view, options=config.augmentation))
    views = [np.asarray(view(images[i : i + 1000])) for i in range(0, count, 1000)]
    logits_fn = jax.tree_util.Partial(Predictor(network.model), state.params, state.batch_stats)
    seconds = max((line.get("seconds", 0.0) for line in logs.read_metrics(run)), default=0.0)
    return Trained(config, logits_fn, np.concatenate(views), labels, test.class_names, step, seconds)


def evaluate_run(folder: Path, trained: Trained, *, suite: Suite, radius: float, seed: int) -> Study:
    """Runs a suite on a trained run and writes ``evaluation.json`` into its folder.

    Args:
        folder: the run folder.
        trained: from `open_run`.
        suite: which attacks, see `deformreg.suites`.
        radius: budget per component in pixels.
        seed: of the attacks' random numbers.

    Returns:
        The row: accuracies are fractions in [0, 1] of all examples, a clean error counts as broken; and the sample.
    """
    options = trained.config.evaluation
    run_suite = _compiled_suite(suite, radius, options.steps, options.batch_size)
    with _progress_bar(folder.name) as (bar, progress):
        evaluation = run_suite(
            trained.logits_fn, trained.images, trained.labels, key=jax.random.key(seed), progress=progress
        )
        bar.set_postfix_str("accuracy curve")
        curve, sample = accuracy_curve(trained, radius)
    row = {
        "method": trained.config.method.name,
        "suite": suite,
        "radius_pixels": radius,
        "step": trained.step,
        "train_seconds": trained.train_seconds,
        **reports.to_dict(evaluation),
        "curve": curve,
        "seed": seed,
        "environment": runs.environment(),
    }
    runs.write_json(runs.Run(folder).evaluation, row)
    return Study(row, sample)


@functools.cache
def _compiled_suite(suite: Suite, radius: float, steps: int, batch_size: int) -> Evaluator:
    attacks = suites.released(radius, num_steps=steps) if suite == "released" else getattr(suites, suite)(radius)
    # The released protocol reproduces published numbers; looking for red flags belongs to the strict suites.
    diagnosis = suite != "released"
    return evaluator(attacks, batch_size=batch_size, image_range=(0.0, 1.0), diagnosis=diagnosis)


def accuracy_curve(trained: Trained, radius: float) -> tuple[list[dict[str, float]], Sample]:
    """Robust accuracy against the budget, with Wilson's 95 % intervals, on the first 200 test images.

    A lighter attack than the suite's (15 sign steps from zero, the iterate of highest loss, zero padding), meant for
    the shape of the curve. Returns also the sample at the budget itself.
    """
    images, labels = jnp.asarray(trained.images[:200]), jnp.asarray(trained.labels[:200])
    samples = {share: _attack_sample(trained.logits_fn, images, labels, jnp.float32(share * radius)) for share in CURVE}
    chosen = samples[1.0]
    points = {0.0: chosen.before == labels}
    points |= {share: points[0.0] & (sample.after == labels) for share, sample in samples.items()}
    curve = []
    for share, standing in points.items():
        right = int(jnp.sum(standing))
        low, high = wilson_interval(right, len(labels))
        curve.append({"radius_pixels": share * radius, "accuracy": right / len(labels), "low": low, "high": high})
    return curve, jax.tree.map(np.asarray, chosen)


@jax.jit
def _attack_sample(logits_fn: Callable[[Array], Array], images: Array, labels: Array, radius: Array) -> Sample:
    """The budget is an argument of the compiled attack, so that a whole curve shares one compilation."""
    found = deformreg.multi_step(
        lambda images: cross_entropy(logits_fn(images), labels),
        images,
        ball=deformreg.linf(radius),
        perturbation=deformreg.flow(boundary="zeros"),
        num_steps=15,
        step_size=2.5 * radius / 15,
        keep="best",
    )
    before, after = (jnp.argmax(logits_fn(batch), axis=1) for batch in (images, found.images))
    return Sample(images, labels, found.params, found.images, before, after)


@contextmanager
def _progress_bar(name: str) -> Iterator[tuple[Any, Callable[[Progress], None]]]:
    """A bar with the attack at work and the running robust accuracy; silent where nobody watches."""
    with tqdm(desc=name, unit="image", disable=not sys.stderr.isatty()) as bar:

        def show(progress: Progress) -> None:
            bar.total, bar.n = progress.total, progress.finished
            bar.set_postfix_str(f"{progress.attack}, robust {progress.robust_accuracy:.1%}")

        yield bar, show
