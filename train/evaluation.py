"""Evaluation of trained runs: the attack suite on the test images, the accuracy curve, and the examples to look at."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from deformreg import released
from deformreg.attacks import Attack, AttackResult, pgd, transfer
from deformreg.evaluation import (
    AttackOutcome,
    Evaluation,
    Evaluator,
    Progress,
    accuracy_curve,
    evaluator,
    reports,
    suites,
)
from train import checkpoints, logs, runs
from train.config import Config
from train.data import DataError, Source, center_view, output_shape
from train.loop import build, open_split
from train.steps import predict

Suite = Literal["released", "quick", "standard", "full", "spatial"]

CURVE = (0.25, 0.5, 0.75, 1.0, 1.5)
"""Budgets of the accuracy curve where none are named, as multiples of the suite's."""

CURVE_EXAMPLES = 200
"""Test images of such a curve, and of the pictures."""

CURVE_BATCH = 50
"""Rows of such a curve's batches: at its larger budgets few images still stand."""


class Protocol(NamedTuple):
    """How runs are evaluated.

    Attributes:
        suite: which attacks, see `deformreg.evaluation.suites`.
        radius: budget per component in pixels.
        radii: of the accuracy curve, under the whole suite; none for a quick look by a lighter attack.
        independent: whether every attack faces every correctly classified image, so that the attacks compare.
        sources: names and logits functions of networks whose deformed images are shown to the evaluated ones as well.
        seed: of the attacks' random numbers.
    """

    suite: Suite = "released"
    radius: float = 0.675
    radii: tuple[float, ...] = ()
    independent: bool = False
    sources: tuple[tuple[str, Callable[[Array], Array]], ...] = ()
    seed: int = 0


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
    """The first test images as the evaluation's attacks deformed them, for pictures.

    Attributes:
        images: float[n, h, w, c], clean.
        labels: int32[n].
        flows: float[n, h, w, 2], in pixels: of the attack that broke the image, else of the last that moved its
            pixels; zero where none did.
        deformed: float[n, h, w, c].
        before: int[n], predictions on the clean images.
        after: int[n], predictions on the deformed ones.
    """

    images: np.ndarray
    labels: np.ndarray
    flows: np.ndarray
    deformed: np.ndarray
    before: np.ndarray
    after: np.ndarray


class Study(NamedTuple):
    """An evaluated run: `row` is what ``evaluation.json`` holds, `sample` what the pictures show."""

    row: dict[str, Any]
    evaluation: Evaluation
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
    config, test, logits_fn, step = _restore(folder, data_dir)
    count = min(examples or config.evaluation.examples or len(test), len(test))
    indices = np.arange(count)
    images, labels = test.read(indices)
    readable = ~test.unreadable(indices)
    if not readable.any():
        raise DataError(f"{test.name}: none of the first {count} can be read; repair them, or --examples takes more")
    images, labels, count = images[readable], labels[readable], int(np.sum(readable))
    view = jax.jit(partial(center_view, options=config.augmentation))
    views = [np.asarray(view(images[i : i + 1000])) for i in range(0, count, 1000)]
    seconds = max((line.get("seconds", 0.0) for line in logs.read_metrics(runs.Run(folder))), default=0.0)
    return Trained(config, logits_fn, np.concatenate(views), labels, test.class_names, step, seconds)


def _restore(folder: Path, data_dir: str | None) -> tuple[Config, Source, Callable[[Array], Array], int]:
    """A run's config, its test images, not read yet, its logits function, and the step this one is of."""
    config = runs.load_config(folder)
    test = open_split(config, "test", data_dir)
    network = build(config, test)
    stored = runs.Run(folder).checkpoints
    steps = checkpoints.best_first(stored) if config.select == "best" else None
    step, state, skipped = checkpoints.restore(stored, network.shapes, config=config, steps=steps)
    for other, reason in skipped.items():
        print(f"skipped the damaged checkpoint of step {other}: {reason}", file=sys.stderr)
    logits_fn = jax.tree_util.Partial(Predictor(network.model), state.params, state.batch_stats)
    return config, test, logits_fn, step


def open_runs(folders: Sequence[Path], *, data_dir: str | None = None, examples: int = 0) -> list[Trained]:
    """Restores runs that are to be compared: each one once, on the same test images.

    Raises:
        RunError: one is named twice, or sees other test images than the first.
        ConfigError, CheckpointError, DataError: as `open_run`.
    """
    _check_each_once(folders)
    opened: list[Trained] = []
    for folder in folders:
        run = open_run(folder, data_dir=data_dir, examples=examples)
        opened.append(run)
        if not _comparable(run, opened[0]):
            raise runs.RunError(
                f"{folder} does not compare with {folders[0]}, whose test images are others ({_tested_on(run)}; "
                f"{_tested_on(opened[0])}): evaluate each alone, or give the same number of them by --examples"
            )
    return opened


def _comparable(run: Trained, other: Trained) -> bool:
    return (
        run.class_names == other.class_names
        and np.array_equal(run.labels, other.labels)
        and np.array_equal(run.images, other.images)
    )


def _check_each_once(folders: Sequence[Path]) -> None:
    places = [os.path.abspath(folder) for folder in folders]
    for folder, place in zip(folders, places, strict=True):
        if places.count(place) > 1:
            raise runs.RunError(f"{folder} is named twice: leave one out")


def _tested_on(run: Trained) -> str:
    count, *shape = run.images.shape
    return f"{count} of {run.config.data.name}, {' x '.join(map(str, shape))}, {len(run.class_names)} classes"


def open_sources(
    folders: Sequence[Path], evaluated: Trained, *, data_dir: str | None = None
) -> tuple[tuple[str, Callable[[Array], Array]], ...]:
    """Restores the networks whose deformed images are to be shown to those evaluated, as names and logits functions.

    Raises:
        RunError: one is named twice, sees images of another shape than the evaluated one, or knows other classes.
        ConfigError, CheckpointError, DataError: as `open_run`.
    """
    _check_each_once(folders)
    ours = evaluated.images.shape[1:], len(evaluated.class_names)
    sources = []
    for name, folder in zip(runs.short_names(folders), folders, strict=True):
        config, test, logits_fn, _ = _restore(folder, data_dir)
        theirs = output_shape(config.augmentation, test.image_shape), test.num_classes
        if ours != theirs:
            raise runs.RunError(
                f"nothing transfers from {folder}: its network takes images {theirs[0]} of {theirs[1]} classes, "
                f"the evaluated one {ours[0]} of {ours[1]}"
            )
        sources.append((name, logits_fn))
    return tuple(sources)


def evaluate_run(name: str, trained: Trained, protocol: Protocol) -> Study:
    """Evaluates a trained run.

    Args:
        name: what to call it.
        trained: from `open_run`.
        protocol: how.

    Returns:
        The row: accuracies are fractions in [0, 1] of all examples, a clean error counts as broken; and the sample.
    """
    options = trained.config.evaluation
    suite = _Suite(protocol.suite, options.steps, len(trained.class_names), protocol.sources)
    # The released protocol reproduces published numbers; looking for red flags belongs to the strict suites.
    run_suite = _evaluator(suite, options.batch_size, protocol.independent, protocol.suite != "released")
    whole = bool(protocol.radii) or protocol.suite == "spatial"
    if whole:
        run_curve = _evaluator(suite, options.batch_size, False, False)
    else:
        run_curve = _evaluator(_glance, min(CURVE_BATCH, options.batch_size), False, False)
    radii = protocol.radii or tuple(share * protocol.radius for share in CURVE)
    shown = slice(None if protocol.radii else CURVE_EXAMPLES)
    key = jax.random.key(protocol.seed)
    exhibits: dict[str, _Exhibit] = {}
    few, few_labels = trained.images[:CURVE_EXAMPLES], trained.labels[:CURVE_EXAMPLES]
    with _progress_bar(name) as (bar, progress):
        evaluation = run_suite(
            trained.logits_fn, trained.images, trained.labels, radius=protocol.radius, key=key, progress=progress,
            collect=partial(_collect, exhibits, len(few)),
        )  # fmt: skip
        bar.set_description(f"{name}, accuracy curve")
        curve = accuracy_curve(
            run_curve, trained.logits_fn, trained.images[shown], trained.labels[shown], radii, key=key,
            progress=progress,
        )  # fmt: skip
        sample = _sample(trained.logits_fn, few, few_labels, evaluation.attacks, exhibits)
    row = {
        "method": trained.config.method.name,
        "suite": protocol.suite,
        "radius_pixels": protocol.radius,
        "step": trained.step,
        "train_seconds": trained.train_seconds,
        **reports.to_dict(evaluation),
        "curve": reports.curve_points(curve),
        "curve_suite": protocol.suite if whole else "15 sign steps from zero, any iterate",
        "curve_examples": curve.examples,
        "mean_minimal_displacement": curve.mean_minimal_displacement,
        "seed": protocol.seed,
        "environment": runs.environment(),
    }
    return Study(row, evaluation, sample)


class _Suite(NamedTuple):
    """A suite as a function of the radius; equal ones share what is compiled."""

    name: Suite
    steps: int
    classes: int
    sources: tuple[tuple[str, Callable[[Array], Array]], ...]

    def __call__(self, radius: Any) -> list[Attack]:
        make = {
            "released": partial(released.suite, num_steps=self.steps),
            "quick": suites.quick,
            "standard": partial(suites.standard, classes=self.classes),
            "full": partial(suites.full, classes=self.classes),
            "spatial": suites.spatial,
        }[self.name]
        search = pgd(ball=deformreg.linf(radius), num_steps=50, step_size=radius / 20, start="random", keep="best")
        return [
            *make(radius),
            *(transfer(search, logits_fn, name=f"transfer from {name}") for name, logits_fn in self.sources),
        ]


def _glance(radius: Any) -> list[Attack]:
    """A light attack for the shape of a curve."""
    perturbation = deformreg.flow(boundary="zeros")
    return [pgd(ball=deformreg.linf(radius), num_steps=15, step_size=radius / 6, perturbation=perturbation, keep="any")]


@functools.cache
def _evaluator(suite: Callable[[Any], list[Attack]], batch_size: int, independent: bool, diagnosis: bool) -> Evaluator:
    return evaluator(suite, batch_size=batch_size, image_range=(0.0, 1.0), independent=independent, diagnosis=diagnosis)


class _Exhibit(NamedTuple):
    """What an attack found for the first test images; rows of those it never saw are empty."""

    perturbation: deformreg.Perturbation
    params: Any


def _collect(
    exhibits: dict[str, _Exhibit], count: int, attack: Attack, indices: np.ndarray, result: AttackResult
) -> None:
    """Keeps by its name what an attack found for the first `count` images."""
    if attack.name not in exhibits:
        params = jax.tree.map(lambda leaf: np.zeros((count, *leaf.shape[1:]), leaf.dtype), result.params)
        exhibits[attack.name] = _Exhibit(attack.perturbation, params)
    shown = indices < count
    for kept, leaf in zip(jax.tree.leaves(exhibits[attack.name].params), jax.tree.leaves(result.params), strict=True):
        kept[indices[shown]] = leaf[shown]


def _sample(
    logits_fn: Callable[[Array], Array],
    images: np.ndarray,
    labels: np.ndarray,
    outcomes: Sequence[AttackOutcome],
    exhibits: Mapping[str, _Exhibit],
) -> Sample:
    """The first test images with the flows that the attacks found for them."""
    flows, deformed = np.zeros((*images.shape[:3], 2), np.float32), images.copy()
    broken = np.zeros(len(images), bool)
    for outcome in outcomes:
        attacked, fallen = outcome.attacked_mask[: len(images)], outcome.broken_mask[: len(images)]
        rows = attacked & ~broken
        if outcome.name not in exhibits or not rows.any():
            continue
        family, params = exhibits[outcome.name]
        if family.field is None:
            continue
        deform = jax.jit(lambda params, images, f=family: (f.field(params, images), f.apply(params, images)))
        for kept, found in zip((flows, deformed), deform(params, images), strict=True):
            kept[rows] = np.asarray(found)[rows]
        broken |= fallen
    before, after = (np.asarray(_classify(logits_fn, batch)) for batch in (images, deformed))
    return Sample(images, labels, flows, deformed, before, after)


@jax.jit
def _classify(logits_fn: Callable[[Array], Array], images: Array) -> Array:
    return jnp.argmax(logits_fn(images), axis=1)


@contextmanager
def _progress_bar(name: str) -> Iterator[tuple[Any, Callable[[Progress], None]]]:
    """A bar with the attack at work and the running robust accuracy; silent where nobody watches."""
    with tqdm(desc=name, unit="image", disable=not sys.stderr.isatty()) as bar:

        def show(progress: Progress) -> None:
            bar.total, bar.n = progress.total, progress.finished
            bar.set_postfix_str(f"{progress.attack}, robust {progress.robust_accuracy:.1%}")

        yield bar, show
