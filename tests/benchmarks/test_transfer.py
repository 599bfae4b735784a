"""Deformations that were made against one network are shown to the others of its setting."""

from __future__ import annotations

import pytest

from benchmarks import json_lines, plots, rows
from benchmarks import transfer as benchmark
from benchmarks.claims import grid
from benchmarks.claims.cell import MEASURES
from train import options
from train.errors import ConfigError

HELD_OUT = {"examples": 9, "clean_accuracy": 0.9, "robust_accuracy": 0.1}


def small_setting():
    """Digits and a small network, with one strength of two methods."""
    whole = next(one for one in grid.SETTINGS if one.name.startswith("digits"))
    config = grid.replace(whole.config, epochs=4, devices=1, model=grid.replace(whole.config.model, width=0.25))
    return whole._replace(
        name="small", config=config, examples=60, strengths={"standard": (0.0,), "deformation": (0.3,)}
    )


def finished(cell):
    names = {"name": cell.name, "setting": cell.setting.name, "method": cell.method, "strength": cell.strength}
    counts = {"examples": cell.setting.examples, "clean_examples": cell.setting.held_out}
    measures = {name: {} for name in MEASURES} | {"held_out": HELD_OUT | counts}
    measures["seen"] = {"radii": list(cell.setting.budgets.seen)}
    return names | {"seed": cell.seed, "config": options.to_tree(cell.config)} | measures


@pytest.mark.slow
def test_networks_see_their_own_deformations_and_those_of_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(grid, "SETTINGS", (small_setting(),))
    file = tmp_path / "claims.jsonl"
    for cell in grid.cells():
        if cell.seed == 0:
            json_lines.append(file, finished(cell))
    standard, robust = benchmark.run(benchmark.Options(setting=("small",), lines=file))
    assert [row["method"] for row in (standard, robust)] == ["standard", "deformation"]
    for row, other in ((standard, "deformation"), (robust, "standard")):
        assert row["own"] == row["from"][row["method"]] < row["from"][other] <= row["clean_accuracy"]
        assert row["transferred"] == row["from"][other]  # of two networks, there is one other
        assert (row["examples"], row["radius_pixels"]) == (60, 0.2)
    assert "| deformation |" in rows.table([standard, robust])
    texts = [text.get_text() for text in plots.transfer([standard, robust]).axes[0].texts]
    assert texts == [f"{100 * row['from'][name]:.0f}" for row in (standard, robust) for name in row["from"]]


def test_what_cannot_be_compared_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"--setting 'digit'.*digits/small-cnn-relu"):
        benchmark.run(benchmark.Options(setting=("digit",)))
    with pytest.raises(ConfigError, match=r"--methods 'flows'.*flow gradient"):
        benchmark.run(benchmark.Options(methods=("flows",)))
    with pytest.raises(ConfigError, match=r"no finished cells of matched accuracy of digits/small-cnn-relu"):
        benchmark.run(benchmark.Options(setting=("digits/small-cnn-relu",), lines=tmp_path / "claims.jsonl"))
