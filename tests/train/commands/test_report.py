"""The report of runs that were evaluated: it is written from what the evaluations left, and refuses what is damaged."""

from __future__ import annotations

import io
import json
import re
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from running import refused, run
from settings import METHODS, TINY

from deformreg.evaluation import Frames
from train import files, options, results
from train.config import Model

EVIL = "<script>x</script>\udce9"
ATTACK = {
    "robust_accuracy": 0.25, "attacked": 3, "broken": 2, "success_rate": 0.5, "model_calls": 9, "seconds": 1.0,
    "compile_seconds": 2.0, "radius_pixels": 0.5, "budget": {}, "mean_calls": 3.0, "rejected": 0, "settings": {},
    "norms": {"mean_displacement": {"mean": 0.125, "max": None}}, "uses_gradients": True,
}  # fmt: skip
ROW = {
    "method": "standard", "suite": "quick", "radius_pixels": 0.5, "images": "digits, split test", "step": 9,
    "train_seconds": 12.0, "seed": 0, "environment": {"python": "3.11", "devices": ["cpu"]}, "examples": 4,
    "clean_accuracy": 0.75, "robust_accuracy": 0.25, "robust_interval": [0.1, 0.7], "attacks": {"pgd": ATTACK},
    "flags": [{"name": "zero_gradients", "explanation": EVIL, "evidence": {"share": 0.5}}], "model_calls": 20,
    "diagnosis": {"model_calls": 4, "seconds": 1.0, "compile_seconds": 1.0}, "seconds": 9.0, "independent": False,
    "criterion": "classification", "curve_suite": "15 sign steps", "curve_examples": 4,
    "mean_minimal_displacement": 0.3,
    "curve": [{"radius_pixels": r, "accuracy": 0.5, "low": 0.2, "high": 0.8} for r in (0.0, 0.5)],
}  # fmt: skip
CERTIFIED = {
    "family": "translation", "law": "gaussian", "sigma": [0.5], "unit": "px", "norm": "l2 norm of the parameters",
    "num_selection": 10, "num_samples": 1000, "alpha": 0.001, "ceiling": 1.0, "step": 9, "clean_accuracy": 0.75,
    "labels": [0, 1, 1, 0], "predictions": [0, 1, 0, -1], "lower_bounds": [0.9, 0.8, 0.9, 0.4],
    "radii": [0.8, 0.4, 0.9, 0.0], "model_calls": 4040, "seconds": 1.0,
}  # fmt: skip
METRICS = [{"step": step, "loss": 1 / step, "accuracy": 0.5, "seconds": 1.0} for step in range(1, 200)]


def answered(seed=0):
    rng = np.random.default_rng(seed)
    images = np.random.default_rng(1).integers(0, 256, (3, 4, 4, 1)).astype(np.float32) / 255
    predicted = np.array([[0, 1]] * 3)
    flows = rng.uniform(-1, 1, (3, 4, 4, 2)).astype(np.float16).astype(np.float32)
    return Frames(images, np.zeros(3, int), flows, ("edge",) * 3, np.array([0.0, 1.0]), predicted, predicted * 0.5,
                  predicted * 0.25)  # fmt: skip


def write(folder, *, config=TINY, row=ROW, frames=True):
    files.write_text(folder / "config.json", options.to_json(config))
    files.write_json(folder / "evaluation.json", row)
    files.write_text(folder / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in METRICS))
    if frames:
        results.write_frames(folder / "examples.npz", answered(), ["cat", EVIL])
    return folder


def report(capsys, *arguments):
    code, out, err = run(capsys, "report", *arguments)
    return code, out + err


def test_a_report_of_two_runs_is_one_page(capsys, tmp_path):
    first = write(tmp_path / "a&b")
    other = write(tmp_path / "c", config=replace(TINY, method=METHODS["flow-gradient"]))
    assert report(capsys, first, other) == (0, f"report: {tmp_path / 'report.html'}\n")
    text = (tmp_path / "report.html").read_text()
    assert text.count("<article") == 3
    assert text.count("<script>") == 1
    for words in ("a&amp;b", "Loss</strong>", "fit digits-flow", "method.weight", "zero gradients", "12 s"):
        assert words in text, words
    assert report(capsys, first, "--output", tmp_path / "one.html")[0] == 0
    assert "Penalty" not in (tmp_path / "one.html").read_text()  # standard training has none


def test_evaluations_written_elsewhere_are_found(capsys, tmp_path):
    run = write(tmp_path / "run")
    write(tmp_path / "out", row={**ROW, "clean_accuracy": 0.625})
    code, said = report(capsys, run, "--results", tmp_path / "out")
    assert (code, said) == (0, f"report: {tmp_path / 'out' / 'report.html'}\n")
    assert "62.5" in (tmp_path / "out" / "report.html").read_text()


def test_without_examples_there_is_no_gallery(capsys, tmp_path):
    assert report(capsys, write(tmp_path / "run", frames=False))[0] == 0
    text = (tmp_path / "run" / "report.html").read_text()
    assert "<article" not in text
    assert "has no examples.npz: evaluate it again" in text


def test_certified_accuracy_stands_beside_the_curve_with_the_colour_of_its_run(capsys, tmp_path):
    """Two images are certified, the one to 0.4 px and the other to 0.8; a wrong answer and an abstention count as 0."""
    plain, proven = write(tmp_path / "plain"), write(tmp_path / "proven")
    files.write_json(proven / "certified.json", CERTIFIED)
    assert report(capsys, plain, proven)[0] == 0
    text = (tmp_path / "report.html").read_text()
    assert text.index("Robust accuracy</strong>") < text.index("Certified accuracy, translations</strong>")
    chart = text[text.index("Certified accuracy, translations</strong>") :]
    chart = chart[: chart.index("</figure>")]
    shares = {float(at): share for at, share in re.findall(r'"([\d.]+) px: proven ([\d.]+)', chart)}
    assert len(shares) == 41
    assert {radius: shares[radius] for radius in (0.0, 0.375, 0.4, 0.775, 0.8, 1.0)} == {
        0.0: "50.0", 0.375: "50.0", 0.4: "25.0", 0.775: "25.0", 0.8: "0.0", 1.0: "0.0"
    }  # fmt: skip
    assert 'class="line run-1"' in chart
    assert "run-0" not in chart
    assert "proven: gaussian noise, sigma 0.5 px, 1,000 draws for each of 4 images" in text


def test_certificates_of_other_norms_have_charts_of_their_own_and_those_of_other_steps_none(capsys, tmp_path):
    changes = {"a": {}, "b": {"ceiling": 2.0}, "c": {"norm": "l1 norm", "law": "uniform"}, "d": {"step": 3}}
    for name, changed in changes.items():
        files.write_json(write(tmp_path / name) / "certified.json", {**CERTIFIED, **changed})
    assert report(capsys, *(tmp_path / name for name in changes))[0] == 0
    text = (tmp_path / "report.html").read_text()
    titles = "Certified accuracy, translations</strong>"
    assert text.count(titles) == 2
    first = text.split(titles)[1].split("</figure>")[0]
    assert re.findall(r'"0 px: ([^"]*)"', first) == ["a 50.0\xa0% (15.0 to 85.0\xa0%); b 50.0\xa0% (15.0 to 85.0\xa0%)"]
    assert '"2 px: ' in first
    assert "The certificates of d are of step 3, not 9: certify it again." in text


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"family": EVIL}, "is no certification of this version (family): certify the run again"),
        ({"radii": [0.8, -1.0, 0.9, 0.0]}, "is no certification of this version (radii.1)"),
        ({"radii": [0.8]}, "its lists differ in length"),
        ({"ceiling": 0}, "is no certification of this version (ceiling)"),
        ({"labels": []}, "is no certification of this version (labels)"),
    ],
)
def test_a_damaged_certification_is_one_line(capsys, tmp_path, changed, said):
    run = write(tmp_path / "run")
    files.write_json(run / "certified.json", {**CERTIFIED, **changed})
    assert said in refused(capsys, "report", run)


OTHERS = [{field: 2 * ROW[field]} for field in ("suite", "radius_pixels", "images", "examples")]


@pytest.mark.parametrize(
    "other",
    [
        *OTHERS,
        {"sample_seed": 0},
        {"quantize": True},
        {"independent": True},
        {"curve_suite": "quick"},
        {"curve_examples": 1},
    ],
)
def test_only_what_compares_stands_side_by_side(capsys, tmp_path, other):
    code, said = report(capsys, write(tmp_path / "a"), write(tmp_path / "b", row={**ROW, **other}))
    assert code == 2
    assert said.startswith("error: b was evaluated ")
    assert said.count("\n") == 1
    assert not (tmp_path / "report.html").exists()


def test_runs_attacked_in_other_numbers_of_steps_do_not_compare(capsys, tmp_path):
    rows = [{**ROW, "attacks": {"multi-step": {**ATTACK, "settings": {"num_steps": steps}}}} for steps in (50, 50, 20)]
    first, second, other = (write(tmp_path / name, row=row) for name, row in zip("abc", rows, strict=True))
    assert report(capsys, first, second)[0] == 0
    text = (tmp_path / "report.html").read_text()
    said = "whose --evaluation.steps is 50"  # beside the command, as the config of the run has another number
    assert (said in text) == (TINY.evaluation.steps != 50)
    assert report(capsys, other)[0] == 0
    assert "whose --evaluation.steps is 20" in (other / "report.html").read_text()
    said = "error: c was evaluated with other steps of multi-step than a ([20]; [50])"
    assert said in refused(capsys, "report", first, other)


def test_the_commands_name_a_network_of_ones_own(capsys, tmp_path):
    config = replace(TINY, model=Model(name="package.nets:Net"))
    assert report(capsys, write(tmp_path / "run", config=config))[0] == 0
    text = (tmp_path / "run" / "report.html").read_text()
    assert len(re.findall(r"python -m train (?:fit|evaluate) [^\n]*--model\.name package\.nets:Net", text)) == 2


def test_what_cannot_be_read_is_one_line(capsys, tmp_path):
    assert "at least one run folder" in refused(capsys, "report")
    run = write(tmp_path / "run")
    assert "takes each run once" in refused(capsys, "report", run, run)
    assert "a folder: --output names a file" in refused(capsys, "report", run, "--output", tmp_path)
    assert "choose another --output" in refused(capsys, "report", run, "--output", run / "config.json" / "x.html")
    for row in ({**ROW, "clean_accuracy": 1.5}, {**ROW, "curve": []}, {**ROW, "flags": 3}, [], {}):
        files.write_json(run / "evaluation.json", row)
        assert "is no evaluation of this version" in refused(capsys, "report", run)
    (run / "evaluation.json").write_text("{")
    assert "cannot be read" in refused(capsys, "report", run)
    (run / "evaluation.json").unlink()
    assert "holds no evaluation: `python -m train evaluate` writes one" in refused(capsys, "report", run)


def test_examples_come_back_as_they_were(tmp_path):
    path = tmp_path / "examples.npz"
    results.write_frames(path, answered(), ["cat", EVIL])
    found, names = results.read_frames(path)
    assert names == ("cat", EVIL)
    for before, after in zip(answered(), found, strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize(
    "damage",
    [
        {"images": np.zeros((3, 4, 4, 1))},
        {"flows": np.zeros((3, 4, 4, 3), np.float16)},
        {"flows": np.full((3, 4, 4, 2), np.nan, np.float16)},
        {"predicted": np.zeros((3, 5), int)},
        {"boundaries": np.array(["edge", "edge", "<b>"])},
        {"labels": np.array([None] * 3)},
    ],
)
def test_damaged_examples_are_refused(capsys, tmp_path, damage):
    run = write(tmp_path / "run")
    with np.load(run / "examples.npz") as stored:
        arrays = dict(stored)
    np.savez(run / "examples.npz", **{**arrays, **damage})
    assert "examples.npz cannot be read" in refused(capsys, "report", run)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (10**14, 4)})
    with zipfile.ZipFile(run / "examples.npz", "w") as archive:
        archive.writestr("class_names.npy", header.getvalue())
    assert "examples.npz cannot be read" in refused(capsys, "report", run)
    (run / "examples.npz").write_bytes(b"PK nothing")
    assert "examples.npz cannot be read" in refused(capsys, "report", run)
