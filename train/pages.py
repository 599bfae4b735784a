"""The HTML report of runs: the evaluation, and how each run was trained and can be repeated."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deformreg.certification import certified_accuracy
from deformreg.evaluation import Frames
from deformreg.evaluation.html.charts import Line, Point, axis, chart
from deformreg.evaluation.html.elements import Html, Section, element, join, percent, swatch, table
from deformreg.evaluation.html.overview import lead, sections
from deformreg.evaluation.html.page import page
from train import metrics, options, own, recipes
from train.config import Config
from train.errors import RunError
from train.evaluation import CURVE, budget
from train.reports import LENIENT
from train.results import Certification, Result
from train.runs import Run
from train.smoothing import FAMILIES

BINS = 60
"""Points of a training curve: each is a mean over a part of the training."""

RADII = 40
"""Steps of the radius in a chart of certified accuracy."""


def write(
    runs: Mapping[str, Run],
    configs: Mapping[str, Config],
    results: Mapping[str, Result],
    certifications: Mapping[str, Certification],
) -> str:
    """The page of evaluated runs.

    Args:
        runs: by their names.
        configs, results: likewise.
        certifications: likewise, of the runs that have one.

    Raises:
        RunError: runs that were evaluated differently.
    """
    _check_comparable(results)
    first = next(iter(results.values()))
    frames, note = _same_frames(results)
    facts = first.facts
    about = [f"images of {facts['images']}", f"suite {facts['suite']}"]
    curve = f"The curve is of the first {first.curve.examples} images, attacked by {facts['curve_suite']}."
    proofs, proven = certified(certifications, results)
    others = [training(runs), repeating(runs, configs, results)]
    parts = sections(
        {name: result.evaluation for name, result in results.items()},
        {name: result.curve for name, result in results.items()},
        frames,
        first.class_names,
        budget=budget(facts["suite"]),
        columns={"training": lambda name: f"{results[name].facts['train_seconds']:.0f} s"},
        notes=[curve, *([_LENIENT] if facts["suite"] == "released" else []), *([note] if note else []), *proven],
        beside=proofs,
        others=others,
    )
    title = "Robustness to deformations"
    return page(title, lead({name: result.evaluation for name, result in results.items()}, about), parts)


_LENIENT = (
    f"The attack {LENIENT} is the protocol of the released code, of which only the last iterate counts: lenient, to "
    "compare with published numbers. The suite standard is stronger and also searches for red flags."
)


def certified(
    certifications: Mapping[str, Certification], results: Mapping[str, Result]
) -> tuple[list[Html], list[str]]:
    """Charts of certified accuracy, one for each family, norm and unit, and sentences about them.

    A certificate of another checkpoint than the evaluated one gets a sentence, and no line.
    """
    numbers = {name: number for number, name in enumerate(results)}
    groups: dict[tuple[str, str, str], dict[str, Certification]] = {}
    notes = []
    for name, one in certifications.items():
        step, evaluated = one.facts["step"], results[name].facts["step"]
        if step == evaluated:
            key = (one.facts["family"], one.certificates.norm, one.facts["unit"])
            groups.setdefault(key, {})[name] = one
        else:
            notes.append(f"The certificates of {name} are of step {step}, not {evaluated}: certify it again.")
    charts = [_certified_chart(*key, group, numbers) for key, group in groups.items()]
    return charts, [*([_CERTIFIED] if charts else []), *notes]


_CERTIFIED = (
    "Certified accuracy is the share of images that the smoothed classifier, which votes under noise, provably answers "
    "correctly. Its radius bounds all parameters together, an attack's budget bounds each: the radii of the charts "
    "do not compare."
)


def _certified_chart(
    family: str, norm: str, unit: str, group: Mapping[str, Certification], numbers: Mapping[str, int]
) -> Html:
    radii = np.linspace(0, max(one.certificates.ceiling for one in group.values()), RADII + 1).tolist()
    lines = []
    for name, one in group.items():
        curve = certified_accuracy(one.certificates, one.labels, radii)
        ends = zip(curve.radii, curve.accuracies, curve.intervals, strict=True)
        lines.append(Line(numbers[name], name, [Point(radius, share, *interval) for radius, share, interval in ends]))
    title = f"Certified accuracy, {FAMILIES[family].threat}s"
    drawn = chart(title, axis(f"radius ({norm})", unit, radii), axis("accuracy", "%", []), lines)
    return join([drawn, element("p", " ".join(_certified_note(name, one) for name, one in group.items()))])


def _certified_note(name: str, one: Certification) -> str:
    facts = one.facts
    sigma = " ".join(f"{value:g}" for value in facts["sigma"])
    return (
        f"{name}: {facts['law']} noise, sigma {sigma}{' ' + facts['unit'] if len(facts['sigma']) == 1 else ''}, "
        f"{one.certificates.num_samples:,} draws for each of {len(one.labels):,} images; without noise its network has "
        f"{percent(facts['clean_accuracy'])} of them right."
    )


def _check_comparable(results: Mapping[str, Result]) -> None:
    """Raises `RunError` for runs whose numbers do not belong side by side."""
    (first, one), *others = results.items()
    for name, other in others:
        for (what, ours), theirs in zip(_protocol(one).items(), _protocol(other).values(), strict=True):
            if ours != theirs:
                raise RunError(
                    f"{name} was evaluated with other {what} than {first} ({theirs}; {ours}): evaluate them together, "
                    "or report each alone"
                )


def _protocol(result: Result) -> dict[str, Any]:
    """What must agree for numbers that stand side by side."""
    facts: dict[str, Any] = {**result.facts}
    shared = ("images", "sample_seed", "suite", "radius_pixels", "quantize", "curve_suite")
    return {what.replace("_", " "): facts[what] for what in shared} | {
        "number of images": result.evaluation.examples,
        "number of images of the curve": result.curve.examples,
        "independence of the attacks": result.evaluation.independent,
        f"steps of {LENIENT}": [o.settings.get("num_steps") for o in result.evaluation.attacks if o.name == LENIENT],
    }


def _same_frames(results: Mapping[str, Result]) -> tuple[dict[str, Frames], str]:
    """The frames of all runs, if they are of the same images; and a sentence if they cannot be shown."""
    found = {name: result.frames for name, result in results.items() if result.frames is not None}
    if len(found) < len(results):
        missing = next(name for name in results if name not in found)
        return {}, f"There is no gallery, because {missing} has no examples.npz: evaluate it again."
    count = min(len(each.images) for each in found.values())
    images = [each.images[:count] for each in found.values()]
    shares = [each.shares for each in found.values()]
    if not all(np.array_equal(images[0], other) for other in images) or len({len(each) for each in shares}) > 1:
        return {}, "There is no gallery, because the runs see different images."
    return {name: each._replace(images=each.images[:count]) for name, each in found.items()}, ""


def training(runs: Mapping[str, Run]) -> Section:
    """The training curves."""
    found = {name: _curves(metrics.read_metrics(run)) for name, run in runs.items()}
    values = {"loss": "", "penalty": "", "accuracy": "%", "validation_accuracy": "%"}
    charts = []
    for value, unit in values.items():
        lines = [
            Line(number, name, curves[value])
            for number, (name, curves) in enumerate(found.items())
            if len(curves[value]) > 1 and any(point.y for point in curves[value])
        ]
        if lines:
            points = [point for line in lines for point in line.points]
            title = {"accuracy": "training accuracy"}.get(value, value.replace("_", " "))
            y = axis(title, unit, [point.y for point in points])
            charts.append(chart(title.capitalize(), axis("step", "", [p.x for p in points]), y, lines, numbers=False))
    if not charts:
        return Section("Training", element("p", "The runs have no metric logs."))
    note = f"Each point is the mean over a part of the training; at most {BINS} of them."
    return Section("Training", join([element("div", *charts, class_="pair"), element("p", note)]))


def _curves(lines: Iterable[metrics.Line]) -> dict[str, list[Point]]:
    """The logged values by name, as means over equal parts of the steps."""
    names = ("loss", "penalty", "accuracy", "validation_accuracy")
    found: dict[str, list[tuple[int, float]]] = {name: [] for name in names}
    for line in lines:
        for name in names:
            value = line.get(name)
            if isinstance(value, float) and math.isfinite(value):
                found[name].append((line["step"], value))
    return {name: _binned(points) for name, points in found.items()}


def _binned(points: Sequence[tuple[int, float]]) -> list[Point]:
    if len(points) <= BINS:
        return [Point(step, value) for step, value in points]
    parts = np.array_split(np.array(points, np.float64), BINS)
    return [Point(round(float(part[-1, 0])), float(part[:, 1].mean())) for part in parts]


def repeating(runs: Mapping[str, Run], configs: Mapping[str, Config], results: Mapping[str, Result]) -> Section:
    """The configs, in what they differ, and the commands that train and evaluate each run again."""
    changed = recipes.differing(dict(configs))
    rows = [[path, *(value or "-" for value in values)] for path, values in changed.items()]
    header = ["option", *(join([swatch(number), name]) for number, name in enumerate(configs))]
    parts = (
        [element("h3", "Where the configs differ"), table(header, rows, caption="Options that differ")] if rows else []
    )
    for number, (name, run) in enumerate(runs.items()):
        parts += [
            element("h3", swatch(number), name),
            _command(_commands(run.folder, configs[name], results[name])),
            _environment(results[name]),
            element(
                "details",
                element("summary", "The whole config"),
                element("pre", element("code", options.to_json(configs[name])), tabindex=0),
            ),
        ]
    return Section("How to repeat it", join(parts))


def _commands(folder: Path, config: Config, result: Result) -> str:
    facts, evaluation = result.facts, result.evaluation
    train = recipes.fit_command(config, folder)
    row = {**facts, "examples": evaluation.examples, "independent": evaluation.independent}
    network = config.model.name if own.is_own(config.model.name) else ""
    evaluate = recipes.evaluate_command(folder, row, _radii(result), network=network)
    sources = [o.name.removeprefix("transfer from ") for o in evaluation.attacks if o.name.startswith("transfer from ")]
    lines = [train or "# trained from Python, by train.fit with parts of a script", evaluate]
    if sources:
        lines.append(f"# with --transfer-from the runs {', '.join(sources)}")
    taken = [o.settings.get("num_steps") for o in evaluation.attacks if o.name == LENIENT]
    if any(steps != config.evaluation.steps for steps in taken):
        lines.append(f"# after a run, named first, whose --evaluation.steps is {taken[0]}: that of the first counts")
    return "\n".join(lines)


def _radii(result: Result) -> list[float]:
    """The radii to name for the same curve; none for that which an evaluation draws by default."""
    suite, found = result.facts["suite"], list(result.curve.radii[1:])
    usual = [share * result.facts["radius_pixels"] for share in CURVE]
    if result.facts["curve_suite"] != suite or (suite == "spatial" and np.allclose(found, usual)):
        return []
    return found


def _command(text: str) -> Html:
    button = element("button", "Copy", class_="copy", type="button", hidden=True)
    return element("div", button, element("pre", element("code", text), tabindex=0), class_="command")


def _environment(result: Result) -> Html:
    environment = result.facts["environment"]
    packages = environment.get("packages")
    versions = packages if isinstance(packages, dict) else {}
    devices = environment.get("devices")
    shown = [
        f"step {result.facts['step']}",
        *([f"Python {environment['python']}"] if "python" in environment else []),
        *(f"{name} {version}" for name, version in versions.items() if name in ("jax", "flax", "optax") and version),
        *([f"{len(devices)} {devices[0]}"] if isinstance(devices, list) and devices else []),
        *([str(environment["processor"])] if "processor" in environment else []),
    ]
    return element("p", "Evaluated at ", ", ".join(shown), ".")
