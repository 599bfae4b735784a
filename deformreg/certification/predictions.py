"""Answers of the smoothed classifier from a finite number of draws: right with high probability, or none."""

from __future__ import annotations

import math

import jax
import numpy as np
from jaxtyping import Array, Float

from deformreg import _checks
from deformreg.attacks.attack import LogitsFn
from deformreg.certification.certify import ABSTAIN, HostArray
from deformreg.certification.laws import SmoothingLaw
from deformreg.certification.votes import smoothed_votes
from deformreg.interop.host import model_errors
from deformreg.perturbations import Params, Perturbation


@model_errors()
def smoothed_predictions(
    logits_fn: LogitsFn,
    images: Float[Array, "n *space c"],
    *,
    law: SmoothingLaw,
    perturbation: Perturbation | None = None,
    params: Params = None,
    num_samples: int = 1000,
    alpha: float = 0.001,
    batch_size: int = 512,
    key: jax.Array,
) -> HostArray:
    """Answers with the smoothed classifier's class, or abstains where the draws do not tell which class that is.

    For each image a two-sided binomial test asks whether the two classes with the most votes could be equally probable.
    If it cannot reject that at the level `alpha`, the answer is -1. Otherwise it is the class with the most votes. The
    probability that an image gets another class than the smoothed classifier's is at most `alpha`.

    This is the answer to use with a certificate of `certify`, whose radius holds for the smoothed classifier itself.
    The two errors add up: an answer at perturbed parameters inside the radius of a clean image differs from the
    certified class with probability at most the sum of both `alpha`.

    Not inside `jit`, because the test runs on the host; `smoothed_votes` works there.

    Args:
        logits_fn: ``images -> logits[n, classes]`` in inference mode; every row depends on its own image alone.
        images: float[n, h, w, c] in the range the model expects.
        law: of the noise.
        perturbation: the family; None is ``deformreg.flow()``.
        params: an attacker's parameters, to which the noise is added, shaped like ``perturbation.init(images)``; None
            is the identity.
        num_samples: draws per image.
        alpha: in [1e-250, 1), the largest probability of a wrong answer, for each image.
        batch_size: perturbed copies of one image per model call; the result does not depend on it.
        key: a JAX random key, another one than that of a certification of the same images; draw j of image i comes from
            ``fold_in(fold_in(key, i), j)``.

    Returns:
        int[n], the classes; -1 where it abstains.

    Raises:
        TypeError: integer images, counts that are not integers, or a `law` that is no `SmoothingLaw`.
        ValueError: `alpha` out of range, too few draws to answer anything, counts below 1, or wrong shapes.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from deformreg import additive
        >>> from deformreg.certification import gaussian
        >>> sign = lambda images: jnp.concatenate([-images[:, 0, 0], images[:, 0, 0]], axis=1)
        >>> images = jnp.array([0.5, 0.0]).reshape(2, 1, 1, 1)  # the second one lies on the boundary
        >>> options = {"law": gaussian(0.5), "perturbation": additive(), "key": jax.random.key(0)}
        >>> smoothed_predictions(sign, images, **options).tolist()
        [1, -1]

    References:
        Cohen, Rosenfeld and Kolter, "Certified Adversarial Robustness via Randomized Smoothing", ICML 2019: PREDICT in
        figure 1, and proposition 2.
        Hung and Fithian, "Rank Verification for Exponential Families", Annals of Statistics 47, 2019: why the test may
        choose its two classes from the same draws.
    """
    _checks.alpha(alpha)
    num_samples = _checks.count("num_samples", num_samples)
    needed = math.ceil(1 - math.log2(alpha))  # a unanimous vote has the p-value 2 / 2 ** num_samples
    if num_samples < needed:
        raise ValueError(f"num_samples must be at least {needed} to answer anything at alpha={alpha}: {num_samples}")
    votes = np.asarray(
        smoothed_votes(
            logits_fn, images, law=law, perturbation=perturbation, params=params, num_samples=num_samples,
            batch_size=batch_size, key=key,
        )
    )  # fmt: skip
    second, first = np.moveaxis(np.sort(votes, axis=1)[:, -2:], 1, 0)
    return np.where(_p_values(first, second) <= alpha, votes.argmax(axis=1), ABSTAIN)


def _p_values(first: HostArray, second: HostArray) -> HostArray:
    """Of the two-sided test that two classes with these votes, the larger number first, are equally probable."""
    # In place of `scipy.stats.binomtest`, which takes one image at a time. Above 1 for equal numbers of votes.
    from scipy.special import betainc

    tails: HostArray = 2 * betainc(first, second + 1, 0.5)
    return tails
