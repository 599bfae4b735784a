"""Evaluations and curves as JSON (complete), CSV, Markdown and HTML."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deformreg.evaluation.curves import Curve
from deformreg.evaluation.frames import Frames
from deformreg.evaluation.html.overview import PER_COMPONENT, lead, sections
from deformreg.evaluation.html.page import page
from deformreg.evaluation.results import Evaluation

COLUMNS = ("robust_accuracy", "attacked", "broken", "model_calls", "seconds", "compile_seconds", "radius_pixels")


def to_dict(evaluation: Evaluation) -> dict[str, Any]:
    """Converts an evaluation to numbers, strings, lists and dictionaries; `attacks` is by name, in the order run.

    Args:
        evaluation: from `deformreg.evaluate`.

    Returns:
        A dictionary that `json` can write, without the masks over the examples.
    """
    rows = {}
    for outcome in evaluation.attacks:
        row = outcome._asdict()
        del row["name"], row["attacked_mask"], row["broken_mask"]
        rows[outcome.name] = {**row, "budget": outcome.budget._asdict()}
    data = {
        **evaluation._asdict(),
        "robust_interval": list(evaluation.robust_interval),
        "attacks": rows,
        "flags": [flag._asdict() for flag in evaluation.flags],
        "diagnosis": evaluation.diagnosis._asdict(),
    }
    del data["correct_mask"], data["standing_mask"]
    plain: dict[str, Any] = _plain(data)
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None  # JSON has no infinities
    return value


def to_json(evaluation: Evaluation) -> str:
    """Writes an evaluation as JSON.

    Args:
        evaluation: from `deformreg.evaluate`.

    Returns:
        The text, indented.
    """
    return json.dumps(to_dict(evaluation), indent=2, allow_nan=False) + "\n"


def to_csv(evaluation: Evaluation) -> str:
    """Writes an evaluation as CSV: one line per attack.

    Args:
        evaluation: from `deformreg.evaluate`.

    Returns:
        The text, with a header; a field without a value is empty.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("attack", *COLUMNS))
    for outcome in evaluation.attacks:
        writer.writerow((outcome.name, *(getattr(outcome, column) for column in COLUMNS)))
    return text.getvalue()


def curve_points(curve: Curve) -> list[dict[str, float]]:
    """Converts a curve to plain data.

    Args:
        curve: from `deformreg.accuracy_curve`.

    Returns:
        One dictionary per radius: `radius_pixels`, `accuracy`, and its interval's ends `low` and `high`.
    """
    return [
        {"radius_pixels": radius, "accuracy": accuracy, "low": low, "high": high}
        for radius, accuracy, (low, high) in zip(curve.radii, curve.accuracies, curve.intervals, strict=True)
    ]


def curves_to_csv(curves: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Writes curves as CSV: one line per model and radius.

    Args:
        curves: by the models' names, each from `curve_points`.

    Returns:
        The text, with a header.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("model", "radius_pixels", "accuracy", "low", "high"))
    for name, points in curves.items():
        writer.writerows((name, *point.values()) for point in points)
    return text.getvalue()


def to_markdown(evaluation: Evaluation) -> str:
    """Writes an evaluation as a Markdown table: an attack a row, the worst case last, red flags below.

    Args:
        evaluation: from `deformreg.evaluate`.

    Returns:
        The text.
    """
    lines = ["| attack | robust accuracy | attacked | broken | model calls | seconds |", "|---|---|---|---|---|---|"]
    lines.append(f"| none | {evaluation.clean_accuracy:.1%} | | | | |")
    lines += [
        f"| {outcome.name} | {outcome.robust_accuracy:.1%} | {outcome.attacked} | {outcome.broken} "
        f"| {outcome.model_calls} | {outcome.seconds + outcome.compile_seconds:.1f} |"
        for outcome in evaluation.attacks
    ]
    low, high = evaluation.robust_interval
    lines.append(f"| **worst case** | **{evaluation.robust_accuracy:.1%}** ({low:.1%} to {high:.1%}) | | | | |")
    if evaluation.criterion != "classification":
        lines += ["", f"Accuracy is the share of images that are right: {evaluation.criterion}."]
    flags = [f"- **{flag.name}**: {flag.explanation} {json.dumps(flag.evidence)}" for flag in evaluation.flags]
    return "\n".join([*lines, "", *(["Red flags:", "", *flags] if flags else ["No red flags."])]) + "\n"


def to_html(
    evaluations: Mapping[str, Evaluation],
    *,
    curves: Mapping[str, Curve] | None = None,
    frames: Mapping[str, Frames] | None = None,
    class_names: Sequence[str] = (),
    title: str = "Robustness to deformations",
    budget: str = PER_COMPONENT,
) -> str:
    """Writes evaluations as one HTML page of less than 2 MB that holds its pictures, style and script.

    The page loads nothing. It has the models side by side, red flags, accuracy against the budget, a gallery with a
    slider that moves images along the flows that deform them, and what each attack did.

    Args:
        evaluations: from `deformreg.evaluate`, by the models' names, on the same images.
        curves: from `deformreg.accuracy_curve`, by the models' names; None leaves the chart out.
        frames: from `deformreg.evaluation.frames`, by the models' names, of the same images with values in [0, 1]; None
            leaves the gallery out. It shows up to eight images, fewer if they are large.
        class_names: one per label; a label without a name is shown as its number.
        title: the page's heading.
        budget: what the radius of the curves bounds, in pixels.

    Returns:
        The text of the file.

    Raises:
        ValueError: no evaluations, curves or frames of other models, or frames of different images, labels or steps.
    """
    curves, frames = curves or {}, frames or {}
    if not evaluations:
        raise ValueError("evaluations must be one or more by the models' names, got none")
    for name, given in (("curves", curves), ("frames", frames)):
        if others := [model for model in given if model not in evaluations]:
            raise ValueError(f"{name} must be of models in evaluations {list(evaluations)}, got {others}")
    shown = [(each.images, each.labels, each.shares) for each in frames.values()]
    if not all(all(map(np.array_equal, shown[0], other)) for other in shown[1:]):
        raise ValueError("frames must be of the same images, labels and steps for all models: give each the same ones")
    return page(title, lead(evaluations), sections(evaluations, curves, frames, class_names, budget=budget))
