"""One cell of the grid: trained, then evaluated on held-out training images and on test images."""

from __future__ import annotations

import time
from collections.abc import Callable, Container
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import deformreg
from benchmarks import rows
from benchmarks.claims.grid import Budgets, Cell
from benchmarks.json_lines import Line
from deformreg import cross_entropy, linf, pixelwise_l2
from deformreg.attacks import adef, elastic, greedy, pgd, rotation_translation, stadv
from deformreg.bounds import flow_bounds, second_order_increase
from deformreg.evaluation import Evaluator, accuracy_curve, evaluator, suites
from deformreg.evaluation.stability import relative_stability
from deformreg.evaluation.suites import Suite
from train import metrics, options
from train.config import Config
from train.loop import fit
from train.restored import open_run
from train.runs import Run
from train.task import open_split

BATCH = 16  # on a CPU, steps of networks take a fifth less time an image than in batches of 50

Measured = dict[str, Any]


class Trained(NamedTuple):
    """A trained cell and the images that it is measured on.

    Attributes:
        logits_fn: its network.
        images, labels: of the test set.
        held_out: images and labels of the training set on which strengths are chosen.
        examples: how many of these to attack.
        budgets: of the attacks.
    """

    logits_fn: Callable[[Any], Any]
    images: np.ndarray
    labels: np.ndarray
    held_out: tuple[np.ndarray, np.ndarray]
    examples: int
    budgets: Budgets


def compute(
    cell: Cell,
    folder: Path,
    *,
    measures: Container[str] | None = None,
    data_dir: str | None = None,
    known: Line | None = None,
) -> Line:
    """Trains a cell, or continues its training in `folder`, and takes the measures that its line `known` lacks.

    All of them, or only those that `measures` names. If the network is another one than that of `known`, as its
    training time tells, the line begins anew: measures of two networks never stand in one.

    Raises:
        NonFiniteLoss: the training diverged.
    """
    began = time.perf_counter()
    config = replace(cell.config, data=replace(cell.config.data, data_dir=data_dir))
    fit(config, folder, resume=True)
    train_seconds = _train_seconds(folder)
    if known is not None and known["train_seconds"] != train_seconds:
        known = None
    trained = _open(cell, config, folder)
    line = known or _line(cell, train_seconds)
    missing = [name for name in MEASURES if name not in line and (measures is None or name in measures)]
    commits = line.get("measured_at", {}) | dict.fromkeys(missing, rows.commit())  # the training may be of an older one
    line |= {name: MEASURES[name](trained) for name in missing} | {"measured_at": commits}
    return line | {"seconds": round(line["seconds"] + time.perf_counter() - began, 1)}


def diverged(cell: Cell, folder: Path) -> Line:
    """The line of a cell whose training diverged: without a network, every answer on held-out images counts as wrong,
    so that no one chooses its strength and the method is judged by the others."""
    examples = {"examples": cell.setting.examples, "clean_examples": cell.setting.held_out}
    wrong = {"clean_accuracy": 0.0, "robust_accuracy": 0.0}
    return _line(cell, _train_seconds(folder)) | {"diverged": True, "held_out": examples | wrong}


def _line(cell: Cell, train_seconds: float) -> Line:
    """The line of a trained cell, without measures."""
    return {
        "name": cell.name,
        "setting": cell.setting.name,
        "method": cell.method,
        "strength": cell.strength,
        "seed": cell.seed,
        "config": options.to_tree(cell.config),
        "attacked": cell.attacked,
        "passes": round(cell.config.method.make().mean_passes(cell.setting.steps), 2),
        "train_seconds": train_seconds,
        "environment": rows.setting(["claims", "--only", cell.name]),
        "seconds": 0.0,
    }


def _train_seconds(folder: Path) -> float:
    return round(metrics.train_seconds(metrics.read_metrics(Run(folder))), 1)


def _open(cell: Cell, config: Config, folder: Path) -> Trained:
    test = open_run(folder, examples=cell.setting.examples)
    held_out = open_run(folder, examples=cell.setting.held_out, test=open_split(config, "validation"))
    return Trained(
        test.logits_fn,
        test.images[:],
        test.labels,
        (held_out.images[:], held_out.labels),
        cell.setting.examples,
        cell.setting.budgets,
    )


def held_out(trained: Trained) -> Measured:
    """Accuracies on held-out training images: what strengths are chosen by.

    Clean on all of them, at the middle radius on the first few.
    """
    images, labels = trained.held_out
    few = slice(trained.examples)
    run = _evaluator(suites.quick)
    found = run(trained.logits_fn, images[few], labels[few], radius=trained.budgets.seen[1], key=jax.random.key(1))
    right = [
        _classify(trained.logits_fn, images[start : start + BATCH]) == labels[start : start + BATCH]
        for start in range(0, len(images), BATCH)
    ]
    return {
        "examples": found.examples,
        "clean_examples": len(images),
        "clean_accuracy": float(np.concatenate(right).mean()),
        "robust_accuracy": found.robust_accuracy,
    }


@jax.jit
def _classify(logits_fn: Callable[[Any], Any], images: Array) -> Array:
    return jnp.argmax(logits_fn(images), axis=-1)


def seen(trained: Trained) -> Measured:
    """Test accuracy without an attack and under the suite `standard` at three radii, and the red flags raised."""
    curve = accuracy_curve(
        _evaluator(suites.standard),
        trained.logits_fn,
        trained.images,
        trained.labels,
        trained.budgets.seen,
        key=jax.random.key(2),
    )
    return {
        "examples": curve.examples,
        "clean_accuracy": curve.accuracies[0],
        "radii": list(curve.radii[1:]),
        "accuracies": list(curve.accuracies[1:]),
        "flags": sorted({flag.name for flag in curve.flags}),
    }


def unseen(trained: Trained) -> Measured:
    """Test accuracy under attacks of other kinds, each alone, and the mean of ADef's smallest displacements."""
    run = _evaluator(unseen_suite(trained.budgets), independent=True)
    found = run(trained.logits_fn, trained.images, trained.labels, radius=1.0, key=jax.random.key(3))
    outcomes = {outcome.name: outcome for outcome in found.attacks}
    smallest = outcomes.pop("adef")
    return {
        "accuracies": {name: outcome.robust_accuracy for name, outcome in outcomes.items()},
        "adef_broken": smallest.success_rate,
        "adef_displacement": smallest.norms.get("max_displacement", {}).get("mean"),
    }


def bounds(trained: Trained) -> Measured:
    """First-order bounds of the loss's increase at each radius, and the increase that an attack reaches: means over the
    test images, and the share of images on which the flow gradient's bound is below every one by the input gradient."""
    logits_fn, labels = trained.logits_fn, trained.labels
    parts = [_bounds_at(radius)(logits_fn, trained.images, labels) for radius in trained.budgets.seen]
    return {"radii": list(trained.budgets.seen)} | {
        name: [round(float(part[name]), 6) for part in parts] for name in parts[0]
    }


@cache
def _bounds_at(radius: float) -> Callable[..., Measured]:
    attack = greedy(ball=linf(radius), num_steps=50, keep="best")

    @jax.jit
    def measure(logits_fn: Callable[[Any], Any], images: Array, labels: Array) -> Measured:
        def loss_fn(some: Array) -> Array:
            return cross_entropy(logits_fn(some), labels)

        found = flow_bounds(loss_fn, images, linf(radius))
        attacked = deformreg.warp(images, attack.run(logits_fn, images, labels, jax.random.key(4)).params)
        first, second = second_order_increase(loss_fn, images, attacked)
        rise = loss_fn(attacked) - found.losses
        by_input = jnp.minimum(jnp.minimum(found.pixels, found.euclidean), found.largest)
        return {
            "flow": jnp.mean(found.flow),
            "displacement": jnp.mean(found.displacement),
            "pixels": jnp.mean(found.pixels),
            "euclidean": jnp.mean(found.euclidean),
            "largest": jnp.mean(found.largest),
            "increase": jnp.mean(rise),
            "first_order": jnp.mean(first),
            "second_order": jnp.mean(second),
            "flow_is_tighter": jnp.mean(found.flow < by_input),
            "median_factor": jnp.median(by_input / jnp.maximum(found.flow, 1e-30)),
            "flow_holds": jnp.mean(rise <= found.flow),
            "input_holds": jnp.mean(rise <= by_input),
        }

    return measure


def stability(trained: Trained) -> Measured:
    """Relative stability to smooth deformations of the middle radius."""
    found = relative_stability(
        trained.logits_fn, jnp.asarray(trained.images), size=trained.budgets.seen[1], key=jax.random.key(5)
    )
    return {"ratio": round(found.ratio, 4)}


MEASURES: dict[str, Callable[[Trained], Measured]] = {
    "held_out": held_out,
    "seen": seen,
    "unseen": unseen,
    "bounds": bounds,
    "stability": stability,
}
"""What is measured of a trained cell: entries of its line."""


@cache
def unseen_suite(budgets: Budgets) -> Suite:
    """Attacks of other kinds than the flows that judge; the radius is the share of their budget."""
    radius = budgets.seen[1]
    return Suite(
        {
            "stadv": lambda share: stadv(num_evaluations=100, ball=linf(2 * radius * share), keep="any"),
            "elastic": lambda share: elastic(budgets.smooth * share, sigma=2.0, num_steps=50),
            "rotation-translation": lambda share: rotation_translation(
                max_degrees=budgets.degrees * share, max_pixels=budgets.shift * share, grid=(13, 5, 5)
            ),
            "pixels": lambda share: pgd(
                ball=linf(budgets.pixels * share),
                perturbation=deformreg.additive(image_range=(0.0, 1.0)),
                num_steps=40,
                keep="any",
            ),
            "pixelwise-l2": lambda share: pgd(ball=pixelwise_l2(1.5 * radius * share), num_steps=40, keep="any"),
            "adef": lambda share: adef(num_steps=50),
        }
    )


@cache
def _evaluator(suite: Suite, *, independent: bool = False) -> Evaluator:
    """One evaluator per suite, so that all cells with the same network share its compiled programs."""
    return evaluator(suite, batch_size=BATCH, diagnosis=False, independent=independent)
