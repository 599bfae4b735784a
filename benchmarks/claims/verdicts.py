"""The paper's claims, judged from the lines of finished cells.

Methods are compared at *matched clean accuracy*: of the strengths whose clean accuracy on held-out training images is
at most one point below the standard network's, each method takes the one of highest robust accuracy there. Only then
are test images looked at. A claim holds in a setting if the 95 % interval of the difference lies above zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Sequence
from statistics import fmean
from typing import NamedTuple

from benchmarks.claims import grid
from benchmarks.json_lines import Line
from deformreg.statistics import wilson_interval

TOLERANCE = 0.01
"""How far clean accuracy on held-out images may fall below the standard network's."""

HOLDS, LIMITED, FAILS, OPEN = "holds", "holds within limits", "does not hold", "not judged yet"


class Chosen(NamedTuple):
    """A method at its chosen strength in one setting.

    Attributes:
        method: its name.
        lines: of the cells, one per seed.
        matched: whether its clean accuracy on held-out images matches the standard network's; if no strength does, the
            one of highest clean accuracy there stands here.
    """

    method: str
    lines: tuple[Line, ...]
    matched: bool

    @property
    def strength(self) -> float:
        """The weight or radius."""
        return float(self.lines[0]["strength"])

    @property
    def seeds(self) -> set[int]:
        """The seeds that it was trained with."""
        return {line["seed"] for line in self.lines}

    def mean(self, measure: Measure, seeds: Container[int] | None = None) -> float:
        """A measure's mean over the seeds, by default over all of its own."""
        return fmean(measure(line) for line in self.lines if seeds is None or line["seed"] in seeds)


class Comparison(NamedTuple):
    """Two methods in one setting.

    Attributes:
        setting: data and network.
        ours, theirs: the method of the claim, and what it is compared with.
        measure: what is compared, in words.
        difference: of the accuracies, in [-1, 1].
        interval: its 95 % interval.
    """

    setting: str
    ours: Chosen
    theirs: Chosen
    measure: str
    difference: float
    interval: tuple[float, float]

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"{self.setting}, {self.measure}: {self.ours.method} {100 * self.difference:+.1f} points over "
            f"{self.theirs.method} ({100 * low:+.1f} to {100 * high:+.1f})"
        )


class Verdict(NamedTuple):
    """A claim with its verdict.

    Attributes:
        claim: in words.
        verdict: `HOLDS`, `LIMITED`, `FAILS` or `OPEN`.
        reasons: what it rests on, and which settings are not compared and why; a sentence for each.
        only: the settings that were compared, if others were not.
    """

    claim: str
    verdict: str
    reasons: tuple[str, ...]
    only: tuple[str, ...] = ()


Measure = Callable[[Line], float]


def clean(line: Line) -> float:
    """Test accuracy without an attack."""
    return float(line["seen"]["clean_accuracy"])


def seen(line: Line) -> float:
    """Robust accuracy under flows at the middle radius."""
    return float(line["seen"]["accuracies"][1])


def unseen(line: Line) -> float:
    """Mean accuracy under the attacks of other kinds."""
    return fmean(line["unseen"]["accuracies"].values())


MEASURES: dict[str, Measure] = {"under flows": seen, "under unseen attacks": unseen}


def settings(lines: Sequence[Line]) -> list[str]:
    """The settings of the lines, in their order."""
    return list(dict.fromkeys(line["setting"] for line in lines))


def chosen(lines: Sequence[Line], setting: str) -> dict[str, Chosen]:
    """Every method of a setting at the strength that held-out training images choose, the standard network first.

    Seeds count only if the standard network has them, and strengths only if they have as many seeds as any other.
    """
    here = [line for line in lines if line["setting"] == setting]
    standard = [line for line in here if line["method"] == "standard"]
    if not standard:
        return {}
    seeds = {line["seed"] for line in standard}
    found = {}
    for method in dict.fromkeys(line["method"] for line in here):
        strengths: dict[float, list[Line]] = {}
        for line in here:
            if line["method"] == method and line["seed"] in seeds:
                strengths.setdefault(line["strength"], []).append(line)
        most = max(map(len, strengths.values()), default=0)
        candidates = [tuple(cells) for cells in strengths.values() if len(cells) == most > 0]
        if candidates:
            own = {line["seed"] for line in candidates[0]}
            least = least_clean([line for line in standard if line["seed"] in own])
            best = ranked(candidates, least)[0]
            found[method] = Chosen(method, best, held_out(best, "clean_accuracy") >= least)
    return found


def ranked(candidates: Sequence[tuple[Line, ...]], least: float) -> list[tuple[Line, ...]]:
    """Strengths, the best first: those of matched clean accuracy by robust accuracy, then the others by clean accuracy.

    Each stands as the lines of its seeds; all accuracies are those on held-out images.
    """

    def rank(cells: tuple[Line, ...]) -> tuple[bool, float]:
        clean = held_out(cells, "clean_accuracy")
        return (True, held_out(cells, "robust_accuracy")) if clean >= least else (False, clean)

    return sorted(candidates, key=rank, reverse=True)


def least_clean(standard: Sequence[Line], tolerance: float = TOLERANCE) -> float:
    """The least clean accuracy on held-out images that matches that of these lines, less than rounding below it."""
    return held_out(standard, "clean_accuracy") - tolerance - 1e-9


def held_out(cells: Sequence[Line], name: str) -> float:
    """The mean of an accuracy on held-out training images."""
    return fmean(line["held_out"][name] for line in cells)


def compare(lines: Sequence[Line], ours: str, theirs: Sequence[str], measures: Sequence[str]) -> list[Comparison | str]:
    """Compares a method with the best of others, by measure, in every setting; or says why it cannot be compared."""
    found: list[Comparison | str] = []
    for setting in settings(lines):
        methods = chosen(lines, setting)
        if missing := [name for name in (ours, *theirs) if name not in methods]:
            found.append(_absent(setting, missing))
            continue
        if apart := [name for name in (ours, *theirs) if not methods[name].matched]:
            found.append(f"{setting}: no strength of matched clean accuracy: {', '.join(apart)}")
            continue
        for name in measures:
            measure = MEASURES[name]
            seeds = methods[ours].seeds.intersection(*(methods[other].seeds for other in theirs))
            if not seeds:
                found.append(f"{setting}: no seed in common: {', '.join((ours, *theirs))}")
                continue
            best = max((methods[other] for other in theirs), key=lambda one: one.mean(measure, seeds))
            first, second = methods[ours].mean(measure, seeds), best.mean(measure, seeds)
            examples = methods[ours].lines[0]["seen"]["examples"]
            interval = difference_interval(first, second, examples)
            found.append(Comparison(setting, methods[ours], best, name, first - second, interval))
    return found


def _absent(setting: str, methods: Sequence[str]) -> str:
    """Why methods of a setting cannot be compared."""
    untried = [name for name in methods if not grid.tries(setting, name)]
    if untried:
        return f"{setting}: not tried: {', '.join(untried)}"
    return f"{setting}: not computed yet: {', '.join(methods)}"


def difference_interval(first: float, second: float, examples: int) -> tuple[float, float]:
    """Newcombe's 95 % interval of the difference of two accuracies on `examples` images each.

    Seeds share the images, so their means count as measured on one set of images.

    References:
        Newcombe, "Interval Estimation for the Difference between Independent Proportions", Statistics in Medicine 17,
        1998, method 10.
    """
    (low, high), (other_low, other_high) = (
        wilson_interval(round(accuracy * examples), examples) for accuracy in (first, second)
    )
    below = math.hypot(first - low, other_high - second)
    above = math.hypot(high - first, second - other_low)
    return first - second - below, first - second + above


def _verdict(claim: str, comparisons: Sequence[Comparison | str], margin: float = 0.0) -> Verdict:
    """Judges by the comparisons: in every one above zero with the whole interval, and by `margin` on the mean."""
    made = [one for one in comparisons if isinstance(one, Comparison)]
    above = [one.interval[0] > 0 and one.difference >= margin for one in made]
    verdict = OPEN if not made else HOLDS if all(above) else LIMITED if any(above) else FAILS
    only = dict.fromkeys(one.setting for one in made) if len(made) < len(comparisons) else ()
    return Verdict(claim, verdict, tuple(map(str, comparisons)), tuple(only))


def judge(lines: Sequence[Line]) -> dict[str, Verdict]:
    """The verdicts on the paper's five claims, by their number."""
    flow, both = "flow gradient", ("flow gradient", "deformation")
    return {
        "C1": _verdict(
            "Flow gradient regularization resists deformations better than input gradient regularization, by a large "
            "margin (here: at least 5 points).",
            compare(lines, flow, ["input gradient"], ["under flows"]),
            margin=0.05,
        ),
        "C2": _verdict(
            "It resists deformations better than adversarial training in pixels.",
            compare(lines, flow, ["pixel adversarial"], ["under flows"]),
        ),
        "C3": _verdict(
            "Against attacks that were not seen in training it is better than training on deformations.",
            compare(lines, flow, ["deformation"], ["under unseen attacks"]),
        ),
        "C4": _verdict(
            "Combined with training on deformations it is better than either.",
            compare(lines, "flow gradient + deformation", both, list(MEASURES)),
        ),
        "C5": _tighter(lines),
    }


def _tighter(lines: Sequence[Line]) -> Verdict:
    """C5: on how many images the flow gradient's bound lies below every one by the input gradient."""
    claim = "Its bound on the loss's increase is tighter than the input gradient's."
    reasons, above, exceeded = [], [], []
    for setting in settings(lines):
        for method, one in chosen(lines, setting).items():
            if method not in ("standard", "input gradient", "flow gradient"):
                continue
            examples = one.lines[0]["seen"]["examples"]
            share, factor, kept, other = (
                fmean(line["bounds"][name][1] for line in one.lines)
                for name in ("flow_is_tighter", "median_factor", "flow_holds", "input_holds")
            )
            above.append(wilson_interval(round(share * examples), examples)[0] > 0.5)
            exceeded += [100 * (1 - kept), 100 * (1 - other)]
            linear = fmean(line["bounds"]["displacement"][1] / line["bounds"]["flow"][1] for line in one.lines)
            reasons.append(
                f"{setting}, {method}, {one.lines[0]['bounds']['radii'][1]:g} px: tighter on {100 * share:.1f} % of "
                f"the images, by a factor of {factor:.2g} (median); a linear loss could rise by {linear:.2f} times it "
                f"(means); an attack exceeds it on {100 * (1 - kept):.1f} %, the input gradient's on "
                f"{100 * (1 - other):.1f} %"
            )
    if not above:
        return Verdict(claim, OPEN, ())
    reasons.append(
        "Tighter does not mean kept: the flow gradient is the slope on one side of each pixel, so even a linear loss "
        "can rise by more; and both bounds are of first order: attacks exceed them on "
        f"{min(exceeded):.0f} to {max(exceeded):.0f} % of the images"
    )
    return Verdict(claim, HOLDS if all(above) else LIMITED if any(above) else FAILS, tuple(reasons))
