"""Certification of a trained run by randomized smoothing: ``python -m train certify``, its report and its curve."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import tyro
from tqdm import tqdm

import deformreg
from deformreg import Perturbation, certified_accuracy, certify
from deformreg.certification import Certificates, CertifiedCurve, Progress, SmoothingLaw, laws
from deformreg.fields import AFFINE_PARAMETERS
from deformreg.statistics import clopper_pearson_bound
from train import runs
from train.config import ConfigError
from train.evaluation import Trained, open_run

FamilyName = Literal["flow", "smooth", "translation", "rotation", "affine"]

LISTED = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0)
"""Radii of the report where none are named, as multiples of sigma (of one, where there are several)."""


@dataclass(frozen=True)
class Certify:
    """Certifies a trained run on its test images: radii within which no deformation of a family changes the answer of
    the run's *smoothed* classifier, the class that the network most often answers under noise. See
    docs/certification.md for what that covers."""

    run: tyro.conf.Positional[Path]
    """The run folder."""
    family: FamilyName = "flow"
    """flow: every pixel on its own; smooth: a coarse flow, interpolated; translation: dy, dx; rotation: about the
    centre; affine: rotation, dy, dx, two log scales, shear."""
    law: Literal["gaussian", "uniform"] = "gaussian"
    """Of the noise. gaussian certifies the l2 norm over the parameters, uniform the l1 norm."""
    sigma: tuple[float, ...] = ()
    """Standard deviation of the Gaussian noise, or half the width of the uniform one, in pixels; degrees for rotation.
    One number, or one for each parameter: then the norm of parameters / sigma is certified. affine needs all six:
    degrees, pixels twice, log scales, pixels per pixel.
    By default 0.3 for flow, 1 for smooth and translation, 10 for rotation, 10 1 1 0.1 0.1 0.1 for affine."""
    num_samples: int = 10_000
    """Draws per image that bound the probability of its class."""
    num_selection: int = 100
    """Draws per image, before those, that choose the class."""
    alpha: float = 0.001
    """Probability, for each image, that its certificate is wrong."""
    examples: int = 100
    """Test images, from the first; 0 for the run's own choice."""
    radii: tuple[float, ...] = ()
    """Radii of the table; by default multiples of sigma."""
    stride: int = 4
    """Pixels between the nodes of the coarse flow of `smooth`."""
    batch_size: int = 512
    """Noisy copies of an image that the network sees at a time."""
    data_dir: str | None = None
    """Where the data lies, if it has moved since training."""
    output: Path | None = None
    """Folder for certified.json, certified.md and certified.png; by default the run folder."""
    json: Path | None = None
    """Also write the result to this file, for scripts."""
    seed: int = 0
    """Seed of the noise."""


class Family(NamedTuple):
    """A family as the command line knows it.

    Attributes:
        perturbation: black enters at the border, as in training.
        sigma: what it is smoothed with by default, in the units below.
        units: of its parameters; one for all of them, or one each.
    """

    perturbation: Perturbation
    sigma: tuple[float, ...]
    units: tuple[str, ...]


def family_of(name: FamilyName, stride: int) -> Family:
    """The family of that name."""

    def affine(*parameters: str) -> Perturbation:
        return deformreg.affine(parameters=parameters, boundary="zeros")

    if name == "flow":
        return Family(deformreg.flow(boundary="zeros"), (0.3,), ("px",))
    if name == "smooth":
        return Family(deformreg.lowres_flow(stride, boundary="zeros"), (1.0,), ("px",))
    if name == "translation":
        return Family(affine("dy", "dx"), (1.0,), ("px", "px"))
    if name == "rotation":
        return Family(affine("rotation"), (10.0,), ("degrees",))
    units = ("degrees", "px", "px", "log scale", "log scale", "px per px")
    return Family(affine(*AFFINE_PARAMETERS), (10.0, 1.0, 1.0, 0.1, 0.1, 0.1), units)


class Certified(NamedTuple):
    """A certified run: `row` is what ``certified.json`` holds, `fine` the curve to draw."""

    row: dict[str, Any]
    fine: CertifiedCurve


def parse(arguments: Sequence[str]) -> Certify:
    """The options of a command line.

    Raises:
        ConfigError: one cannot be used; one line says which.
    """
    if not arguments:
        raise ConfigError("certify needs a run folder, for example runs/digits-standard")
    return check(tyro.cli(Certify, prog="python -m train certify", args=list(arguments)))


def check(options: Certify) -> Certify:
    """Returns options that make sense, with sigma filled in, or raises a `ConfigError` that names the option."""
    family = family_of(options.family, max(options.stride, 1))
    sigma = options.sigma or family.sigma
    counts = {len(family.units)} if len(set(family.units)) > 1 else {1, len(family.units)}
    listed, radii = " ".join(map(str, sigma)), " ".join(map(str, options.radii))
    rules = [
        (all(0 < value < math.inf for value in sigma), "--sigma", listed, "above 0"),
        (len(sigma) in counts, "--sigma", listed, f"{' or '.join(map(str, sorted(counts)))} numbers: {family.units}"),
        (options.num_selection >= 1, "--num-selection", options.num_selection, "at least 1"),
        (1 <= options.num_samples <= 10**9, "--num-samples", options.num_samples, "in 1..1000000000"),
        (0 < options.alpha < 1, "--alpha", options.alpha, "in (0, 1)"),
        (options.examples >= 0, "--examples", options.examples, "at least 0"),
        (all(a < b for a, b in pairwise((*options.radii, math.inf))), "--radii", radii, "increasing"),
        (all(radius >= 0 for radius in options.radii), "--radii", radii, "at least 0"),
        (options.stride >= 1, "--stride", options.stride, "at least 1"),
        (options.batch_size >= 1, "--batch-size", options.batch_size, "at least 1"),
        (0 <= options.seed < 2**32, "--seed", options.seed, "in 0..4294967295"),
    ]
    for holds, option, value, expected in rules:
        if not holds:
            raise ConfigError(f"{option} must be {expected}, got {value!s:.80}")
    if clopper_pearson_bound(options.num_samples, options.num_samples, alpha=options.alpha) <= 0.5:
        raise ConfigError(f"--num-samples {options.num_samples} certify nothing at --alpha {options.alpha}: take more")
    return replace(options, sigma=sigma)


def certify_run(options: Certify) -> Certified:
    """Certifies a run.

    Args:
        options: from `parse`.

    Returns:
        The row: radii are in `unit`, accuracies fractions in [0, 1] of all examples; an abstention is an error.

    Raises:
        RunError, ConfigError, CheckpointError, DataError: as `train.evaluation.open_run`.
    """
    trained = open_run(options.run, data_dir=options.data_dir, examples=options.examples)
    certificates, unit = _certificates(trained, options)
    listed = options.radii or _listed(options.sigma, certificates.ceiling)
    curve = certified_accuracy(certificates, trained.labels, listed)
    fine = certified_accuracy(certificates, trained.labels, np.linspace(0, certificates.ceiling, 201).tolist())
    clean = np.mean(_answers(trained) == trained.labels)
    row = {
        "method": trained.config.method.name,
        "family": options.family,
        "stride": options.stride if options.family == "smooth" else None,
        "law": options.law,
        "sigma": list(options.sigma),
        "unit": unit,
        "norm": certificates.norm,
        "num_selection": options.num_selection,
        "num_samples": options.num_samples,
        "alpha": options.alpha,
        "ceiling": certificates.ceiling,
        "step": trained.step,
        "examples": curve.examples,
        "clean_accuracy": float(clean),
        "smoothed_accuracy": fine.accuracies[0],
        "abstained": int(np.sum(certificates.predictions < 0)),
        "mean_radius": curve.mean_radius,
        "curve": [
            {"radius": radius, "accuracy": accuracy, "low": low, "high": high}
            for radius, accuracy, (low, high) in zip(curve.radii, curve.accuracies, curve.intervals, strict=True)
        ],
        "labels": trained.labels.tolist(),
        "predictions": certificates.predictions.tolist(),
        "lower_bounds": certificates.lower_bounds.tolist(),
        "radii": certificates.radii.tolist(),
        "model_calls": certificates.model_calls,
        "seconds": certificates.seconds,
        "seed": options.seed,
        "environment": runs.environment(),
    }
    return Certified(row, fine)


def _certificates(trained: Trained, options: Certify) -> tuple[Certificates, str]:
    """The certificates, in the unit that comes with them."""
    family = family_of(options.family, options.stride)
    factors = [math.pi / 180 if unit == "degrees" else 1.0 for unit in family.units]
    make: Any = laws.gaussian if options.law == "gaussian" else laws.uniform
    if len(options.sigma) == 1:
        factor, unit = factors[0], family.units[0]
        law: SmoothingLaw = make(options.sigma[0] * factor)
    else:
        factor, unit = 1.0, "sigma"
        law = make(np.multiply(options.sigma, factors))
    name = runs.short_names([options.run])[0]
    with tqdm(desc=name, total=len(trained.images), unit="image", disable=not sys.stderr.isatty()) as bar:

        def show(progress: Progress) -> None:
            bar.set_postfix_str(f"certified {progress.certified:.1%}")
            bar.update()

        found = certify(
            trained.logits_fn, trained.images, law=law, perturbation=family.perturbation,
            num_selection=options.num_selection, num_samples=options.num_samples, alpha=options.alpha,
            batch_size=options.batch_size, key=jax.random.key(options.seed), progress=show,
        )  # fmt: skip
    return found._replace(radii=found.radii / factor, ceiling=found.ceiling / factor), unit


def _listed(sigma: tuple[float, ...], ceiling: float) -> list[float]:
    unit = sigma[0] if len(sigma) == 1 else 1.0
    return [multiple * unit for multiple in LISTED if multiple * unit < ceiling]


def _answers(trained: Trained) -> np.ndarray:
    """What the network itself answers, without noise."""
    forward = jax.jit(lambda logits_fn, images: logits_fn(images).argmax(axis=1))
    size = trained.config.evaluation.batch_size
    starts = range(0, len(trained.images), size)
    return np.concatenate([np.asarray(forward(trained.logits_fn, trained.images[at : at + size])) for at in starts])
