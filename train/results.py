"""What evaluations and certifications have written, read back for a report: numbers, images with answers."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from annotated_types import Interval, MinLen
from pydantic import ConfigDict, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from deformreg.attacks.attack import Budget
from deformreg.certification import Certificates
from deformreg.evaluation import AttackOutcome, Curve, Evaluation, Flag, Frames, Spent
from train import files
from train.errors import RunError, one_line
from train.smoothing import FamilyName, LawName

NUMBERS, EXAMPLES, CERTIFIED = "evaluation.json", "examples.npz", "certified.json"

_LARGEST = 64 << 20
"""Bytes of a file."""

_NONE = np.zeros(0)
"""In place of the masks over the examples, which no file has."""

Share = Annotated[float, Interval(ge=0, le=1)]
Number = Annotated[int, Interval(ge=0)]
Amount = Annotated[float, Interval(ge=0)]


class Result(NamedTuple):
    """An evaluation that was written into a folder.

    Attributes:
        facts: what the trainer wrote beside the evaluation.
        evaluation: without masks.
        curve: likewise.
        frames: the first test images; None if there is no file of them.
        class_names: one per label; empty without frames.
    """

    facts: Facts
    evaluation: Evaluation
    curve: Curve
    frames: Frames | None
    class_names: tuple[str, ...]


class Certification(NamedTuple):
    """A certification that was written into a folder.

    Attributes:
        facts: how it was made.
        certificates: with radii in the unit of the facts.
        labels: int[n].
    """

    facts: CertifiedFacts
    certificates: Certificates
    labels: np.ndarray


class Facts(TypedDict):
    """How a run was trained and evaluated, as ``evaluation.json`` has it."""

    method: str
    suite: str
    radius_pixels: Annotated[float, Interval(gt=0)]
    images: str
    step: Number
    train_seconds: Amount
    seed: Number
    quantize: bool
    sample_seed: Number | None
    curve_suite: str
    environment: dict[str, Any]


class _Point(TypedDict):
    radius_pixels: Amount
    accuracy: Share
    low: Share
    high: Share


class _Outcome(TypedDict):
    robust_accuracy: Share
    attacked: Number
    broken: Number
    success_rate: Share | None
    model_calls: Number
    seconds: Amount
    compile_seconds: Amount
    radius_pixels: float | None
    norms: dict[str, dict[str, float | None]]
    mean_calls: Amount
    rejected: Number
    uses_gradients: bool
    settings: dict[str, Any]


class _Spent(TypedDict):
    model_calls: Number
    seconds: Amount
    compile_seconds: Amount


class _Flag(TypedDict):
    name: str
    explanation: str
    evidence: dict[str, Any]


class _Numbers(Facts):
    examples: Number
    clean_accuracy: Share
    robust_accuracy: Share
    robust_interval: tuple[Share, Share]
    attacks: dict[str, _Outcome]
    flags: list[_Flag]
    diagnosis: _Spent
    model_calls: Number
    seconds: Amount
    independent: bool
    criterion: str
    curve: Annotated[list[_Point], MinLen(1)]
    curve_examples: Number
    mean_minimal_displacement: Amount


class CertifiedFacts(TypedDict):
    """How a run was certified, as ``certified.json`` has it."""

    family: FamilyName
    law: LawName
    sigma: list[Amount]
    unit: str
    step: Number
    clean_accuracy: Share


class _Certified(CertifiedFacts):
    norm: str
    ceiling: Annotated[float, Interval(gt=0)]
    num_selection: Number
    num_samples: Number
    alpha: Share
    model_calls: Number
    seconds: Amount
    labels: Annotated[list[Annotated[int, Interval(ge=0, lt=1 << 31)]], MinLen(1)]
    predictions: list[Annotated[int, Interval(ge=-1, lt=1 << 31)]]
    lower_bounds: list[Share]
    radii: list[Amount]


_UNSAID: dict[str, Any] = {"quantize": False, "sample_seed": None}
"""What holds for evaluations that were written before they said it."""

_Numbers.__pydantic_config__ = ConfigDict(extra="ignore", allow_inf_nan=False)  # type: ignore[attr-defined]
_Certified.__pydantic_config__ = ConfigDict(extra="ignore", allow_inf_nan=False)  # type: ignore[attr-defined]
_NUMBERS, _CERTIFIED = TypeAdapter(_Numbers), TypeAdapter(_Certified)


def read(folder: Path) -> Result:
    """Reads an evaluation back.

    Args:
        folder: into which `evaluate` wrote: the run folder, or one below its `--output`.

    Raises:
        RunError: there is none, or it was not written by this program.
    """
    try:
        numbers = _read(folder / NUMBERS, _NUMBERS, _UNSAID, kind="evaluation", again="evaluate")
    except FileNotFoundError as error:
        raise RunError(
            f"{folder} holds no evaluation: `python -m train evaluate` writes one; if it wrote elsewhere, --results "
            "names the folder that was its --output, or for a part of the runs the folder below it that holds them"
        ) from error
    frames, class_names = read_frames(folder / EXAMPLES)
    return Result(numbers, _evaluation(numbers), _curve(numbers), frames, class_names)


def read_certification(folder: Path) -> Certification | None:
    """Reads a certification back; None where there is none.

    Raises:
        RunError: the file was not written by this program.
    """
    path = folder / CERTIFIED
    try:
        numbers = _read(path, _CERTIFIED, {}, kind="certification", again="certify")
    except FileNotFoundError:
        return None
    arrays = {name: np.array(numbers[name]) for name in ("labels", "predictions", "lower_bounds", "radii")}
    if len({len(array) for array in arrays.values()}) > 1:
        raise RunError(f"{path} cannot be read (its lists differ in length): certify the run again")
    fields = {name: arrays.get(name, numbers[name]) for name in Certificates._fields}
    return Certification(numbers, Certificates(**fields), arrays["labels"])


def _read(path: Path, adapter: TypeAdapter[Any], defaults: dict[str, Any], *, kind: str, again: str) -> Any:
    """The content of a JSON file; `kind` and `again` say in errors what it is and which command writes it."""
    try:
        content = files.read_json(path, limit=_LARGEST)
        return adapter.validate_python({**defaults, **content} if isinstance(content, dict) else content)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise RunError(f"{path} is no {kind} of this version ({where}): {again} the run again") from error
    except ValueError as error:
        raise RunError(f"{path} cannot be read ({one_line(error)}): {again} the run again") from error


def _evaluation(numbers: _Numbers) -> Evaluation:
    outcomes = tuple(
        AttackOutcome(
            **_without_none(outcome), name=name,
            budget=Budget(outcome["radius_pixels"], "", ""), attacked_mask=_NONE, broken_mask=_NONE,
        )
        for name, outcome in numbers["attacks"].items()
    )  # fmt: skip
    fields = {name: numbers[name] for name in Evaluation._fields if name in numbers}  # type: ignore[literal-required]
    changed = {
        "attacks": outcomes,
        "flags": tuple(Flag(**flag) for flag in numbers["flags"]),
        "diagnosis": Spent(**numbers["diagnosis"]),
    }
    return Evaluation(**{**fields, **changed, "correct_mask": _NONE, "standing_mask": _NONE})


def _without_none(outcome: _Outcome) -> dict[str, Any]:
    """An outcome without the norms that were infinite, for which JSON has no number."""
    norms = {
        name: {kind: value for kind, value in values.items() if value is not None}
        for name, values in outcome["norms"].items()
    }
    return {**outcome, "norms": norms}


def _curve(numbers: _Numbers) -> Curve:
    points = numbers["curve"]
    return Curve(
        examples=numbers["curve_examples"],
        radii=tuple(point["radius_pixels"] for point in points),
        accuracies=tuple(point["accuracy"] for point in points),
        intervals=tuple((point["low"], point["high"]) for point in points),
        mean_minimal_displacement=numbers["mean_minimal_displacement"],
        smallest_radii=_NONE,
        flags=(),
        model_calls=0,
        seconds=0.0,
    )


def write_frames(path: Path, frames: Frames, class_names: Sequence[str]) -> None:
    """Writes images with the network's answers; images with 8 bits, flows with 16."""
    arrays: dict[str, Any] = {
        **frames._asdict(),
        "images": np.round(np.clip(frames.images, 0, 1) * 255).astype(np.uint8),
        "flows": frames.flows.astype(np.float16),
        "boundaries": np.array(frames.boundaries),
        "class_names": np.array(class_names),
    }
    data = io.BytesIO()
    np.savez_compressed(data, **arrays)
    files.write_bytes(path, data.getvalue())


def read_frames(path: Path) -> tuple[Frames | None, tuple[str, ...]]:
    """Reads what `write_frames` wrote, and the names of the classes; None where there is no file.

    Raises:
        RunError: the file was not written by this program.
    """
    try:
        data = io.BytesIO(files.read_bytes(path, limit=_LARGEST))
        with zipfile.ZipFile(data) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > 8 * _LARGEST:
                raise ValueError("it is too large")
        with np.load(data, allow_pickle=False) as arrays:
            return _frames(dict(arrays))
    except FileNotFoundError:
        return None, ()
    except (
        ValueError, LookupError, TypeError, EOFError, MemoryError, zipfile.BadZipFile, NotImplementedError
    ) as error:  # fmt: skip
        raise RunError(f"{path} cannot be read ({one_line(error)}): evaluate the run again") from error


def _frames(arrays: dict[str, np.ndarray]) -> tuple[Frames, tuple[str, ...]]:
    """The frames in arrays. Raises `ValueError` for arrays of other shapes or types."""
    class_names = tuple(map(str, arrays.pop("class_names")))
    count, height, width, _ = arrays["images"].shape
    answers = (count, *arrays["shares"].shape)
    expected = {
        "images": ((*arrays["images"].shape,), np.uint8), "labels": ((count,), np.integer),
        "flows": ((count, height, width, 2), np.float16), "boundaries": ((count,), np.str_),
        "shares": (answers[1:], np.floating), "predicted": (answers, np.integer),
        "confidences": (answers, np.floating), "label_confidences": (answers, np.floating),
    }  # fmt: skip
    for name, (shape, kind) in expected.items():
        array = arrays[name]
        if array.shape != shape or not np.issubdtype(array.dtype, kind):
            raise ValueError(f"its array {name} is of another shape or type")
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            raise ValueError(f"its array {name} is not finite")
    if len(answers) != 2 or math.prod(answers) == 0 or not set(arrays["boundaries"]) <= {"zeros", "edge", "reflect"}:
        raise ValueError("it holds no images, or boundaries that do not exist")
    values: dict[str, Any] = {name: arrays[name] for name in expected}
    values["images"], values["flows"] = values["images"] / np.float32(255), values["flows"].astype(np.float32)
    return Frames(**{**values, "boundaries": tuple(map(str, values["boundaries"]))}), class_names
