"""Intervals, bounds and summaries of accuracies."""

import numpy as np
import pytest
from scipy import stats

from deformreg.statistics import (
    clopper_pearson_bound,
    mean_minimal_displacement,
    unforeseen_robustness,
    wilson_interval,
)


def test_wilson_intervals():
    low, high = wilson_interval(0, 10)
    assert low == 0
    np.testing.assert_allclose(high, 0.27753, atol=1e-5)
    assert wilson_interval(10, 10)[1] == 1
    with pytest.raises(ValueError, match="successes must be at most"):
        wilson_interval(3, 2)
    with pytest.raises(ValueError, match="confidence"):
        wilson_interval(1, 2, confidence=1.0)


@pytest.mark.parametrize(("successes", "trials"), [(0, 1), (1, 1), (0, 50), (7, 10), (9_990, 10_000), (200, 200)])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
def test_wilson_intervals_are_those_that_scipy_computes(successes, trials, confidence):
    expected = stats.binomtest(successes, trials).proportion_ci(confidence, method="wilson")
    np.testing.assert_allclose(
        wilson_interval(successes, trials, confidence=confidence), expected, rtol=1e-9, atol=1e-15
    )


@pytest.mark.parametrize(("successes", "trials"), [(1, 1), (7, 10), (99, 100), (9_990, 10_000), (10_000, 10_000)])
@pytest.mark.parametrize("alpha", [0.001, 0.05])
def test_the_bound_is_the_one_that_scipy_computes(successes, trials, alpha):
    bound = clopper_pearson_bound(successes, trials, alpha=alpha)
    test = stats.binomtest(successes, trials, alternative="greater")
    assert bound == pytest.approx(test.proportion_ci(1 - alpha, method="exact").low, rel=1e-9)
    assert stats.binom.sf(successes - 1, trials, bound) == pytest.approx(alpha, rel=1e-6)
    if successes == trials:
        assert bound == pytest.approx(alpha ** (1 / trials), rel=1e-12)


def test_the_bound_is_zero_without_a_success():
    assert clopper_pearson_bound(0, 50) == 0


@pytest.mark.parametrize("successes", [1, 5_000, 9_990, 10_000])
@pytest.mark.parametrize("alpha", [1e-250, 1e-100, 0.5, 1 - 1e-13, float(np.nextafter(1, 0))])
def test_the_bound_stays_below_one_and_holds_for_every_alpha(successes, alpha):
    bound = clopper_pearson_bound(successes, 10_000, alpha=alpha)
    assert 0 < bound < 1
    assert stats.beta.cdf(bound, successes, 10_001 - successes) <= alpha * (1 + 1e-9)


@pytest.mark.parametrize("alpha", [1e-251, 1e-300, 5e-324])
def test_an_alpha_for_which_scipy_has_no_quantile_is_refused(alpha):
    with pytest.raises(ValueError, match=r"^alpha must be at least 1e-250, got .*$"):
        clopper_pearson_bound(9_990, 10_000, alpha=alpha)


def test_summaries_of_accuracies():
    assert mean_minimal_displacement([0, 0.5, 1.5], [0.9, 0.5, 0.1]) == pytest.approx(0.35 + 0.3)
    for radii, accuracies, words in [
        ([0.5, 1.0], [1, 1], "radii must begin with 0"),
        ([0.0, float("nan")], [1, 1], "radii must increase"),
        ([0.0, 1.0], [95.0, 40.0], "accuracies must be in"),
        ([0.0, 1.0], [1.0, float("nan")], "accuracies must be in"),
    ]:
        with pytest.raises(ValueError, match=words):
            mean_minimal_displacement(radii, accuracies)
    with pytest.raises(ValueError, match="trained_accuracies must be in"):
        unforeseen_robustness([0.5], [95.0])
    assert unforeseen_robustness([0.1, 0.2], [0.6, 0.6]) == pytest.approx(25)
    assert unforeseen_robustness(np.array([0.1, 0.2]), np.array([0.6, 0.6])) == pytest.approx(25)
    with pytest.raises(ValueError, match="of one length"):
        unforeseen_robustness([], [])
