"""Images per second of the multi-step attack, and what an evaluation saves that stops where an image has fallen."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import Partial

import deformreg
from benchmarks import harness
from benchmarks.torch_peer import TorchPeer, torch_peer
from deformreg.attacks import pgd
from deformreg.losses import cross_entropy
from train.models import create_model

STEPS = 100
QUICK_STEPS = {"vgg-11": 2, "small-cnn": 10}
RADIUS = 0.5
PIXEL_RADIUS = 8 / 255
EVALUATION_RADIUS = 0.5
"""Some of the untrained network's images fall early, some late, some never."""


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
    """Random images in [0, 1] without much structure below four pixels, float[count, 32, 32, 3]."""
    coarse = jax.random.uniform(jax.random.key(1), (count, 8, 8, 3))
    return jax.image.resize(coarse, (count, 32, 32, 3), "bilinear")


def measure(
    *,
    models: tuple[str, ...] = ("small-cnn", "vgg-11"),
    batch_size: int = 128,
    rounds: int = 3,
    quick: bool = False,
    torch_python: str | None = None,
) -> list[dict[str, Any]]:
    """Times the multi-step attack against a plain PyTorch loop, and the evaluation with and without refilling.

    Where Foolbox is installed, also its steps on pixels against the same here: it has none on flows.

    Args:
        models: networks.
        batch_size: images attacked at a time.
        rounds: timed rounds; every round runs every implementation.
        quick: fewer steps; times are scaled to 100, images per second accordingly.
        torch_python: an interpreter with PyTorch; None leaves it out.

    Returns:
        A row per model and implementation. `milliseconds` are those of `STEPS` steps on one batch; for the
        evaluation, of all its images.

    Raises:
        PeerError: PyTorch is not there.
    """
    rows = []
    for model in models:
        num_steps = QUICK_STEPS.get(model, 2) if quick else STEPS
        rows += _loops(model, batch_size, num_steps, rounds=rounds, quick=quick, torch_python=torch_python)
        rows += _pixels(model, batch_size, num_steps, rounds=rounds, quick=quick)
    evaluated = models if jax.default_backend() != "cpu" else models[:1]
    for model in evaluated:
        rows += _evaluations(model, *((128, 16, 50) if quick else (512, 64, STEPS)), rounds=rounds)
    return rows


def _loops(
    model: str, batch_size: int, num_steps: int, *, rounds: int, quick: bool, torch_python: str | None
) -> list[dict[str, Any]]:
    loss_fn, images = loss_function(model, batch_size), smooth_images(batch_size)
    ball = deformreg.linf(RADIUS)
    attack = jax.jit(lambda images: deformreg.multi_step(loss_fn, images, ball=ball, num_steps=num_steps).images)
    candidates = {"deformreg": harness.repeated(attack, images)}
    with _torch_loop(torch_python, model, batch_size, num_steps) as peer:
        if peer is not None:
            candidates["pytorch loop"] = peer
        samples = harness.interleave(candidates, rounds=rounds, budget_seconds=60 if quick else None)
    return _scaled(model, "one batch", batch_size, num_steps, samples)


def _pixels(model: str, batch_size: int, num_steps: int, *, rounds: int, quick: bool) -> list[dict[str, Any]]:
    """Steps on pixels, ours and those of Foolbox's JAX back end; no rows where it is not installed."""
    try:
        from foolbox.attacks import LinfPGD
        from foolbox.criteria import Misclassification
        from foolbox.models import JAXModel
    except ImportError:
        return []
    loss_fn, images = loss_function(model, batch_size), smooth_images(batch_size)
    ball, family = deformreg.linf(PIXEL_RADIUS), deformreg.additive(image_range=(0.0, 1.0))
    attack = jax.jit(
        lambda images: deformreg.multi_step(loss_fn, images, ball=ball, num_steps=num_steps, perturbation=family).images
    )
    network = JAXModel(jax.jit(logits_function(model)), bounds=(0, 1))
    theirs = LinfPGD(rel_stepsize=1 / num_steps, steps=num_steps, random_start=False)
    labels = Misclassification(jnp.arange(batch_size) % 10)
    candidates = {
        "deformreg": harness.repeated(attack, images),
        "foolbox (JAX)": harness.repeated(lambda: theirs.run(network, images, labels, epsilon=PIXEL_RADIUS)),
    }
    samples = harness.interleave(candidates, rounds=rounds, budget_seconds=60 if quick else None)
    return _scaled(model, "one batch, pixels", batch_size, num_steps, samples)


def _scaled(model: str, mode: str, images: int, num_steps: int, samples: harness.Samples) -> list[dict[str, Any]]:
    """Rows of attacks that took fewer steps than `STEPS`."""
    samples = {name: [value * STEPS / num_steps for value in values] for name, values in samples.items()}
    return [_row(model, name, mode, images, num_steps, samples, name, "deformreg") for name in samples]


@contextlib.contextmanager
def _torch_loop(python: str | None, model: str, batch_size: int, num_steps: int) -> Iterator[TorchPeer | None]:
    if python is None:
        yield None
        return
    words = ["--model", model, "--batch-size", str(batch_size), "--steps", str(num_steps), "--radius", str(RADIUS)]
    with torch_peer(python, "torch_attack.py", words) as peer:
        yield peer


def _evaluations(model: str, count: int, batch_size: int, num_steps: int, *, rounds: int) -> list[dict[str, Any]]:
    """The same evaluation three times.

    Rows of fallen images are given to waiting ones, or batches are replaced as a whole, or every step is run on every
    image. The shares are of the last one's model calls and time.
    """
    logits_fn, images = logits_function(model), np.asarray(smooth_images(count))
    labels = np.asarray(jnp.argmax(jax.jit(logits_fn)(images), axis=1))
    standing, calls = {}, {}

    def candidate(name: str, options: dict[str, Any], refill: bool) -> Callable[[], float]:
        run = deformreg.evaluator(
            [pgd(ball=deformreg.linf(EVALUATION_RADIUS), num_steps=num_steps, **options)],
            batch_size=batch_size,
            diagnosis=False,
            refill=refill,
        )

        def attack() -> float:
            evaluation = run(logits_fn, images, labels, key=jax.random.key(0))
            standing[name] = evaluation.robust_accuracy
            calls[name] = evaluation.attacks[0].model_calls
            return 1e3 * evaluation.attacks[0].seconds

        return attack

    every, stopping = {"keep": "best", "step_size": EVALUATION_RADIUS / 4}, {"keep": "any"}
    candidates = {
        "refilled": candidate("refilled", stopping, True),
        "whole batches": candidate("whole batches", stopping, False),
        "every step": candidate("every step", every, False),
    }
    samples = harness.interleave(candidates, rounds=rounds)
    return [
        {
            **_row(model, "deformreg", f"evaluation, {name}", count, num_steps, samples, name, "refilled"),
            "standing": standing[name],
            "share_of_calls": calls[name] / calls["every step"],
            "share_of_time": harness.ratio(samples, name, "every step")["ratio"],
        }
        for name in candidates
    ]


def _row(
    model: str,
    implementation: str,
    mode: str,
    images: int,
    num_steps: int,
    samples: harness.Samples,
    name: str,
    reference: str,
) -> dict[str, Any]:
    milliseconds = harness.summary(samples[name])["milliseconds"]
    return {
        "model": model,
        "implementation": implementation,
        "mode": mode,
        "images": images,
        "measured_steps": num_steps,
        **harness.summary(samples[name]),
        "images_per_second": 1e3 * images / milliseconds,
        "ratio_to_ours": harness.ratio(samples, name, reference)["ratio"],
        "ratio_quartiles": harness.ratio(samples, name, reference)["ratio_quartiles"],
    }
