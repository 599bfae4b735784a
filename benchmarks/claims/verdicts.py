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
BETTER, WORSE, UNDECIDED = "better", "worse", "undecided"
UNTRIED, MISSING, APART, STRANGERS = "not tried", "not computed yet", "no matched strength", "no seed in common"


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

    @property
    def outcome(self) -> str:
        """Which side of zero the whole interval lies on, in words."""
        low, high = self.interval
        return BETTER if low > 0 else WORSE if high < 0 else UNDECIDED


class Tightness(NamedTuple):
    """The bounds on the loss's increase of one method in one setting: means over the seeds.

    Attributes:
        setting: data and network.
        method: what trained the networks.
        radii: at which `kept` and `kept_by_input` are measured; the other figures are those of the middle one.
        share: of the images on which the flow gradient's bound is the tighter one.
        interval: its 95 % Wilson interval.
        factor: how many times the other bound is larger (median).
        linear: the increase that a linear loss could reach, as a multiple of the flow gradient's bound.
        increase, bound, second_order: what an attack reaches, the flow gradient's bound, and the second-order estimate
            along that attack, in nats.
        kept, kept_by_input: shares of the images on which the attack stays within either bound.
    """

    setting: str
    method: str
    radii: tuple[float, ...]
    share: float
    interval: tuple[float, float]
    factor: float
    linear: float
    increase: float
    bound: float
    second_order: float
    kept: tuple[float, ...]
    kept_by_input: tuple[float, ...]


class Absent(NamedTuple):
    """Methods that cannot be compared in a setting.

    Attributes:
        setting: data and network.
        reason: `UNTRIED`, `MISSING`, `APART` or `STRANGERS`.
        methods: their names.
    """

    setting: str
    reason: str
    methods: tuple[str, ...]


class Verdict(NamedTuple):
    """A claim with its verdict.

    Attributes:
        claim: in words.
        verdict: `HOLDS`, `LIMITED`, `FAILS` or `OPEN`.
        evidence: what it rests on.
        absent: what could not be compared.
    """

    claim: str
    verdict: str
    evidence: tuple[Comparison, ...] | tuple[Tightness, ...] = ()
    absent: tuple[Absent, ...] = ()


Measure = Callable[[Line], float]


def clean(line: Line) -> float:
    """Test accuracy without an attack."""
    return float(line["seen"]["clean_accuracy"])


def seen(line: Line) -> float:
    """Robust accuracy under flows at the middle radius."""
    return float(line["seen"]["accuracies"][1])


def unseen(line: Line) -> float:
    """Mean accuracy under the deformations of other kinds: all unseen attacks but those that change pixel values."""
    accuracies: dict[str, float] = line["unseen"]["accuracies"]
    return fmean(accuracy for name, accuracy in accuracies.items() if name != "pixels")


MEASURES: dict[str, Measure] = {"under flows": seen, "under unseen deformations": unseen}


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


def compare(
    lines: Sequence[Line], ours: str, theirs: Sequence[str], measures: Sequence[str]
) -> list[Comparison | Absent]:
    """Compares a method with the best of others, by measure, in every setting; or says why it cannot be compared."""
    found: list[Comparison | Absent] = []
    for setting in settings(lines):
        methods = chosen(lines, setting)
        if missing := [name for name in (ours, *theirs) if name not in methods]:
            found.append(_absent(setting, missing))
            continue
        if apart := [name for name in (ours, *theirs) if not methods[name].matched]:
            found.append(Absent(setting, APART, tuple(apart)))
            continue
        for name in measures:
            measure = MEASURES[name]
            seeds = methods[ours].seeds.intersection(*(methods[other].seeds for other in theirs))
            if not seeds:
                found.append(Absent(setting, STRANGERS, (ours, *theirs)))
                continue
            best = max((methods[other] for other in theirs), key=lambda one: one.mean(measure, seeds))
            first, second = methods[ours].mean(measure, seeds), best.mean(measure, seeds)
            examples = methods[ours].lines[0]["seen"]["examples"]
            interval = difference_interval(first, second, examples)
            found.append(Comparison(setting, methods[ours], best, name, first - second, interval))
    return found


def _absent(setting: str, methods: Sequence[str]) -> Absent:
    """Why methods of a setting cannot be compared."""
    untried = tuple(name for name in methods if not grid.tries(setting, name))
    return Absent(setting, UNTRIED, untried) if untried else Absent(setting, MISSING, tuple(methods))


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


def _verdict(claim: str, comparisons: Sequence[Comparison | Absent], margin: float = 0.0) -> Verdict:
    """Judges by the comparisons: in every one above zero with the whole interval, and by `margin` on the mean."""
    made = tuple(one for one in comparisons if isinstance(one, Comparison))
    above = [one.outcome == BETTER and one.difference >= margin for one in made]
    absent = tuple(one for one in comparisons if isinstance(one, Absent))
    return Verdict(claim, _judgement(above), made, absent)


def _judgement(above: Sequence[bool]) -> str:
    return OPEN if not above else HOLDS if all(above) else LIMITED if any(above) else FAILS


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
            "Against deformations that were not seen in training it is better than training on deformations.",
            compare(lines, flow, ["deformation"], ["under unseen deformations"]),
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
    found = tuple(
        _tightness(one, setting)
        for setting in settings(lines)
        for method, one in chosen(lines, setting).items()
        if method in _PENALTIES
    )
    return Verdict(claim, _judgement([one.interval[0] > 0.5 for one in found]), found)


_PENALTIES = ("standard", "input gradient", "flow gradient", "flow gradient, dual norm")


def _tightness(one: Chosen, setting: str) -> Tightness:
    def means(name: str) -> tuple[float, ...]:
        return tuple(map(fmean, zip(*(line["bounds"][name] for line in one.lines), strict=True)))

    examples, middle = one.lines[0]["seen"]["examples"], 1
    share = means("flow_is_tighter")[middle]
    return Tightness(
        setting,
        one.method,
        radii=tuple(one.lines[0]["bounds"]["radii"]),
        share=share,
        interval=wilson_interval(round(share * examples), examples),
        factor=means("median_factor")[middle],
        linear=fmean(line["bounds"]["displacement"][middle] / line["bounds"]["flow"][middle] for line in one.lines),
        increase=means("increase")[middle],
        bound=means("flow")[middle],
        second_order=means("second_order")[middle],
        kept=means("flow_holds"),
        kept_by_input=means("input_holds"),
    )
