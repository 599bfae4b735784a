"""The certificate of a trained run by randomized smoothing, and the certified accuracy."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import numpy as np
import tyro
from annotated_types import Interval

from deformreg import certified_accuracy, certify
from deformreg.certification import Certificates, CertifiedCurve, Progress, Votes
from deformreg.statistics import clopper_pearson_bound
from train import environment
from train import partial as partials
from train.errors import ConfigError, counted, say
from train.options import validate
from train.partial import Kept, Partial
from train.progress import progress
from train.ranges import Count, NonNegative, Positive, Seed
from train.restored import Trained
from train.smoothing import FAMILIES, SIGMA, SUMMARIES, FamilyName, LawName

LISTED = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0)
"""Radii of the report where none are named, as multiples of sigma (of one, where there are several)."""

KEEP_SECONDS = 5.0
"""How often finished images are written to a file: a killed process loses no more."""


@dataclass(frozen=True)
class Smoothing:
    """What to certify, with which noise, and with which confidence; `check` fills in `sigma`."""

    family: Annotated[FamilyName, tyro.conf.arg(help=f"Deformations to certify. {SUMMARIES}.")] = "flow"
    law: LawName = "gaussian"
    """Distribution of the noise. gaussian certifies the l2 norm of the parameters, uniform the l1 norm."""
    sigma: Annotated[
        tuple[Positive, ...],
        tyro.conf.arg(help=f"{SIGMA} With several numbers, the norm of (parameters / sigma) is certified."),
    ] = ()
    num_samples: Count = 10_000
    """Number of draws per image that bound the probability of its class."""
    num_selection: Count = 100
    """Number of separate draws per image, before those, that choose its class."""
    alpha: Annotated[float, Interval(ge=1e-250, lt=1)] = 0.001
    """Largest probability, for each image, that its certificate is wrong."""
    radii: tuple[NonNegative, ...] = ()
    """Radii of the table, increasing; by default multiples of sigma."""
    stride: Count = 4
    """Pixels between the nodes of the coarse flow of `smooth`."""
    batch_size: Count = 512
    """Noisy copies of an image per batch."""
    seed: Seed = 0
    """Seed of the noise."""


def check(smoothing: Smoothing) -> Smoothing:
    """Returns settings that fit each other, with sigma filled in; raises a `ConfigError` that names the option."""
    smoothing = validate(smoothing)
    sigma = FAMILIES[smoothing.family].widths(smoothing.sigma, option="--sigma")
    radii, samples = smoothing.radii, smoothing.num_samples
    if not all(low < high for low, high in pairwise(radii)):
        raise ConfigError(f"--radii must be increasing, got {' '.join(map(str, radii))}")
    if smoothing.family != "smooth" and smoothing.stride != Smoothing.stride:
        raise ConfigError(f"--stride needs --family smooth, got {smoothing.family}")
    if clopper_pearson_bound(samples, samples, alpha=smoothing.alpha) <= 0.5:
        raise ConfigError(f"--num-samples: {samples} draws certify nothing at --alpha {smoothing.alpha}: take more")
    return replace(smoothing, sigma=sigma)


class Certified(NamedTuple):
    """A certified run: `row` is the content of ``certified.json``, `fine` the curve to draw."""

    row: dict[str, Any]
    fine: CertifiedCurve


def partial_of(
    folder: Path, trained: Trained, smoothing: Smoothing, check: Callable[[], None] = lambda: None
) -> Partial:
    """Where a certification whose report goes into `folder` keeps what it has found; `check` as in `train.partial`."""
    options = {**asdict(smoothing), "radii": None, "batch_size": None, "alpha": None}
    return partials.of(folder, "certification", trained, options, check)


class _Finished:
    """The votes of the images so far, kept in a file every few seconds.

    Attributes:
        votes: of the images so far.
        earlier_seconds: what earlier starts spent on those that were kept.
    """

    def __init__(self, file: Partial | None) -> None:
        self._file, self._began = file, time.perf_counter()
        self._written = self._began
        self.votes, self.earlier_seconds = (file and file.read(_parse)) or ([], 0.0)

    @contextmanager
    def told(self, name: str, total: int) -> Iterator[None]:
        """Says what an earlier start has kept, and what is missing if this one does not come to its end."""
        before = len(self.votes)
        if before:
            say(f"{name}: continuing after {counted(before, 'image')} of an earlier start")
        try:
            yield
        except BaseException:
            if self._file is not None and self.votes:
                self._write(self._file)
                say(
                    f"{name}: kept {counted(len(self.votes), 'image')} in {self._file.path}; the same command "
                    f"continues from there; missing: {total - len(self.votes)}"
                )
            raise

    def recall(self, index: int, run: Callable[[], Votes]) -> Votes:
        """The votes of an image."""
        if index == len(self.votes):
            self.votes.append(run())
            if self._file is not None and time.perf_counter() - self._written >= KEEP_SECONDS:
                self._write(self._file)
        return self.votes[index]

    def _write(self, file: Partial) -> None:
        seconds = self.earlier_seconds + time.perf_counter() - self._began
        file.write({"seconds": seconds}, {"votes": np.array(self.votes, np.int64)})
        self._written = time.perf_counter()


def _parse(kept: Kept) -> tuple[list[Votes], float]:
    votes = kept.arrays["votes"]
    if votes.dtype != np.int64 or votes.ndim != 2:
        raise ValueError("its votes are no integers")
    return [Votes(answer, number) for answer, number in votes.tolist()], float(kept.facts["seconds"])


def certify_run(
    name: str,
    trained: Trained,
    smoothing: Smoothing,
    file: Partial | None = None,
    *,
    devices: Sequence[jax.Device] | None = None,
) -> Certified:
    """Certifies a trained run.

    Args:
        name: shown beside the progress.
        trained: from `train.restored`.
        smoothing: from `check`.
        file: from `partial_of`: keeps the votes of finished images; those that it has from an earlier start are not
            drawn again.
        devices: of this process, each of which takes an image at a time; None for one.

    Returns:
        The row, with radii in `unit` and accuracies as fractions in [0, 1] of all examples (an abstention is an
        error); and the curve.
    """
    finished = _Finished(file)
    certificates, unit = _certificates(name, trained, smoothing, finished, devices)
    # Several sigmas make parameters / sigma the measure: its unit is one sigma.
    single = smoothing.sigma[0] if len(smoothing.sigma) == 1 else 1.0
    listed = [multiple * single for multiple in LISTED if multiple * single < certificates.ceiling]
    curve = certified_accuracy(certificates, trained.labels, smoothing.radii or listed)
    fine = certified_accuracy(certificates, trained.labels, np.linspace(0, certificates.ceiling, 201).tolist())
    row = {
        "method": trained.config.method.name,
        "family": smoothing.family,
        "stride": smoothing.stride if smoothing.family == "smooth" else None,
        "law": smoothing.law,
        "sigma": list(smoothing.sigma),
        "unit": unit,
        "norm": certificates.norm,
        "num_selection": smoothing.num_selection,
        "num_samples": smoothing.num_samples,
        "alpha": smoothing.alpha,
        "ceiling": certificates.ceiling,
        "step": trained.step,
        "examples": curve.examples,
        "clean_accuracy": float(np.mean(_answers(trained) == trained.labels)),
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
        "seconds": finished.earlier_seconds + certificates.seconds,
        "seed": smoothing.seed,
        "environment": environment.describe(),
    }
    return Certified(row, fine)


def _certificates(
    name: str,
    trained: Trained,
    smoothing: Smoothing,
    finished: _Finished,
    devices: Sequence[jax.Device] | None,
) -> tuple[Certificates, str]:
    """The certificates, and the unit of their radii."""
    family = FAMILIES[smoothing.family]
    law = family.law(smoothing.law, smoothing.sigma)
    factor, unit = (family.factors[0], family.units[0]) if len(smoothing.sigma) == 1 else (1.0, "sigma")
    total = len(trained.images)
    with progress(name, "image") as show, finished.told(name, total):

        def tell(now: Progress) -> None:
            show(now.finished, now.total, note=f"certified {now.certified:.1%}")

        found = certify(
            trained.logits_fn, trained.images, law=law, perturbation=family.make(smoothing.stride),
            num_selection=smoothing.num_selection, num_samples=smoothing.num_samples, alpha=smoothing.alpha,
            batch_size=smoothing.batch_size, key=jax.random.key(smoothing.seed), progress=tell,
            recall=finished.recall, devices=None if devices is None or len(devices) == 1 else devices,
        )  # fmt: skip
    return found._replace(radii=found.radii / factor, ceiling=found.ceiling / factor), unit


def _answers(trained: Trained) -> np.ndarray:
    """The network's own answers, without noise."""
    forward = jax.jit(lambda logits_fn, images: logits_fn(images).argmax(axis=1))
    size = trained.config.evaluation.batch_size
    starts = range(0, len(trained.images), size)
    return np.concatenate([np.asarray(forward(trained.logits_fn, trained.images[at : at + size])) for at in starts])
