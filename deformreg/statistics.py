"""Statistics of robustness: intervals and bounds of proportions, and summaries of accuracies at several budgets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import NormalDist

from deformreg import _checks


def wilson_interval(successes: int, trials: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval for a proportion.

    Args:
        successes: in [0, trials].
        trials: at least 1.
        confidence: in (0, 1), two-sided.

    Returns:
        ``(low, high)`` in [0, 1].

    Raises:
        TypeError: counts that are not integers.
        ValueError: counts or confidence out of range.

    Example:
        >>> [round(end, 4) for end in wilson_interval(8, 10)]
        [0.4902, 0.9433]

    References:
        Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", JASA 22, 1927.
    """
    successes, trials = _counts(successes, trials)
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1), got {confidence}")
    # In place of `scipy.stats`, whose import takes longer than compiling a small evaluation.
    squared = NormalDist().inv_cdf(0.5 + confidence / 2) ** 2
    middle = (successes + squared / 2) / (trials + squared)
    half = math.sqrt(squared * (successes * (trials - successes) / trials + squared / 4)) / (trials + squared)
    return 0.0 if successes == 0 else middle - half, 1.0 if successes == trials else middle + half


def clopper_pearson_bound(successes: int, trials: int, *, alpha: float = 0.001) -> float:
    """Clopper and Pearson's one-sided lower bound of a probability.

    It is the probability under which `successes` or more out of `trials` have probability `alpha`. Whatever the true
    probability, the bound exceeds it with probability at most `alpha`.

    Args:
        successes: in [0, trials].
        trials: at least 1.
        alpha: in [1e-250, 1).

    Returns:
        The bound in [0, 1): 0 without a success, ``alpha ** (1 / trials)`` without a failure. One that rounds to 1 is
        the largest number below.

    Raises:
        TypeError: counts that are not integers.
        ValueError: counts or `alpha` out of range.

    Example:
        >>> round(clopper_pearson_bound(10_000, 10_000, alpha=0.001), 5)
        0.99931

    References:
        Clopper and Pearson, "The Use of Confidence or Fiducial Limits Illustrated in the Case of the Binomial",
        Biometrika 26, 1934; as a quantile of the beta distribution: Brown, Cai and DasGupta, "Interval Estimation for
        a Binomial Proportion", Statistical Science 16, 2001.
    """
    successes, trials = _counts(successes, trials)
    _checks.alpha(alpha)
    if successes == 0:
        return 0.0
    # `binomtest` has this bound, too, but takes a millisecond where this takes microseconds: `certify` asks per image.
    from scipy.special import betaincinv

    # Where `alpha` is nearly 1 the quantile rounds to 1, which no bound is and no smoothing law takes.
    return min(float(betaincinv(successes, trials - successes + 1, alpha)), math.nextafter(1.0, 0.0))


def _counts(successes: int, trials: int) -> tuple[int, int]:
    trials = _checks.count("trials", trials)
    successes = _checks.count("successes", successes, minimum=0)
    if successes > trials:
        raise ValueError(f"successes must be at most trials = {trials}, got {successes}")
    return successes, trials


def mean_minimal_displacement(radii: Sequence[float], accuracies: Sequence[float]) -> float:
    """Estimates the mean over all examples of the smallest budget that breaks them, at most the largest budget tried.

    This is the area under the curve of robust accuracy against the radius, by the trapezoid rule: a clean error counts
    0, an example that nothing broke counts the largest radius.

    Args:
        radii: increasing from 0, where the accuracy is the clean one; in pixels for flows.
        accuracies: the robust accuracy at each radius, in [0, 1].

    Returns:
        The mean in the radii's unit.

    Raises:
        TypeError: no list of numbers.
        ValueError: fewer than two points, different lengths, radii that do not increase from 0, or accuracies outside
            [0, 1].

    Example:
        >>> mean_minimal_displacement([0.0, 1.0, 2.0], [1.0, 0.5, 0.0])
        1.0
    """
    if len(radii) != len(accuracies) or len(radii) < 2:
        raise ValueError(f"radii and accuracies must be of one length, at least 2, got {len(radii)}, {len(accuracies)}")
    radii = _checks.increasing("radii", radii, from_zero=True)
    if radii[0] != 0:
        raise ValueError(f"radii must begin with 0, the clean accuracy's, got {list(radii)}")
    _check_accuracies("accuracies", accuracies)
    steps = [b - a for a, b in pairwise(radii)]
    return sum(step * (a + b) / 2 for step, a, b in zip(steps, accuracies[:-1], accuracies[1:], strict=True))


def unforeseen_robustness(accuracies: Sequence[float], trained_accuracies: Sequence[float]) -> float:
    """UAR: accuracies under an attack at several budgets, relative to models trained against that attack.

    Args:
        accuracies: of the model at increasing budgets (six, by convention), in [0, 1].
        trained_accuracies: at each budget, the best accuracy of adversarially trained models.

    Returns:
        The score; 100 if the model is as robust as those trained against the attack.

    Raises:
        ValueError: different or zero lengths, accuracies outside [0, 1], or trained ones that sum to zero.

    Example:
        >>> unforeseen_robustness([0.5, 0.25], [1.0, 0.5])
        50.0

    References:
        Kang et al., "Testing Robustness Against Unforeseen Adversaries", arXiv 1908.08016.
    """
    if len(accuracies) != len(trained_accuracies) or len(accuracies) == 0:
        raise ValueError(
            f"accuracies and trained_accuracies must be of one length, got {len(accuracies)}, {len(trained_accuracies)}"
        )
    _check_accuracies("accuracies", accuracies)
    _check_accuracies("trained_accuracies", trained_accuracies)
    if sum(trained_accuracies) == 0:
        raise ValueError(f"trained_accuracies must sum to more than 0, got {list(trained_accuracies)}")
    return 100 * sum(accuracies) / sum(trained_accuracies)


def _check_accuracies(name: str, accuracies: Sequence[float]) -> None:
    """Raises unless all are in [0, 1]."""
    if not all(0 <= accuracy <= 1 for accuracy in accuracies):
        raise ValueError(f"{name} must be in [0, 1], got {list(accuracies)}: divide percentages by 100")
