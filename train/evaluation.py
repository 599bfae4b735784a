"""Evaluation of trained runs: the attack suite on the test images, the accuracy curve, and the examples to look at."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from tqdm import tqdm

import deformreg
from deformreg import suites
from deformreg.evaluation import Progress
from deformreg.losses import cross_entropy
from deformreg.statistics import wilson_interval
from train import checkpoints, runs
from train.config import Config
from train.data import center_view, load
from train.loop import build
from train.steps import predict

Suite = Literal["released", "quick", "standard", "full"]

CURVE = (0.25, 0.5, 0.75, 1.0, 1.5)
"""Budgets of the accuracy curve, as multiples of the suite's."""


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
        config.data.name, split="test", data_dir=data_dir or config.data.data_dir, image_size=config.data.image_size
    )
    manager = checkpoints.open_manager(run.checkpoints)
    try:
        chosen = manager.best_step() if config.select == "best" else None
        network = build(config, test)
        step, state, skipped = checkpoints.restore(manager, network.state, step=chosen)
    finally:
        manager.close()
    for line in skipped:
        print(f"skipped a damaged checkpoint: {line}", file=sys.stderr)
    count = min(examples or config.evaluation.examples or len(test), len(test))
    images, labels = test.read(np.arange(count))
    view = jax.jit(partial(center_view, options=config.augmentation))
    views = [np.asarray(view(images[i : i + 1000])) for i in range(0, count, 1000)]
    logits_fn = jax.tree_util.Partial(partial(predict, network.model), state.params, state.batch_stats)
    seconds = max((line.get("seconds", 0.0) for line in runs.read_metrics(run)), default=0.0)
    return Trained(config, logits_fn, np.concatenate(views), labels, test.class_names, step, seconds)


def evaluate_run(folder: Path, trained: Trained, *, suite: Suite, radius: float, seed: int) -> dict[str, Any]:
    """Runs a suite on a trained run and writes ``evaluation.json`` into its folder.

    Args:
        folder: the run folder.
        trained: from `open_run`.
        suite: which attacks, see `deformreg.suites`.
        radius: budget per component in pixels.
        seed: of the attacks' random numbers.

    Returns:
        What the file holds: accuracies are fractions in [0, 1] of all examples, a clean error counts as broken.
    """
    attacks = _attacks(suite, radius, trained.config)
    with _progress_bar(folder.name) as (bar, progress):
        evaluation = deformreg.evaluate(
            trained.logits_fn,
            trained.images,
            trained.labels,
            attacks,
            batch_size=trained.config.evaluation.batch_size,
            key=jax.random.key(seed),
            image_range=(0.0, 1.0),
            progress=progress,
        )
        bar.set_postfix_str("accuracy curve")
        curve = accuracy_curve(trained, radius)
    report = {
        "method": trained.config.method.name,
        "suite": suite,
        "radius_pixels": radius,
        "examples": evaluation.examples,
        "step": trained.step,
        "train_seconds": trained.train_seconds,
        "clean_accuracy": evaluation.clean_accuracy,
        "robust_accuracy": evaluation.robust_accuracy,
        "robust_interval": list(evaluation.robust_interval),
        "attacks": {outcome.name: _attack_row(outcome, radius) for outcome in evaluation.attacks},
        "flags": [flag._asdict() for flag in evaluation.flags],
        "curve": curve,
        "seed": seed,
        "environment": runs.environment(),
    }
    runs.write_json(runs.Run(folder).evaluation, report)
    return report


def _attacks(suite: Suite, radius: float, config: Config) -> list[Any]:
    if suite == "released":
        return suites.released(radius, num_steps=config.evaluation.steps)
    return getattr(suites, suite)(radius)


def _attack_row(outcome: Any, radius: float) -> dict[str, Any]:
    return {
        "robust_accuracy": outcome.robust_accuracy,
        "model_calls": outcome.model_calls,
        "seconds": outcome.seconds,
        "radius_pixels": radius if outcome.radius_pixels is None else outcome.radius_pixels,
        "attacked": outcome.attacked,
        "broken": outcome.broken,
        "norms": outcome.norms,
    }


def accuracy_curve(trained: Trained, radius: float) -> list[dict[str, float]]:
    """Robust accuracy against the budget, with Wilson's 95 % intervals, on the first 250 test images.

    A lighter attack than the suite's: 20 sign steps from zero, the iterate of highest loss. The budget is an argument
    of the compiled attack, so that all points share one compilation.
    """
    images, labels = jnp.asarray(trained.images[:250]), jnp.asarray(trained.labels[:250])

    @jax.jit
    def standing(radius: Array) -> Array:
        attacked = deform(trained.logits_fn, images, labels, radius, num_steps=20).images
        right = [jnp.argmax(trained.logits_fn(batch), axis=1) == labels for batch in (images, attacked)]
        return jnp.sum(right[0] & right[1])

    shares = (0.0, *CURVE)
    return [_point(share * radius, int(standing(jnp.float32(share * radius))), len(labels)) for share in shares]


def deform(
    logits_fn: Callable[[Array], Array], images: Array, labels: Array, radius: float | Array, *, num_steps: int
) -> deformreg.Perturbed:
    """The multi-step flow attack in the released code's form, but for keeping the best iterate; zero padding."""
    return deformreg.multi_step(
        lambda images: cross_entropy(logits_fn(images), labels),
        images,
        ball=deformreg.linf(radius),
        perturbation=deformreg.flow(boundary="zeros"),
        num_steps=num_steps,
        step_size=2.5 * radius / num_steps,
        keep="best",
    )


def _point(radius: float, right: int, count: int) -> dict[str, float]:
    low, high = wilson_interval(right, count)
    return {"radius_pixels": radius, "accuracy": right / count, "low": low, "high": high}


@contextmanager
def _progress_bar(name: str) -> Iterator[tuple[Any, Callable[[Progress], None]]]:
    """A bar with the attack at work and the running robust accuracy; silent where nobody watches."""
    with tqdm(desc=name, unit="image", disable=not sys.stderr.isatty()) as bar:

        def show(progress: Progress) -> None:
            bar.total, bar.n = progress.total, progress.finished
            bar.set_postfix_str(f"{progress.attack}, robust {progress.robust_accuracy:.1%}")

        yield bar, show
