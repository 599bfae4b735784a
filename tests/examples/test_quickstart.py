"""The notebook runs from top to bottom, and its stored outputs are small."""

import json
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples" / "quickstart.ipynb"


def code_cells():
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def test_every_cell_was_run_in_order_and_the_outputs_are_small():
    assert [cell["execution_count"] for cell in code_cells()] == list(range(1, len(code_cells()) + 1))
    assert NOTEBOOK.stat().st_size < 300_000
    assert not any(output["output_type"] == "error" for cell in code_cells() for output in cell["outputs"])


@pytest.mark.slow
def test_the_notebook_runs(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    names = {}
    for number, cell in enumerate(code_cells(), start=1):
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
    standard, penalized = names["curves"].values()
    assert penalized.mean_minimal_displacement > 1.2 * standard.mean_minimal_displacement
    assert len(names["shown"]) == 3
