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
    outputs = [output for cell in code_cells() for output in cell["outputs"]]
    assert not any(output["output_type"] == "error" for output in outputs)
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2


@pytest.mark.slow
def test_the_notebook_runs(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    names = {}
    for number, cell in enumerate(code_cells(), start=1):
        source = "".join(line for line in cell["source"] if not line.startswith("%"))  # the notebook's own commands
        exec(compile(source, f"cell {number}", "exec"), names)
    standard, penalized = names["curves"].values()
    assert penalized.mean_minimal_displacement > 1.2 * standard.mean_minimal_displacement
    assert len(names["shown"]) == 3
