"""Tables and plots of the benchmarks' JSON, and the arithmetic beside the measured figures."""

from __future__ import annotations

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deformreg
from benchmarks import cost, plots, report
from benchmarks.cli import main

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
    {
        "method": name,
        "model": "m",
        "batch_size": 8,
        "ratio_to_standard": ratio,
        "flops_ratio": ratio,
        "image_size": size,
    }
    for size in (32, 64)
    for name, ratio in (("standard", 1.0), ("flow-gradient", 1.9))
]


def write(path, rows):
    path.write_text(json.dumps({"environment": ENVIRONMENT, "rows": rows}))


def test_a_document_is_filled_in_and_stays_so(tmp_path, capsys):
    write(tmp_path / "cost-cpu.json", ROWS)
    document = tmp_path / "benchmarks.md"
    document.write_text(
        "Before.\n<!-- table cost-cpu.json: method, ratio_to_standard -->\nold\n<!-- end -->\n"
        "<!-- pivot cost-cpu.json: method | image_size | flops_ratio -->\n<!-- end -->\n"
        "<!-- setting cost-cpu.json -->\n<!-- end -->\n<!-- table later.json: method -->\n<!-- end -->\n"
        "<!-- plot benchmarks-cost.png: Costs -->\n<!-- end -->\nAfter.\n"
    )
    arguments = ["report", "--results", str(tmp_path), "--output", str(tmp_path)]
    assert main(arguments) == 0
    once = document.read_text()
    assert "| method | time to standard |\n| --- | ---: |\n| standard | 1.00 |\n| flow-gradient | 1.90 |" in once
    assert "| method | 32 | 64 |\n| --- | ---: | ---: |\n| standard | 1.00 | 1.00 |" in once
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
    (tmp_path / "comparison.json").write_text(json.dumps({"deformation-7-steps": run}))
    paths = tmp_path / "comparison.json", tmp_path / "cost.json"
    (row,) = report.robustness(*paths, ["robustness"], tmp_path / "out.json")
    assert (row["method"], row["robust_accuracy"], row["ratio_to_standard"]) == ("deformation, 7 steps", 0.4, 5.2)
    assert plots._robustness([row]).axes
    (tmp_path / "comparison.json").write_text(json.dumps({"another": run}))
    with pytest.raises(report.ReportError, match="another"):
        report.robustness(*paths, ["robustness"], tmp_path / "out.json")


def test_passes_are_the_arithmetic():
    passes = {name: cost.passes(method) for name, method in cost.METHODS.items()}
    assert passes["standard"] == 3
    assert passes["flow-gradient"] == 6
    assert passes["flow-gradient, every 4th step"] == passes["flow-gradient, a quarter of the batch"] == 3.75
    assert passes["deformation, 7 steps"] == passes["adversarial, 7 steps"] == 3 + 7 * 2
    assert passes["flow-gradient + deformation, 7 steps"] == 6 + 7 * 2


def brightness(images, labels):
    """Losses that a translation out of a bright spot changes, and no statistics."""
    return jnp.sum(images**2, axis=(1, 2, 3)) * (1.0 + labels), labels


def test_the_worst_rotation_is_each_examples_own():
    images = jax.random.uniform(jax.random.key(0), (3, 9, 9, 1))
    labels, key = jnp.arange(3), jax.random.key(1)
    loss, _ = jax.jit(cost.METHODS["worst of 10 rotations"].objective, static_argnums=0)(
        brightness, images, labels, key
    )
    limits = jnp.array([math.radians(30), 3.0, 3.0])
    draws = limits * jax.random.uniform(key, (10, 3, 3), minval=-1.0)
    family = deformreg.affine(parameters=("rotation", "dy", "dx"), boundary="zeros")
    losses = jax.jit(jax.vmap(lambda params: brightness(family.apply(params, images), labels)[0]))(draws)
    assert len(set(np.argmax(losses, axis=0).tolist())) > 1  # they differ in which one is worst
    np.testing.assert_allclose(loss, np.mean(np.max(losses, axis=0)), rtol=1e-5)


def test_a_quarter_of_the_batch_carries_the_penalty():
    images = jax.random.uniform(jax.random.key(0), (8, 5, 5, 1))
    labels = jnp.zeros(8)
    recipe = cost.METHODS["flow-gradient, a quarter of the batch"]
    loss, _ = recipe.objective(brightness, images, labels, jax.random.key(1))
    slopes = [np.diff(images[:2], axis=axis, append=np.take(images[:2], [-1], axis)) for axis in (1, 2)]
    penalty = sum(np.sum((2 * images[:2] * slope) ** 2, axis=(1, 2, 3)) for slope in slopes)
    expected = np.mean(np.sum(images**2, axis=(1, 2, 3))) + cost.WEIGHT * np.mean(penalty)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
