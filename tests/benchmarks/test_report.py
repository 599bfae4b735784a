"""Rows are written with their setting and read back; a document's tables and plots are made from them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from benchmarks import plots, robustness, rows
from benchmarks.cli import main
from benchmarks.cost import METHODS
from benchmarks.report import DOCUMENTS, RESULTS
from train.errors import ConfigError

DOCS = Path(__file__).parents[2] / "docs"
ENVIRONMENT = {
    "command": "python -m benchmarks cost",
    "commit": "abc",
    "packages": {"jax": "1.2"},
    "python": "3.11",
    "platform": "cpu",
    "devices": ["cpu"],
    "processor": "Fast One",
    "cores": 2,
}
ROWS = [
    {"method": name, "model": "m", "batch_size": 8, "ratio_to_standard": ratio, "flops_ratio": ratio}
    for name, ratio in (("standard", 1.0), ("flow-gradient", 1.9))
]


def write(path, rows):
    path.write_text(json.dumps({"environment": ENVIRONMENT, "rows": rows}))


def test_a_document_is_filled_in_and_stays_so(tmp_path, capsys):
    write(tmp_path / "cost-cpu.json", ROWS)
    document = tmp_path / "benchmarks.md"
    document.write_text(
        "Before.\n<!-- table cost-cpu.json: method, ratio_to_standard -->\nold\n<!-- end -->\n"
        "<!-- setting cost-cpu.json -->\n<!-- end -->\n<!-- table later.json: method -->\n<!-- end -->\n"
        "<!-- plot benchmarks-cost.png: Costs -->\n<!-- end -->\nAfter.\n"
    )
    arguments = ["report", "--results", str(tmp_path), "--output", str(tmp_path)]
    assert main(arguments) == 0
    once = document.read_text()
    assert "| method | relative time |\n| --- | ---: |\n| standard | 1.00 |\n| flow-gradient | 1.90 |" in once
    assert "`python -m benchmarks cost`: commit abc, JAX 1.2, Python 3.11, 2 cores (Fast One)." in once
    assert "Not measured yet: `later.json`" in once
    assert "![Costs](benchmarks-cost.png)" in once
    assert "old" not in once
    assert once.startswith("Before.")
    assert once.endswith("After.\n")
    assert (tmp_path / "benchmarks-cost.png").stat().st_size > 10_000
    assert main(arguments) == 0
    assert document.read_text() == once
    capsys.readouterr()


@pytest.mark.slow
def test_the_documents_say_what_the_stored_results_say(tmp_path, capsys):
    for name in DOCUMENTS:
        shutil.copy(DOCS / name, tmp_path)
    assert main(["report", "--output", str(tmp_path)]) == 0
    capsys.readouterr()
    for name in DOCUMENTS:
        assert (tmp_path / name).read_text(encoding="utf-8") == (DOCS / name).read_text(encoding="utf-8")


def test_a_column_that_is_not_there_is_one_line(tmp_path, capsys):
    write(tmp_path / "cost-cpu.json", ROWS)
    (tmp_path / "benchmarks.md").write_text("<!-- table cost-cpu.json: method, speed -->\n<!-- end -->\n")
    assert main(["report", "--results", str(tmp_path), "--output", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "speed" in error


def test_accuracies_meet_their_costs_by_the_method(tmp_path):
    write(tmp_path / "cost.json", [{"method": "deformation, 7 steps", "ratio_to_standard": 5.2}])
    run = {"clean_accuracy": 0.9, "robust_accuracy": 0.4, "radius_pixels": 0.5, "examples": 10, "attacks": {"pgd": {}}}
    comparison = tmp_path / "comparison.json"
    comparison.write_text(json.dumps({"deformation-7-steps": run}))
    options = robustness.Options(comparison=comparison, cost=tmp_path / "cost.json")
    (row,) = robustness.run(options)
    assert (row["method"], row["robust_accuracy"], row["ratio_to_standard"]) == ("deformation, 7 steps", 0.4, 5.2)
    assert plots.robustness([row]).axes
    comparison.write_text(json.dumps({"another": run}))
    with pytest.raises(ConfigError, match="another"):
        robustness.run(options)
    comparison.write_text(json.dumps({"deformation-7-steps": {}}))
    with pytest.raises(ConfigError, match="clean_accuracy"):
        robustness.run(options)


def test_a_figure_has_its_setting_and_no_path_of_the_machine(tmp_path):
    setting = rows.setting(["cost", "--json", str(tmp_path / "cost.json")])
    assert setting["command"] == "python -m benchmarks cost --json cost.json"
    assert {"commit", "packages", "devices", "cores"} <= set(setting)


def test_the_table_drops_what_is_the_same_everywhere():
    measured = [{"method": "a", "model": "m", "ms": 1.234}, {"method": "b", "model": "m", "ms": 56.7}]
    assert rows.table(measured).splitlines() == ["| method | ms |", "| -- | -- |", "| a | 1.23 |", "| b | 57 |"]


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_methods_of_stored_results_are_known(path):
    named = {row["method"] for row in rows.read(path)["rows"] if "method" in row}
    assert path.stem.startswith(("storage", "certified", "transfer")) or named <= set(METHODS)  # these name their own
