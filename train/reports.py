"""Reports of evaluated and certified runs: where they go, JSON with all numbers, CSV, Markdown tables."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from deformreg.evaluation.reports import curves_to_csv, to_csv, to_markdown
from train import files, pictures, results, runs
from train.certification import Certified
from train.errors import RunError, printable
from train.evaluation import Study, budget
from train.restored import Opened, Trained, check_same
from train.smoothing import FAMILIES

Row = Mapping[str, Any]

LENIENT = "multi-step"
"""The attack of the released protocol."""


def places(folders: Sequence[Path], output: Path | None) -> list[Path]:
    """The folder of each run's report: the run folder, or one below `output`.

    Below `output` a run keeps its path relative to the folder that holds all of them; a single run's is `output`.
    """
    if output is None:
        return list(folders)
    whole = [os.path.abspath(folder) for folder in folders]
    above = os.path.commonpath(whole)
    return [output / os.path.relpath(folder, above) for folder in whole]


def check_writable(folders: Sequence[Path], file: Path | None, *, option: str = "--json") -> None:
    """Raises `RunError`, before hours of work, if results cannot be written into folders and to a file.

    Writes nothing. `option` names the file in errors.
    """
    places = [(folder, "--output") for folder in folders]
    if file:
        if file.is_dir():
            raise RunError(f"{file} is a folder: {option} names a file")
        places.append((file.parent, option))
    for folder, named in places:
        runs.check_name(folder)
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not existing.is_dir():
            raise RunError(f"{existing} is a file, not a folder: choose another {named}")
        if not os.access(existing, os.W_OK | os.X_OK):
            raise RunError(f"{folder}: nothing can be written into {existing}; choose another {named}")


def guard(folder: Path, run: Trained | Opened) -> Callable[[], None]:
    """What to call before anything is written into a report's folder: inside the run folder, that must be the same."""
    inside = Path(os.path.abspath(folder)).is_relative_to(os.path.abspath(run.place.folder))
    return partial(check_same, run) if inside else lambda: None


def table(rows: Mapping[str, Row]) -> str:
    """The runs side by side as a Markdown table, accuracies in percent."""
    attacks = list(dict.fromkeys(name for row in rows.values() for name in row["attacks"]))
    lenient = {LENIENT} if any(row["suite"] == "released" for row in rows.values()) else set()
    titles = [f"{name} (released, lenient)" if name in lenient else name for name in attacks]
    header = ["run", "clean", *titles, "all attacks", "mean px", "training"]
    lines = [header, [":--", *["--:"] * (len(header) - 1)]]
    for name, row in rows.items():
        under = [_percent(row["attacks"][attack]["robust_accuracy"]) for attack in attacks]
        overall = f"{_percent(row['robust_accuracy'])} [{', '.join(_percent(end) for end in row['robust_interval'])}]"
        lines.append([name, _percent(row["clean_accuracy"]), *under, overall])
        lines[-1] += [f"{row['mean_minimal_displacement']:.3g}", f"{row['train_seconds']:.0f} s"]
    return _aligned(lines)


def _aligned(lines: list[list[str]]) -> str:
    """A Markdown table with padded columns, readable in a terminal; the second line is its rule."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    padded[1] = [_rule(cell, width) for cell, width in zip(lines[1], widths, strict=True)]
    return "\n".join("| " + " | ".join(line) + " |" for line in padded)


def _rule(cell: str, width: int) -> str:
    return ":" + "-" * (width - 1) if cell.startswith(":") else "-" * (width - 1) + ":"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _caption(row: Row) -> str:
    lenient = (
        f"`{LENIENT}` is the released protocol, which counts the last iterate only: lenient, to compare with published "
        "numbers. "
    )
    return (
        f"Accuracy in percent of {row['examples']} test images; suite `{row['suite']}` at {row['radius_pixels']:g} px, "
        f"the largest {budget(row['suite'])}; in brackets Wilson's 95 % interval. "
        f"{lenient if row['suite'] == 'released' else ''}All attacks counts every image that an attack broke within "
        "this radius, those of the curve included. Mean px: the mean of the smallest "
        f"budgets that break an image, counted up to {row['curve'][-1]['radius_pixels']:g} px "
        f"({row['curve_examples']} images, {row['curve_suite']})."
    )


def write_run_report(
    folder: Path, name: str, study: Study, class_names: Sequence[str], check: Callable[[], None]
) -> None:
    """Prints the table; if the folder passes `check`, writes its numbers, tables and pictures."""
    row = study.row
    print(f"\n{table({name: row})}\n{_flags(row)}", end="", flush=True)
    check()
    files.write_json(folder / "evaluation.json", row)
    files.write_text(folder / "evaluation.csv", to_csv(study.evaluation))
    files.write_text(folder / "curve.csv", curves_to_csv({name: row["curve"]}))
    text = f"# {name}\n\n{_caption(row)}\n\n{table({name: row})}\n\n{to_markdown(study.evaluation)}"
    files.write_text(folder / "evaluation.md", text + "\n![curve](curve.png)\n\n![examples](examples.png)\n")
    pictures.save_examples(folder / "examples.png", study, class_names)
    results.write_frames(folder / results.EXAMPLES, study.frames, class_names)
    pictures.save_curves(folder / "curve.png", {name: row})
    print(printable(f"report: {folder / 'evaluation.md'}"))


def _flags(row: Row) -> str:
    return "".join(f"Red flag `{flag['name']}`: {flag['explanation']}\n" for flag in row["flags"])


def write_comparison(folder: Path, studies: Mapping[str, Study], class_names: Sequence[str]) -> None:
    """Writes ``comparison.json``, ``.md`` and ``.png`` of several runs; prints the table and the paths."""
    rows = {name: study.row for name, study in studies.items()}
    first = next(iter(rows.values()))
    files.write_json(folder / "comparison.json", {name: _summary(row) for name, row in rows.items()})
    files.write_text(
        folder / "comparison.md",
        f"# Comparison\n\n{_caption(first)}\n\n{table(rows)}\n\n{''.join(map(_flags, rows.values()))}"
        "![comparison](comparison.png)\n",
    )
    files.write_text(folder / "curves.csv", curves_to_csv({name: row["curve"] for name, row in rows.items()}))
    pictures.save_comparison(folder / "comparison.png", studies, class_names)
    print(f"\n{_caption(first)}\n\n{table(rows)}\n")
    print(printable(f"table:   {folder / 'comparison.md'}"))
    print(printable(f"picture: {folder / 'comparison.png'}"))


def _summary(row: Row) -> dict[str, Any]:
    summary = {
        "method": row["method"],
        "clean_accuracy": row["clean_accuracy"],
        "robust_accuracy": row["robust_accuracy"],
        "radius_pixels": row["radius_pixels"],
        "examples": row["examples"],
        "mean_minimal_displacement": row["mean_minimal_displacement"],
        "train_seconds": row["train_seconds"],
        "attacks": row["attacks"],
    }
    if "multi-step" in row["attacks"]:
        summary["multi_step_accuracy"] = row["attacks"]["multi-step"]["robust_accuracy"]
    return summary


def write_certified(folder: Path, name: str, certified: Certified, check: Callable[[], None]) -> None:
    """Prints the table; if the folder passes `check`, writes ``certified.json``, ``.md`` and ``.png``."""
    row = certified.row
    lines = [[f"radius, {row['unit']}", f"certified, % of {row['examples']}", "95 % interval"], [":--", "--:", "--:"]]
    lines += [
        [f"{point['radius']:g}", _percent(point["accuracy"]), f"{_percent(point['low'])}, {_percent(point['high'])}"]
        for point in row["curve"]
    ]
    text = f"{_certified_caption(row)}\n\n{_aligned(lines)}\n"
    print(f"\n{text}", end="", flush=True)
    check()
    files.write_json(folder / "certified.json", row)
    files.write_text(folder / "certified.md", f"# {name}, certified\n\n{text}\n![certified accuracy](certified.png)\n")
    pictures.save_certified(folder / "certified.png", name, certified)
    print(printable(f"report: {folder / 'certified.md'}"))


def _certified_caption(row: Row) -> str:
    return (
        f"Certified accuracy of the smoothed classifier: the share of {row['examples']} test images that it classifies "
        f"correctly, provably so under every {FAMILIES[row['family']].threat} whose size ({row['norm']}, in "
        f"{row['unit']}) is at most the radius. {row['law'].capitalize()} noise, sigma "
        f"{' '.join(f'{value:g}' for value in row['sigma'])}; {row['num_samples']} draws per image; each certificate "
        f"holds with probability {1 - row['alpha']:g}. It covers parameters added to the noise inside the same warp of "
        f"the clean image, not images that are already deformed. Clean accuracy of the network itself "
        f"{_percent(row['clean_accuracy'])} %; the smoothed classifier abstains on {row['abstained']}; mean radius "
        f"{row['mean_radius']:.3g}, ceiling {row['ceiling']:.3g}."
    )
