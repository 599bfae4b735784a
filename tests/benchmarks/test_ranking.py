"""The ranking of attacks: what optimality is, and that every attack keeps to its passes."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks import ranking
from benchmarks.cli import main
from deformreg.evaluation import Suite
from train.errors import ConfigError

RADII = [1.0, 2.0, 4.0]


def line(attack, smallest, passes=20, **entries):
    made = {"model": "m", "attack": attack, "passes": passes, "examples": len(smallest), "radii": RADII}
    return made | {"smallest": smallest} | entries


@pytest.mark.parametrize("passes", [20, 100, 500])
@pytest.mark.parametrize("name", ranking.ATTACKS)
def test_no_attack_spends_more_than_its_passes(name, passes):
    attack = ranking.ATTACKS[name](0.5, passes)
    spent = attack.max_steps * attack.calls_per_step * (2 if attack.uses_gradients else 1)
    assert 0.8 * passes <= spent <= passes
    assert Suite({name: lambda radius: attack}).names == (name,)


def test_optimality_is_the_share_of_the_area_that_the_best_radii_leave():
    lines = [
        line("a", [0.0, 1.0, 2.0, None]),  # the first image is a clean error: it does not count
        line("b", [0.0, 2.0, 1.0, None]),
        line("none", [0.0, None, None, None]),
        line("both", [0.0, 1.0, 1.0, 4.0], passes=100),
    ]
    found = ranking.optimality(lines)
    assert found["m", "both", 100] == 1
    assert found["m", "a", 20] == found["m", "b", 20] == pytest.approx((3.5 + 2.5 + 0) / (3.5 + 3.5 + 1))
    assert found["m", "none", 20] == 0
    assert ranking.optimality([line("none", [None])]) == {("m", "none", 20): 1.0}


def test_a_better_attack_changes_the_figures_of_the_others():
    lines = [line("a", [2.0]), line("b", [4.0])]
    assert ranking.optimality(lines)["m", "a", 20] == 1
    lines.append(line("c", [1.0]))
    assert ranking.optimality(lines)["m", "a", 20] == pytest.approx(2.5 / 3.5)


def test_the_table_has_the_strongest_attack_first():
    lines = [line("weak", [4.0, None]), line("strong", [1.0, 1.0]), line("strong", [1.0, 1.0], passes=100)]
    assert ranking.table(lines).splitlines() == [
        "| attack | m, 20 passes | m, 100 passes |",
        "| --- | ---: | ---: |",
        "| strong | 100 | 100 |",
        "| weak | 14 |  |",
    ]


def test_lines_are_read_again_and_reported(tmp_path, capsys):
    file = tmp_path / "ranking.jsonl"
    lines = [line("a", [4.0]), line("a", [1.0]), line("b", [2.0])]
    file.write_text("".join(json.dumps(one) + "\n" for one in lines) + '{"half')
    assert ranking.read(file) == lines[1:]
    document = tmp_path / "attacks.md"
    document.write_text("<!-- ranking ranking.jsonl -->\nold\n<!-- end -->\n")
    assert main(["report", "--results", str(tmp_path), "--output", str(tmp_path)]) == 0
    assert "| a | 100 |\n| b | 71 |" in document.read_text()
    file.write_text("[1]\n")
    with pytest.raises(ConfigError, match="line 1"):
        ranking.read(file)
    capsys.readouterr()


@pytest.mark.slow
def test_a_ranking_continues(tmp_path, monkeypatch):
    """On a model that breaks where a pixel moves by a quarter."""
    images = np.tile(np.arange(4, dtype=np.float32).reshape(1, 1, 4, 1) / 4, (2, 1, 1, 1))
    opened = []

    def edge(folder, examples):
        opened.append(folder.name)
        return (
            (lambda x: ranking.jax.numpy.stack([x[:, 0, 1, 0], 0.32 - x[:, 0, 1, 0]], axis=1)),
            images,
            np.zeros(2, int),
        )

    monkeypatch.setitem(ranking.SUBJECTS, "edge", ranking.Subject(edge, (0.1, 0.5, 1.0)))
    options = {"model": ("edge",), "attack": ("pgd", "random"), "examples": 2, "lines": tmp_path / "lines.jsonl"}
    ranking.run(ranking.Options(passes=(20,), runs=tmp_path, **options))
    first = ranking.read(options["lines"])
    assert [one["attack"] for one in first] == ["pgd", "random"]
    assert first[0]["smallest"] == [0.5, 0.5]
    text = ranking.run(ranking.Options(passes=(20,), runs=tmp_path, **options))
    assert opened == ["edge"]
    assert "| pgd | 100 |" in text
    monkeypatch.setitem(ranking.SUBJECTS, "edge", ranking.Subject(edge, (0.1, 0.3, 1.0)))
    ranking.run(ranking.Options(passes=(20,), runs=tmp_path, **options | {"attack": ("pgd",)}))
    assert [(one["attack"], one["radii"]) for one in ranking.read(options["lines"])] == [
        ("random", [0.1, 0.5, 1.0]),
        ("pgd", [0.1, 0.3, 1.0]),
    ]
