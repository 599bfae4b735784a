"""Certified robustness of a smoothed classifier: radii within which no perturbation of a family changes its answer.

The certificate is about the *smoothed* classifier of `deformreg.certification.laws`, not about the model. It holds for
each image with probability at least ``1 - alpha``, against perturbations whose parameters are **added to the noise
inside the same warp** of the clean image. It does not cover an image that an attacker has already warped: smoothing
would interpolate that image a second time. The proof assumes exact arithmetic.

No radius exceeds ``law.radius(alpha ** (1 / num_samples))``, even for a perfect model: 3.2 sigma for 10,000 Gaussian
draws and ``alpha=0.001``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from numpy.typing import ArrayLike

from deformreg import _checks
from deformreg._families import check_layout, family_or_flow
from deformreg.attacks.attack import LogitsFn, as_argument
from deformreg.certification.laws import SmoothingLaw
from deformreg.certification.votes import tally
from deformreg.evaluation.data import OnDemand
from deformreg.evaluation.devices import ROWS, WHOLE, Devices, devices_of
from deformreg.evaluation.passes import padded
from deformreg.interop.host import model_errors
from deformreg.perturbations import Perturbation
from deformreg.statistics import clopper_pearson_bound, wilson_interval

HostArray = np.ndarray[Any, Any]

ABSTAIN = -1
"""The prediction where no class is certified."""


class Certificates(NamedTuple):
    """The result of `certify`: plain data.

    Attributes:
        predictions: int[n], the smoothed classifier's answers; -1 where it abstains.
        lower_bounds: float[n], lower bounds of the probability that the model answers the chosen class under noise.
        radii: float[n]: parameters of a smaller norm do not change the answer; 0 where it abstains.
        norm: the norm that the radii bound, with its unit, in words.
        ceiling: the largest radius certifiable with `num_samples` draws.
        num_selection: draws per image that chose the class.
        num_samples: further draws per image, which bounded the probability of that class.
        alpha: the largest probability, for each image, that its answer or radius is wrong.
        model_calls: perturbed images computed, including those that fill the last batch and the last devices.
        seconds: wall clock of the call, including compilation.
    """

    predictions: HostArray
    lower_bounds: HostArray
    radii: HostArray
    norm: str
    ceiling: float
    num_selection: int
    num_samples: int
    alpha: float
    model_calls: int
    seconds: float


class Votes(NamedTuple):
    """How a model answered an image under noise.

    Attributes:
        answer: the class that most of the `num_selection` draws answered.
        number: how many of the `num_samples` further draws answered it.
    """

    answer: int
    number: int


class Recall(Protocol):
    """A function that returns an image's votes: kept from an earlier certification of the same, or those of `run()`."""

    def __call__(self, index: int, run: Callable[[], Votes], /) -> Votes: ...


class Progress(NamedTuple):
    """The state of a running certification.

    Attributes:
        finished: images finished.
        total: images in all.
        certified: share of the finished images that are certified.
    """

    finished: int
    total: int
    certified: float


class ProgressCallback(Protocol):
    """A function that `certify` calls after every image."""

    def __call__(self, progress: Progress, /) -> object: ...


@model_errors()
def certify(
    logits_fn: LogitsFn,
    images: ArrayLike | OnDemand,
    *,
    law: SmoothingLaw,
    perturbation: Perturbation | None = None,
    num_selection: int = 100,
    num_samples: int = 10_000,
    alpha: float = 0.001,
    batch_size: int = 512,
    key: jax.Array,
    progress: ProgressCallback | None = None,
    recall: Recall | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Certificates:
    """Certifies the smoothed classifier on images: its answers, and the largest perturbations that cannot change them.

    For each image, `num_selection` draws choose the class, and `num_samples` further draws give a lower bound of its
    probability (Clopper and Pearson, one-sided). If the bound is above 1/2, the law converts it to a radius; otherwise
    the classifier abstains. Labels are not needed here: see `certified_accuracy`.

    The guarantee holds for the smoothed classifier, for each image with probability at least ``1 - alpha``, against
    parameters added to the noise *inside the same warp* of the clean image: ``perturbation.apply(params + noise,
    image)``. It does not cover images that are already warped. No radius exceeds
    ``law.radius(alpha ** (1 / num_samples))``.

    Every call compiles the model once, so certify many images in one call.

    Args:
        logits_fn: ``images -> logits[n, classes]`` in inference mode; every row depends on its own image alone. Radii
            are largest for a model that was trained on the same noise. A ``jax.tree_util.Partial(apply, params)``
            passes the weights as arguments instead of compiling them in.
        images: float[n, h, w, c] in the range the model expects; or `OnDemand`, which reads one at a time for each
            device.
        law: of the noise, for example ``deformreg.certification.gaussian(0.3)``.
        perturbation: the family; None is ``deformreg.flow()``.
        num_selection: draws that choose the class.
        num_samples: further draws that bound its probability.
        alpha: in [1e-250, 1), the largest probability of an error, for each image.
        batch_size: perturbed copies of one image per model call; the result does not depend on it.
        key: a JAX random key. Draw j of image i comes from ``fold_in(fold_in(key, i), j)``.
        progress: called with a `Progress` after every image.
        recall: called for every image, in order, with its index and a function that draws and returns its `Votes`. It
            returns these, or those that it kept from an earlier call with the same arguments, for example to continue
            one that was interrupted.
        devices: each takes an image at a time, for example ``jax.local_devices()``; None is JAX's default device. The
            result does not depend on them.

    Returns:
        The certificates.

    Raises:
        TypeError: integer images, counts that are not integers, a `law` that is no `SmoothingLaw`, no random key, or a
            `logits_fn` that does not return one array of floating-point logits.
        ValueError: no images, `alpha` out of range, too few draws to certify anything, wrong shapes, votes from
            `recall` that cannot be, or `devices` that are none, repeated or of another process.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from deformreg import affine
        >>> from deformreg.certification import gaussian
        >>> column = lambda images: jnp.stack([images[:, 0, 2, 0], 2.0 - images[:, 0, 2, 0]], axis=1)
        >>> ramp = jnp.arange(8.0).reshape(1, 1, 8, 1)  # class 0 until the ramp moves by one pixel
        >>> found = certify(
        ...     column, ramp, law=gaussian(0.5), perturbation=affine(parameters=("dx",)),
        ...     num_samples=2000, key=jax.random.key(0),
        ... )
        >>> found.predictions.tolist(), bool(0.8 < found.radii[0] < 1.0), found.norm
        ([0], True, 'l2 norm of the parameters')

    References:
        Cohen, Rosenfeld and Kolter, "Certified Adversarial Robustness via Randomized Smoothing", ICML 2019, figure 1.
        Alfarra et al., "DeformRS: Certifying Input Deformations with Randomized Smoothing", AAAI 2022.
    """
    _checks.instance("law", law, SmoothingLaw, "deformreg.certification.gaussian(0.3)")
    images = images if isinstance(images, OnDemand) else _checks.images_on_host(images)
    key = _checks.key(key)
    _checks.at_least_one(images.shape)
    num_selection = _checks.count("num_selection", num_selection)
    highest = _highest_bound(num_samples, alpha)
    draws = num_selection + num_samples
    batch_size = min(_checks.count("batch_size", batch_size), draws)
    perturbation = family_or_flow(perturbation)
    check_layout(perturbation, images.shape)
    started = time.perf_counter()
    spread = devices_of(devices)
    votes_for = _drawing(
        logits_fn, images, law=law, perturbation=perturbation, counts=(num_selection, num_samples),
        batch_size=batch_size, key=key, spread=spread,
    )  # fmt: skip
    count = len(images)
    predictions, bounds, radii = np.full(count, ABSTAIN), np.zeros(count), np.zeros(count)
    for index in range(count):
        run = partial(votes_for, index)
        votes = run() if recall is None else _checked(recall(index, run), num_samples)
        bounds[index] = clopper_pearson_bound(votes.number, num_samples, alpha=alpha)
        if bounds[index] > 0.5:
            predictions[index], radii[index] = votes.answer, law.radius(float(bounds[index]))
        if progress is not None:
            finished = index + 1
            progress(Progress(finished, count, float((predictions[:finished] != ABSTAIN).mean())))
    return Certificates(
        predictions=predictions,
        lower_bounds=bounds,
        radii=radii,
        norm=law.norm,
        ceiling=law.radius(highest),
        num_selection=num_selection,
        num_samples=num_samples,
        alpha=alpha,
        model_calls=padded(count, spread.count) * padded(draws, batch_size),
        seconds=time.perf_counter() - started,
    )


def _drawing(
    logits_fn: LogitsFn,
    images: HostArray | OnDemand,
    *,
    law: SmoothingLaw,
    perturbation: Perturbation,
    counts: tuple[int, int],
    batch_size: int,
    key: jax.Array,
    spread: Devices,
) -> Callable[[int], Votes]:
    """A function from an image's index to its votes. It draws for as many images as there are devices, and keeps those
    until it is asked for another one."""
    function, last = spread.put(as_argument(logits_fn)), len(images) - 1

    def votes_of(function: LogitsFn, image: jax.Array, keys: jax.Array) -> jax.Array:
        return tally(
            function, image, keys[0], counts, noise=law.noise, perturbation=perturbation,
            params=perturbation.init(image), batch_size=batch_size,
        )[None]  # fmt: skip

    one_each = spread.jit(votes_of, (WHOLE, ROWS, ROWS), ROWS)()
    drawn: dict[int, Votes] = {}

    def votes_for(index: int) -> Votes:
        if index not in drawn:
            drawn.clear()
            group = np.minimum(np.arange(index, index + spread.count), last)
            keys = jax.vmap(partial(jax.random.fold_in, key))(group)
            tallies = np.asarray(one_each(function, images[group], keys))
            for at, (chosen, votes) in zip(group.tolist(), tallies, strict=True):
                drawn[at] = Votes(int(chosen.argmax()), int(votes[chosen.argmax()]))
        return drawn[index]

    return votes_for


def _checked(votes: Votes, num_samples: int) -> Votes:
    _checks.instance("recall", votes, Votes, "lambda index, run: run()")
    if votes.answer < 0 or not 0 <= votes.number <= num_samples:
        raise ValueError(f"recall must return votes of {num_samples} draws for a class, got {votes}")
    return votes


def _highest_bound(num_samples: int, alpha: float) -> float:
    """The lower bound that a unanimous vote gives, the highest possible."""
    num_samples = _checks.count("num_samples", num_samples)
    highest = clopper_pearson_bound(num_samples, num_samples, alpha=alpha)
    if highest <= 0.5:
        needed = math.floor(math.log(alpha) / math.log(0.5)) + 1
        raise ValueError(f"num_samples must be at least {needed} to certify anything at alpha={alpha}: {num_samples}")
    return highest


class CertifiedCurve(NamedTuple):
    """Certified accuracy against the radius.

    Attributes:
        examples: number of examples.
        radii: increasing.
        accuracies: at each radius, the share of all examples that are answered correctly and have a larger radius.
        intervals: their 95 % Wilson intervals.
        mean_radius: over all examples; a wrong answer or an abstention counts 0.
    """

    examples: int
    radii: tuple[float, ...]
    accuracies: tuple[float, ...]
    intervals: tuple[tuple[float, float], ...]
    mean_radius: float


def certified_accuracy(certificates: Certificates, labels: ArrayLike, radii: Sequence[float]) -> CertifiedCurve:
    """Returns the share of examples that the smoothed classifier provably answers correctly within each radius.

    Args:
        certificates: from `certify`.
        labels: int[n].
        radii: at least 0, increasing, in the norm and unit of the certificates. At radius 0 the accuracy is that of the
            smoothed classifier, where an abstention is an error.

    Returns:
        The curve. An example counts at all radii below its own; a wrong answer or an abstention counts at none.

    Raises:
        TypeError: floating labels.
        ValueError: labels of another shape, no radii, a negative radius, or radii that do not increase.

    Example:
        >>> import numpy as np
        >>> found = Certificates(
        ...     np.array([0, 1, -1]), np.array([0.9, 0.8, 0.4]), np.array([0.64, 0.42, 0.0]), "l2 norm", 1.5, 100,
        ...     1000, 0.001, 3300, 1.0,
        ... )
        >>> certified_accuracy(found, np.array([0, 0, 0]), [0.0, 0.7]).accuracies
        (0.3333333333333333, 0.0)

    References:
        Cohen, Rosenfeld and Kolter 2019: certified accuracy.
        Zhai et al., "MACER: Attack-free and Scalable Robust Training via Maximizing Certified Radius", ICLR 2020:
        the mean radius.
    """
    count = len(certificates.predictions)
    labels = np.asarray(_checks.class_indices("labels", labels, count))
    radii = _checks.increasing("radii", radii, from_zero=True)
    # The theorems are about smaller norms, so a radius does not certify itself.
    reach = np.where(certificates.predictions == labels, certificates.radii, 0.0)
    right = [int((reach > radius).sum()) for radius in radii]
    return CertifiedCurve(
        examples=count,
        radii=radii,
        accuracies=tuple(number / count for number in right),
        intervals=tuple(wilson_interval(number, count) for number in right),
        mean_radius=float(reach.mean()),
    )
