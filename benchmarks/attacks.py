"""Images per second of the multi-step attack, and what an evaluation saves by stopping on fallen images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import Partial

import deformreg
from benchmarks import harness
from benchmarks.options import BatchSize, Several, Timed, WithTorch
from benchmarks.rows import Rows
from benchmarks.torch_peer import optional_peer
from deformreg import cross_entropy
from deformreg.attacks import pgd
from train.config import ModelName
from train.models import create_model

STEPS = 100
QUICK_STEPS = {"vgg-11": 2, "small-cnn": 10}
RADIUS = 0.5  # of a deformation; some of the untrained network's images fall early, some late, some never
PIXEL_RADIUS = 8 / 255


@dataclass(frozen=True, kw_only=True)
class Options(WithTorch, Timed):
    """Times the multi-step attack against a plain PyTorch loop and Foolbox (steps on pixels), if they are installed;
    and an evaluation with and without refilling of fallen images' rows."""

    quick: bool = False
    """Fewer steps (times are scaled to 100) and at most a minute per comparison."""
    model: Several[ModelName] = ("small-cnn", "vgg-11")
    """Networks; the evaluation takes all of them on an accelerator, the first one on a CPU."""
    batch_size: BatchSize = 128
    """Images attacked at a time."""


def run(options: Options) -> Rows:
    """Rows per model and implementation.

    `milliseconds` are those of `STEPS` steps on one batch or, for the evaluation, of all its images.

    Raises:
        UserError: there is no PyTorch in the interpreter that was named for it.
    """
    rows = []
    for model in options.model:
        rows += _steps_on_flows(model, options)
        rows += _steps_on_pixels(model, options)
    evaluated = options.model if jax.default_backend() != "cpu" else options.model[:1]
    return rows + [row for model in evaluated for row in _evaluations(model, options)]


def logits_function(name: str, image_shape: tuple[int, int, int] = (32, 32, 3)) -> Partial:
    """``images[n, h, w, c] -> logits[n, 10]`` of an untrained network in inference."""
    model = create_model(name, num_classes=10)
    variables = jax.jit(lambda key: model.init(key, jnp.zeros((1, *image_shape))))(jax.random.key(0))
    return Partial(model.apply, variables)


def loss_function(name: str, batch_size: int) -> Callable[[Array], Array]:
    """``images[n, 32, 32, 3] -> losses[n]`` of an untrained network, for one batch of labels."""
    logits_fn, labels = logits_function(name), jnp.arange(batch_size) % 10
    return lambda images: cross_entropy(logits_fn(images), labels)


def smooth_images(count: int) -> Array:
    """Random images in [0, 1] with little structure below four pixels, float[count, 32, 32, 3]."""
    coarse = jax.random.uniform(jax.random.key(1), (count, 8, 8, 3))
    images: Array = jax.image.resize(coarse, (count, 32, 32, 3), "bilinear")
    return images


def _steps_on_flows(model: str, options: Options) -> Rows:
    num_steps, size = _num_steps(model, options), options.batch_size
    loss_fn, ball = loss_function(model, size), deformreg.linf(RADIUS)
    attack = jax.jit(lambda images: deformreg.multi_step(loss_fn, images, ball=ball, num_steps=num_steps).images)
    candidates: dict[str, Callable[[], Any]] = {"deformreg": harness.repeated(attack, smooth_images(size))}
    words = ["--model", model, "--batch-size", str(size), "--steps", str(num_steps), "--radius", str(RADIUS)]
    with optional_peer(options.torch_python, "torch_attack.py", words) as peer:
        if peer is not None:
            candidates["pytorch loop"] = peer
        return _scaled(model, "one batch", candidates, options)


def _steps_on_pixels(model: str, options: Options) -> Rows:
    """Steps on pixels, ours and those of Foolbox's JAX back end; no rows where it is not installed."""
    try:
        from foolbox.attacks import LinfPGD
        from foolbox.criteria import Misclassification
        from foolbox.models import JAXModel
    except ImportError:
        return []
    num_steps, size = _num_steps(model, options), options.batch_size
    loss_fn, images = loss_function(model, size), smooth_images(size)
    ball, family = deformreg.linf(PIXEL_RADIUS), deformreg.additive(image_range=(0.0, 1.0))
    attack = jax.jit(
        lambda images: deformreg.multi_step(loss_fn, images, ball=ball, num_steps=num_steps, perturbation=family).images
    )
    network = JAXModel(jax.jit(logits_function(model)), bounds=(0, 1))
    theirs = LinfPGD(rel_stepsize=1 / num_steps, steps=num_steps, random_start=False)
    labels = Misclassification(jnp.arange(size) % 10)
    candidates = {
        "deformreg": harness.repeated(attack, images),
        "foolbox (JAX)": harness.repeated(lambda: theirs.run(network, images, labels, epsilon=PIXEL_RADIUS)),
    }
    return _scaled(model, "one batch, pixels", candidates, options)


def _num_steps(model: str, options: Options) -> int:
    return QUICK_STEPS.get(model, 2) if options.quick else STEPS


def _scaled(model: str, mode: str, candidates: dict[str, Callable[[], Any]], options: Options) -> Rows:
    """Rows of attacks; milliseconds of fewer steps are scaled to `STEPS`."""
    num_steps, budget = _num_steps(model, options), 60 if options.quick else None
    samples = harness.interleave(candidates, rounds=options.rounds, budget_seconds=budget)
    samples = {name: [value * STEPS / num_steps for value in values] for name, values in samples.items()}
    return [
        {**_described(model, name, mode, options.batch_size, num_steps), **_speed(samples, name, options.batch_size)}
        for name in samples
    ]


def _described(model: str, implementation: str, mode: str, images: int, num_steps: int) -> dict[str, Any]:
    return {
        "model": model,
        "implementation": implementation,
        "mode": mode,
        "images": images,
        "measured_steps": num_steps,
    }


def _speed(samples: harness.Samples, name: str, images: int, reference: str = "deformreg") -> dict[str, Any]:
    found = harness.compared(samples, name, reference)
    return {**found, "images_per_second": 1e3 * images / found["milliseconds"]}


def _evaluations(model: str, options: Options) -> Rows:
    """The same evaluation three times.

    Waiting images take the rows of fallen ones, or batches are replaced as a whole, or every image takes every step.
    The shares relate model calls and time to the last of these.
    """
    count, batch_size, num_steps = (128, 16, 50) if options.quick else (512, 64, STEPS)
    logits_fn, images = logits_function(model), np.asarray(smooth_images(count))
    labels = np.asarray(jnp.argmax(jax.jit(logits_fn)(images), axis=1))
    standing, calls = {}, {}

    def candidate(name: str, attack_options: dict[str, Any], refill: bool) -> Callable[[], float]:
        attack = pgd(ball=deformreg.linf(RADIUS), num_steps=num_steps, **attack_options)
        evaluator = deformreg.evaluator([attack], batch_size=batch_size, diagnosis=False, refill=refill)

        def evaluate() -> float:
            evaluation = evaluator(logits_fn, images, labels, key=jax.random.key(0))
            standing[name] = evaluation.robust_accuracy
            calls[name] = evaluation.attacks[0].model_calls
            return 1e3 * evaluation.attacks[0].seconds

        return evaluate

    stopping, every = {"keep": "any"}, {"keep": "best", "step_size": RADIUS / 4}
    candidates = {
        "refilled": candidate("refilled", stopping, True),
        "whole batches": candidate("whole batches", stopping, False),
        "every step": candidate("every step", every, False),
    }
    samples = harness.interleave(candidates, rounds=options.rounds)
    return [
        {
            **_described(model, "deformreg", f"evaluation, {name}", count, num_steps),
            **_speed(samples, name, count, "refilled"),
            "standing": standing[name],
            "share_of_calls": calls[name] / calls["every step"],
            "share_of_time": harness.ratio(samples, name, "every step")["ratio"],
        }
        for name in candidates
    ]
