"""The sections of a report: how robust each model is, if the numbers can be trusted, at which budgets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from deformreg.evaluation.curves import Curve
from deformreg.evaluation.flags import Flag
from deformreg.evaluation.frames import Frames
from deformreg.evaluation.html.charts import Line, Point, axis, chart
from deformreg.evaluation.html.elements import COLORS, Html, Section, element, join, percent, swatch, table
from deformreg.evaluation.html.gallery import gallery
from deformreg.evaluation.html.page import LIMIT, anchor
from deformreg.evaluation.results import Evaluation

TRUST = "Can the numbers be trusted?"
"""The heading of the red flags."""

PER_COMPONENT = "displacement per component"
"""What the radius of the suites for flows bounds."""

_BOUNDED = {
    "linf": "displacements of at most {radius:.4g} px per component",
    "pixelwise_l2": "displacements of at most {radius:.4g} px",
}
"""What a radius in pixels bounds, by the budget's norm."""


def lead(evaluations: Mapping[str, Evaluation], facts: Sequence[str] = ()) -> Html:
    """The result in a sentence per model, what it was measured on, and how many red flags were raised.

    Args:
        evaluations: by the models' names.
        facts: further sentences on what was measured.

    Returns:
        The elements, for the top of the page.
    """
    figures = [
        element(
            "li",
            element("span", swatch(number), name, class_="name"),
            element("b", percent(evaluation.robust_accuracy)),
            element("span", f"right under every attack; {percent(evaluation.clean_accuracy)} without one"),
            _warning(len(evaluation.flags)),
        )
        for number, (name, evaluation) in enumerate(evaluations.items())
    ]
    about = [*_setting(list(evaluations.values())), *facts]
    return join([element("p", " · ".join(about), class_="facts"), element("ul", *figures, class_="figures")])


def _warning(count: int) -> Html | None:
    text = f"\N{BLACK FLAG} {count} red flag{'s' if count > 1 else ''}"
    return element("a", text, href=f"#{anchor(TRUST)}") if count else None


def _setting(evaluations: Sequence[Evaluation]) -> list[str]:
    """Number of images, budget and criterion, where all evaluations agree."""
    counts = {evaluation.examples for evaluation in evaluations}
    radii = {(outcome.radius_pixels, outcome.budget.norm) for each in evaluations for outcome in each.attacks}
    radius, norm = radii.pop() if len(radii) == 1 else (None, "")
    bounded = _BOUNDED.get(norm, f"displacements of at most {{radius:.4g}} px in the norm {norm}")
    criteria = {evaluation.criterion for evaluation in evaluations} - {"classification"}
    return [
        *([f"{counts.pop():,} images"] if len(counts) == 1 else []),
        *([bounded.format(radius=radius)] if radius is not None else []),
        *(f"right means: {criterion}" for criterion in sorted(criteria)),
    ]


def accuracies(
    evaluations: Mapping[str, Evaluation], *, columns: Mapping[str, Callable[[str], str]] | None = None
) -> Section:
    """The models side by side: accuracy without an attack, under each, and under all.

    Args:
        evaluations: by the models' names.
        columns: further columns by their titles, from the model's name.

    Returns:
        The section: a table with a row for each model.
    """
    attacks = list(dict.fromkeys(o.name for evaluation in evaluations.values() for o in evaluation.attacks))
    more = {} if columns is None else columns
    rows = []
    for number, (name, evaluation) in enumerate(evaluations.items()):
        found = {outcome.name: percent(outcome.robust_accuracy) for outcome in evaluation.attacks}
        rows.append(
            [
                join([swatch(number), name]),
                percent(evaluation.clean_accuracy),
                *(found.get(attack, "") for attack in attacks),
                _worst(number, evaluation),
                *(value(name) for value in more.values()),
            ]
        )
    header = ["", "no attack", *attacks, "all attacks", *more]
    note = (
        "Accuracy over all images: an image that the model gets wrong without an attack counts as broken. "
        + _order(list(evaluations.values()))
        + " All attacks: right and broken by none, with the 95 % interval."
    )
    return Section("Accuracy", join([table(header, rows, caption="Accuracy of each model"), element("p", note)]))


def _order(evaluations: Sequence[Evaluation]) -> str:
    if all(evaluation.independent for evaluation in evaluations):
        return "Every attack ran on every image that was right."
    return (
        "Attacks ran from left to right; an image counts as right under one if neither it nor one before it broke it."
    )


def _worst(number: int, evaluation: Evaluation) -> Html:
    low, high = evaluation.robust_interval
    bar = element(
        "span",
        element("i", style=f"width:{100 * evaluation.robust_accuracy:.2f}%"),
        element("u", style=f"left:{100 * low:.2f}%;width:{100 * (high - low):.2f}%"),
        class_=f"extent run-{number % COLORS}", aria_hidden="true",
    )  # fmt: skip
    text = element("span", f"{percent(low)} to {percent(high)}", class_="interval")
    return join([element("b", percent(evaluation.robust_accuracy)), " ", text, bar])


def doubts(evaluations: Mapping[str, Evaluation]) -> Section:
    """The red flags, explained, or that there are none, or that nothing looked for them.

    Args:
        evaluations: by the models' names.

    Returns:
        The section.
    """
    notices = [
        _notice(number, name, flag)
        for number, (name, evaluation) in enumerate(evaluations.items())
        for flag in evaluation.flags
    ]
    unsearched = [name for name, evaluation in evaluations.items() if not evaluation.diagnosis.model_calls]
    if unsearched:
        models = "" if len(unsearched) == len(evaluations) else f" of {', '.join(unsearched)}"
        text = (
            f"Only the attacks' own results{models} were checked: the search for red flags that needs further model "
            "calls did not run."
        )
        notices.append(element("p", text))
    elif not notices:
        notices.append(element("p", "No red flag was raised: the attacks behave as on a model that hides nothing."))
    return Section(TRUST, join(notices))


def _notice(number: int, name: str, flag: Flag) -> Html:
    evidence = [
        join([element("dt", key.replace("_", " ")), element("dd", _plain(value))])
        for key, value in flag.evidence.items()
    ]
    return element(
        "div",
        element("h3", element("span", "\N{BLACK FLAG} ", aria_hidden="true"), flag.name.replace("_", " ")),
        element("p", swatch(number), element("b", name), ": ", flag.explanation),
        element("dl", *evidence) if evidence else None,
        class_="flag",
    )


def _plain(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def budgets(
    curves: Mapping[str, Curve],
    numbers: Mapping[str, int],
    notes: Sequence[str] = (),
    beside: Sequence[Html] = (),
    *,
    budget: str,
) -> Section:
    """Accuracy against the budget.

    Args:
        curves: by the models' names.
        numbers: of all models, by which they have their colours.
        notes: sentences for below the chart.
        beside: further charts.
        budget: what the radius bounds.

    Returns:
        The section: the chart, and a note that states the mean smallest budget of each model.
    """
    lines = [
        Line(
            numbers[name],
            name,
            [
                Point(radius, accuracy, low, high)
                for radius, accuracy, (low, high) in zip(curve.radii, curve.accuracies, curve.intervals, strict=True)
            ],
        )
        for name, curve in curves.items()
    ]
    radii = [radius for curve in curves.values() for radius in curve.radii]
    x, y = axis(f"largest {budget}", "px", radii), axis("accuracy", "%", [])
    means = "; ".join(f"{name} {curve.mean_minimal_displacement:.3g} px" for name, curve in curves.items())
    note = (
        "The shaded areas are 95 % intervals. Mean of the smallest budgets that break an image, counted up to the "
        f"largest: {means}."
    )
    drawn = chart("Robust accuracy", x, y, lines)
    if beside:
        drawn = element("div", *(element("div", each) for each in (drawn, *beside)), class_="pair")
    return Section("Accuracy against the budget", join([drawn, element("p", " ".join([note, *notes]))]))


def attacks(evaluations: Mapping[str, Evaluation]) -> Section:
    """What each attack did to each model, and what it cost.

    Args:
        evaluations: by the models' names.

    Returns:
        The section: a table for each model with a row for each attack.
    """
    header = ["attack", "robust accuracy", "attacked", "broken", "mean displacement", "model calls", "seconds"]
    tables = []
    for number, (name, evaluation) in enumerate(evaluations.items()):
        rows = [
            [
                outcome.name,
                percent(outcome.robust_accuracy),
                f"{outcome.attacked:,}",
                f"{outcome.broken:,}",
                _pixels(outcome.norms),
                f"{outcome.model_calls:,}",
                f"{outcome.seconds + outcome.compile_seconds:.1f}",
            ]
            for outcome in evaluation.attacks
        ]
        if evaluation.diagnosis.model_calls:
            spent = evaluation.diagnosis
            seconds = f"{spent.seconds + spent.compile_seconds:.1f}"
            rows.append(["search for red flags", "", "", "", "", f"{spent.model_calls:,}", seconds])
        title = join([swatch(number), name])
        tables += [element("h3", title), table(header, rows, caption=f"Attacks on {name}")]
    note = "The displacement is a mean over all pixels and over the images that the attack broke."
    return Section("Attacks", join([*tables, element("p", note)]))


def _pixels(norms: Mapping[str, Mapping[str, float]]) -> str:
    mean = norms.get("mean_displacement", {}).get("mean")
    return "" if mean is None else f"{mean:.3g} px"


def sections(
    evaluations: Mapping[str, Evaluation],
    curves: Mapping[str, Curve],
    frames: Mapping[str, Frames],
    class_names: Sequence[str],
    *,
    columns: Mapping[str, Callable[[str], str]] | None = None,
    budget: str = PER_COMPONENT,
    notes: Sequence[str] = (),
    beside: Sequence[Html] = (),
    others: Sequence[Section] = (),
) -> list[Section]:
    """All sections in the order in which a reader asks; the gallery gets what the others leave of the page.

    Args:
        evaluations: by the models' names.
        curves: by the models' names; some or all may be missing.
        frames: by the models' names; some or all may be missing.
        class_names: one per label.
        columns: see `accuracies`.
        budget: what the radius of the curves bounds.
        notes: sentences about the curves.
        beside: charts beside theirs.
        others: sections for the end.

    Returns:
        The sections.
    """
    numbers = {name: number for number, name in enumerate(evaluations)}
    before = [accuracies(evaluations, columns=columns), doubts(evaluations)]
    before += [budgets(curves, numbers, notes, beside, budget=budget)] if curves else []
    after = [attacks(evaluations), *others]
    if not frames:
        return [*before, *after]
    taken = sum(len(section.body.encode()) for section in [*before, *after]) + 50_000
    pictures = gallery(frames, numbers, class_names, limit=LIMIT - taken)
    return [*before, Section("Images and flows", pictures), *after]
