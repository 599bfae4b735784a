"""Certified robustness of a smoothed classifier: radii within which no perturbation of a family changes its answer.

The certificate is about the *smoothed* classifier, not the model. It holds with probability at least ``1 - alpha``
for each image, against perturbations whose parameters are **added to the noise inside the same warp** of the clean
image. An image that arrives already warped is interpolated twice; it is another image, and not covered. The proof
assumes exact arithmetic.

No radius exceeds ``law.radius(alpha ** (1 / num_samples))``, however good the model: 3.2 sigma for 10,000 Gaussian
draws and ``alpha=0.001``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from deformreg import _checks
from deformreg.attacks.attack import LogitsFn, as_argument, class_indices
from deformreg.certification.laws import SmoothingLaw
from deformreg.certification.votes import tally
from deformreg.noise import Noise
from deformreg.perturbations import Perturbation, flow
from deformreg.statistics import clopper_pearson_bound, wilson_interval

HostArray = np.ndarray[Any, Any]

ABSTAIN = -1
"""The prediction where no class is certified."""


class Certificates(NamedTuple):
    """The result of `certify`: plain data.

    Attributes:
        predictions: int[n], the smoothed classifier's answers; -1 where it abstains.
        lower_bounds: float[n], of the probability that the model answers the chosen class under noise.
        radii: float[n]: parameters of a smaller `norm` do not change the answer; 0 where it abstains.
        norm: which norm the radii bound and in which unit, in words.
        ceiling: the largest radius that so many draws can certify.
        num_selection: draws that chose the class.
        num_samples: other draws, that bounded its probability.
        alpha: the probability, for each image, that its answer or radius is wrong.
        model_calls: perturbed images computed, those that fill up batches included.
        seconds: wall clock, compiling included.
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


class Progress(NamedTuple):
    """What a `progress` callback is told: images through, of how many, and the share of those that is certified."""

    finished: int
    total: int
    certified: float


def certify(
    logits_fn: LogitsFn,
    images: Any,
    *,
    law: SmoothingLaw,
    perturbation: Perturbation | None = None,
    num_selection: int = 100,
    num_samples: int = 10_000,
    alpha: float = 0.001,
    batch_size: int = 512,
    key: jax.Array,
    progress: Callable[[Progress], None] | None = None,
) -> Certificates:
    """Certifies the smoothed classifier on images: its answers, and how large a perturbation they withstand.

    For each image, `num_selection` draws choose the class and `num_samples` others bound its probability from below
    (Clopper and Pearson, one-sided). Where the bound is above 1/2 the law turns it into a radius; elsewhere the
    classifier abstains. No labels are needed: see `certified_accuracy`.

    The guarantee holds for the smoothed classifier, with probability at least ``1 - alpha`` for each image, against
    parameters added to the noise *inside the same warp* of the clean image: ``perturbation.apply(params + noise,
    image)``. An image that comes warped already is interpolated twice and is not covered. No radius exceeds
    ``law.radius(alpha ** (1 / num_samples))``.

    Every call compiles the model once, for however many images: certify many in one call.

    Args:
        logits_fn: ``images -> logits[n, classes]`` in inference mode, every row dependent on its own image alone. Best
            trained on the same noise. Give a ``jax.tree_util.Partial(apply, params)`` to have the weights passed as
            arguments instead of compiled in.
        images: float[n, h, w, c] in the range the model expects.
        law: of the noise: `deformreg.certification.gaussian` or `uniform`, with a scale in the unit of the parameters.
        perturbation: the family, yours or the library's; None is ``deformreg.flow()``.
        num_selection: draws that choose the class.
        num_samples: draws that bound its probability.
        alpha: in (0, 1), the probability of error for each image.
        batch_size: perturbed copies of one image that the model sees at a time; the result does not depend on it.
        key: a JAX random key. Draw j of image i comes from ``fold_in(fold_in(key, i), j)``.
        progress: called with a `Progress` after every image.

    Returns:
        The certificates.

    Raises:
        TypeError: integer images, counts that are not integers, a `law` that is none.
        ValueError: no images, `alpha` out of range, too few draws to certify anything, or shapes that do not fit.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from deformreg import affine, certification
        >>> column = lambda images: jnp.stack([images[:, 0, 2, 0], 2.0 - images[:, 0, 2, 0]], axis=1)
        >>> ramp = jnp.arange(8.0).reshape(1, 1, 8, 1)  # class 0 until the ramp moves by one pixel
        >>> found = certify(
        ...     column, ramp, law=certification.gaussian(0.5), perturbation=affine(parameters=("dx",)),
        ...     num_samples=2000, key=jax.random.key(0),
        ... )
        >>> found.predictions.tolist(), bool(0.8 < found.radii[0] < 1.0), found.norm
        ([0], True, 'l2 norm of the parameters')

    References:
        Cohen, Rosenfeld and Kolter, "Certified Adversarial Robustness via Randomized Smoothing", ICML 2019, figure 1.
        Alfarra et al., "DeformRS: Certifying Input Deformations with Randomized Smoothing", AAAI 2022.
    """
    if not isinstance(law, SmoothingLaw):
        raise TypeError(
            f"law must be a SmoothingLaw, for example deformreg.certification.laws.gaussian(0.3), got {law!r}"
        )
    images = _checks.images_on_host(images)
    if images.shape[0] == 0:
        raise ValueError(f"images must hold at least one example, got shape {images.shape}")
    num_selection = _checks.count("num_selection", num_selection)
    highest = _highest_bound(num_samples, alpha)
    draws = num_selection + num_samples
    batch_size = min(_checks.count("batch_size", batch_size), draws)
    perturbation = flow() if perturbation is None else perturbation
    started = time.perf_counter()
    function, count = as_argument(logits_fn), len(images)
    predictions, bounds, radii = np.full(count, ABSTAIN), np.zeros(count), np.zeros(count)
    votes_of = jax.jit(partial(_votes, law.noise, perturbation, batch_size))
    for index in range(count):
        image_key = jax.random.fold_in(key, index)
        chosen, votes = np.asarray(votes_of(function, images[index : index + 1], image_key, num_selection, num_samples))
        top = int(chosen.argmax())
        bounds[index] = clopper_pearson_bound(int(votes[top]), num_samples, alpha=alpha)
        if bounds[index] > 0.5:
            predictions[index], radii[index] = top, law.radius(float(bounds[index]))
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
        model_calls=count * -(-draws // batch_size) * batch_size,
        seconds=time.perf_counter() - started,
    )


def _votes(
    noise: Noise,
    perturbation: Perturbation,
    batch_size: int,
    logits_fn: LogitsFn,
    image: jax.Array,
    key: jax.Array,
    num_selection: jax.Array,
    num_samples: jax.Array,
) -> jax.Array:
    params = perturbation.init(image)
    return tally(noise, perturbation, batch_size, logits_fn, image, params, key, num_selection, num_samples)


def _highest_bound(num_samples: int, alpha: float) -> float:
    """The lower bound of a unanimous vote, the highest there is."""
    num_samples = _checks.count("num_samples", num_samples)
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must be in (0, 1), got {alpha}")
    highest = clopper_pearson_bound(num_samples, num_samples, alpha=alpha)
    if highest <= 0.5:
        needed = math.floor(math.log(alpha) / math.log(0.5)) + 1
        raise ValueError(f"num_samples must be at least {needed} to certify anything at alpha={alpha}: {num_samples}")
    return highest


class CertifiedCurve(NamedTuple):
    """Certified accuracy against the radius.

    Attributes:
        examples: how many.
        radii: increasing.
        accuracies: at each radius, the share of all examples answered right and certified beyond it.
        intervals: Wilson's 95 % intervals of them.
        mean_radius: over all examples; those answered wrong or not at all count 0.
    """

    examples: int
    radii: tuple[float, ...]
    accuracies: tuple[float, ...]
    intervals: tuple[tuple[float, float], ...]
    mean_radius: float


def certified_accuracy(certificates: Certificates, labels: Any, radii: Sequence[float]) -> CertifiedCurve:
    """The share of examples that the smoothed classifier answers right, provably so for all perturbations of a radius.

    Args:
        certificates: from `certify`.
        labels: int[n].
        radii: at least 0, increasing, in the certificates' norm and unit. At 0: the accuracy of the smoothed
            classifier, with its abstentions counted as errors.

    Returns:
        The curve. An example counts at a radius if its own is larger; a wrong answer or none counts nowhere.

    Raises:
        TypeError: floating labels.
        ValueError: labels of another shape, no radii, or radii that do not increase from at least 0.

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
    labels = np.asarray(class_indices("labels", labels, count))
    radii = tuple(float(radius) for radius in radii)
    if not radii or list(radii) != sorted(set(radii)) or radii[0] < 0:
        raise ValueError(f"radii must increase from at least 0, got {list(radii)}")
    # Theorems are about smaller norms: a radius certifies what is below it.
    reach = np.where(certificates.predictions == labels, certificates.radii, 0.0)
    right = [int((reach > radius).sum()) for radius in radii]
    return CertifiedCurve(
        examples=count,
        radii=radii,
        accuracies=tuple(number / count for number in right),
        intervals=tuple(wilson_interval(number, count) for number in right),
        mean_radius=float(reach.mean()),
    )
