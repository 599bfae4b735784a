"""The evaluation of a trained run: a suite on its test images, the accuracy curve, and a sample to look at."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import numpy as np

import deformreg
from deformreg import released
from deformreg.attacks import Attack, pgd, transfer
from deformreg.evaluation import (
    Curve,
    Evaluation,
    Evaluator,
    Frames,
    Progress,
    Suite,
    accuracy_curve,
    evaluator,
    reports,
    suites,
)
from deformreg.statistics import wilson_interval
from train import environment
from train import partial as partials
from train.errors import Preempted
from train.exhibits import Exhibits, Sample, frames_of
from train.finished import Finished
from train.partial import Partial
from train.parts import Team
from train.progress import progress
from train.restored import LogitsFn, Trained

SUITES = ("released", *suites.SUITES)

if TYPE_CHECKING:
    SuiteName = str
else:
    SuiteName = Literal[SUITES]

CURVE = (0.25, 0.5, 0.75, 1.0, 1.5)
"""Budgets of the accuracy curve where none are named, as multiples of the suite's."""

CURVE_EXAMPLES = 200
"""Test images of such a curve, and of the pictures."""

CURVE_BATCH = 50
"""Rows of such a curve's batches: at its larger budgets few images still stand."""


class Protocol(NamedTuple):
    """How runs are evaluated.

    Attributes:
        suite: which attacks, one of `SUITES`.
        radius: budget per component in pixels.
        radii: of the accuracy curve, by the whole suite; with none a lighter attack draws a curve at `CURVE`.
        independent: whether every attack runs on every correctly classified image, so that the attacks compare.
        sources: names and logits functions of networks whose deformed images are shown to the evaluated ones as well.
        seed: of the attacks' random numbers.
        quantize: whether the networks see images of 8 bits, so that what is broken survives saving.
        steps: of the multi-step attack of `released`; None for the config's of each run.
    """

    suite: SuiteName = "released"
    radius: float = 0.675
    radii: tuple[float, ...] = ()
    independent: bool = False
    sources: tuple[tuple[str, LogitsFn], ...] = ()
    seed: int = 0
    quantize: bool = False
    steps: int | None = None

    def steps_of(self, trained: Trained) -> int:
        """Steps of the multi-step attack on a run."""
        return trained.config.evaluation.steps if self.steps is None else self.steps

    @property
    def whole_curve(self) -> bool:
        """Whether the suite itself draws the curve: on request, or for a threat that a flow attack does not share."""
        return bool(self.radii) or self.suite == "spatial"


class Study(NamedTuple):
    """An evaluated run: `row` is the content of ``evaluation.json``, `sample` and `frames` what the pictures show."""

    row: dict[str, Any]
    evaluation: Evaluation
    sample: Sample
    frames: Frames


def budget(suite: str) -> str:
    """What a suite's radius bounds, in words."""
    return "translation, with 10 degrees a pixel" if suite == "spatial" else "displacement per component"


def without_effect(protocol: Protocol) -> list[str]:
    """What a protocol asks for without any effect, one line each."""
    lines = []
    if protocol.seed and protocol.suite == "released" and not protocol.sources:
        lines.append(f"--seed {protocol.seed} has no effect: the attacks of --suite released start from zero")
    if protocol.independent and len(_suites(protocol, 1)[0].names) == 1:
        lines.append(f"--independent has no effect: --suite {protocol.suite} has one attack")
    return lines


def evaluate_run(
    name: str,
    trained: Trained,
    protocol: Protocol,
    file: Partial | None = None,
    *,
    devices: Sequence[jax.Device] | None = None,
    team: Team | None = None,
    stop_requested: Callable[[], bool] = lambda: False,
    again: str = "the same command",
) -> Study:
    """Evaluates a trained run.

    Args:
        name: shown beside the progress.
        trained: from `train.restored`.
        protocol: which attacks, at which budgets.
        file: from `partial_of`: keeps what the attacks found; what it has from an earlier start is not done again.
        devices: of this process, over which the rows of batches are divided; None for one.
        team: the processes that share the work; each calls this function, and `file` lies where all can see it.
        stop_requested: called whenever images are finished and while other processes are waited for; once it returns
            True, the evaluation stops.
        again: what continues it then, for messages.

    Returns:
        The row, whose accuracies are fractions in [0, 1] of all examples (a clean error counts as broken), and the
        sample. `robust_accuracy` counts every break that is known, of the suite and of the curve within the radius;
        the curve counts those of the suite as well. On the same images it is therefore never above the curve.

    Raises:
        Preempted: a stop was requested.
    """
    steps, batch_size = protocol.steps_of(trained), trained.config.evaluation.batch_size
    places = None if devices is None or len(devices) == 1 else tuple(devices)
    run_suite, run_curve = _evaluators(protocol, steps, batch_size, places)
    radii = protocol.radii or tuple(share * protocol.radius for share in CURVE)
    images, labels = trained.images, trained.labels
    if not protocol.radii:
        images, labels = images[:CURVE_EXAMPLES], labels[:CURVE_EXAMPLES]
    key = jax.random.key(protocol.seed)
    exhibits = Exhibits(trained, CURVE_EXAMPLES, quantize=protocol.quantize)
    attacks = _attacks(protocol, steps, radii, (len(trained.labels), len(labels)))

    def stop_if_asked() -> None:
        if stop_requested():
            raise Preempted(f"SIGTERM; {again} continues")

    finished = Finished(attacks, exhibits, file, team, stop_if_asked)
    with progress(name, "image", visible=team is None or team.index == 0) as show, finished.told(name, again):

        def tell(now: Progress) -> None:
            part = finished.missing[0] if finished.missing and now.attack != "diagnosis" else now.attack
            show(now.finished, now.total, part=part, note=f"robust {now.robust_accuracy:.1%}")
            stop_if_asked()

        evaluation = run_suite(
            trained.logits_fn, trained.images, trained.labels, radius=protocol.radius, key=key, progress=tell,
            collect=exhibits.collect, recall=finished.recall,
        )  # fmt: skip
        fallen = evaluation.correct_mask & ~evaluation.standing_mask
        curve = accuracy_curve(
            run_curve, trained.logits_fn, images, labels, radii, key=key,
            known=np.where(fallen, protocol.radius, np.inf)[: len(labels)], progress=tell, recall=finished.recall,
        )  # fmt: skip
    evaluation = _with_breaks_of(curve, evaluation, protocol.radius)
    sample = exhibits.sample()
    return Study(_row(trained, protocol, evaluation, curve), evaluation, sample, frames_of(sample, trained))


def _row(trained: Trained, protocol: Protocol, evaluation: Evaluation, curve: Curve) -> dict[str, Any]:
    """The content of ``evaluation.json``."""
    return {
        "method": trained.config.method.name,
        "suite": protocol.suite,
        "radius_pixels": protocol.radius,
        "images": trained.source,
        "step": trained.step,
        "train_seconds": trained.train_seconds,
        **reports.to_dict(evaluation),
        "curve": reports.curve_points(curve),
        "curve_suite": protocol.suite if protocol.whole_curve else "15 sign steps from zero, any iterate",
        "curve_examples": curve.examples,
        "mean_minimal_displacement": curve.mean_minimal_displacement,
        "seed": protocol.seed,
        "quantize": protocol.quantize,
        "sample_seed": trained.sample_seed,
        "environment": environment.describe(),
    }


def _with_breaks_of(curve: Curve, evaluation: Evaluation, radius: float) -> Evaluation:
    """The evaluation with what the curve's attacks broke within the radius, on its images, which are the first."""
    standing = evaluation.standing_mask.copy()
    standing[: curve.examples] &= curve.smallest_radii > radius
    return evaluation._replace(
        standing_mask=standing,
        robust_accuracy=float(standing.mean()),
        robust_interval=wilson_interval(int(standing.sum()), len(standing)),
    )


def partial_of(folder: Path, trained: Trained, protocol: Protocol, check: Callable[[], None] = lambda: None) -> Partial:
    """Where an evaluation whose report goes into `folder` keeps what it has found; `check` as in `train.partial`."""
    options = protocol._replace(sources=())._asdict()
    shape = trained.images.shape[1:]
    sources = [[name, partials.network_digests(logits_fn, shape)] for name, logits_fn in protocol.sources]
    options |= {"sources": sources, "steps": protocol.steps_of(trained)}
    return partials.of(folder, "evaluation", trained, options, check)


def _attacks(protocol: Protocol, steps: int, radii: Sequence[float], counts: tuple[int, int]) -> dict[str, int]:
    """The attacks of an evaluation, in order, and the numbers of images that suite and curve give them."""
    suite, light = _suites(protocol, steps)
    of_curve = {f"{name} at {radius:.12g} px": counts[1] for radius in radii for name in light.names}
    return {**dict.fromkeys(suite.names, counts[0]), **of_curve}


@functools.cache
def _evaluators(
    protocol: Protocol, steps: int, batch_size: int, devices: tuple[jax.Device, ...] | None
) -> tuple[Evaluator, Evaluator]:
    """Evaluators of the suite and of the curve; runs of one protocol share what they compile."""
    suite, light = _suites(protocol, steps)
    make = functools.partial(evaluator, image_range=(0.0, 1.0), quantize=protocol.quantize, devices=devices)
    # The released protocol reproduces published numbers; the search for red flags belongs to the strict suites.
    diagnosis = protocol.suite != "released"
    run_suite = make(suite, batch_size=batch_size, independent=protocol.independent, diagnosis=diagnosis)
    rows = batch_size if protocol.whole_curve else min(CURVE_BATCH, batch_size)
    return run_suite, make(light, batch_size=rows, diagnosis=False)


def _suites(protocol: Protocol, steps: int) -> tuple[Suite, Suite]:
    """The protocol's suite, followed by the transfers; and the suite of its curve."""
    if protocol.suite == "released":
        # Its own attack keeps the last iterate only; the second one counts any, for the number of the run.
        suite = released.suite(steps).plus("any iterate", _light)
    else:
        suite = suites.SUITES[protocol.suite]
    for name, logits_fn in protocol.sources:
        suite = suite.plus(f"transfer from {name}", partial(_transfer, logits_fn))
    return suite, suite if protocol.whole_curve else _LIGHT


def _transfer(logits_fn: LogitsFn, radius: Any) -> Attack:
    search = pgd(ball=deformreg.linf(radius), num_steps=50, step_size=radius / 20, start="random", keep="best")
    return transfer(search, logits_fn)


def _light(radius: Any) -> Attack:
    perturbation = deformreg.flow(boundary="zeros")
    return pgd(ball=deformreg.linf(radius), num_steps=15, step_size=radius / 6, perturbation=perturbation, keep="any")


_LIGHT = Suite({"pgd": _light})
"""A light attack for the shape of a curve."""
