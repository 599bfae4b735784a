"""The harness measures: paired ratios, its own clocks, and what stands beside a figure."""

from __future__ import annotations

import pytest

from benchmarks import harness
from benchmarks.cli import main
from benchmarks.torch_peer import PeerError, torch_peer


def test_a_planted_factor_of_two_shows_through_drift():
    speed = iter(range(1, 1000))

    def step(factor):
        return lambda: factor * float(speed_now[0])

    speed_now = [1]

    def drift():
        speed_now[0] = next(speed)  # every round slower than the one before
        return 1.0

    samples = harness.interleave({"drift": drift, "once": step(1.0), "twice": step(2.0)}, rounds=9)
    assert [len(values) for values in samples.values()] == [9, 9, 9]
    assert harness.ratio(samples, "twice", "once") == {"ratio": 2.0, "ratio_quartiles": [2.0, 2.0]}
    assert harness.summary([3.0, 1.0, 2.0]) == {"milliseconds": 2.0, "quartiles": [1.5, 2.5], "repeats": 3}


def test_the_first_rounds_are_not_counted():
    calls = []
    samples = harness.interleave({"a": lambda: calls.append(0) or float(len(calls))}, rounds=2)
    assert samples == {"a": [3.0, 4.0]}


def test_counts_are_xlas_own():
    import jax.numpy as jnp

    product = harness.compiled(lambda a, b: a @ b, jnp.ones((64, 32)), jnp.ones((32, 16)))[0]
    assert harness.flops(product) == pytest.approx(2 * 64 * 32 * 16, rel=0.05)
    assert harness.temporary_bytes(product) >= 0


def test_a_figure_has_its_setting_and_no_path_of_the_machine(tmp_path):
    setting = harness.setting(["cost", "--json", str(tmp_path / "cost.json")])
    assert setting["command"] == "python -m benchmarks cost --json cost.json"
    assert {"commit", "packages", "devices", "cores"} <= set(setting)


def test_a_peer_that_cannot_run_is_named(tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'no such framework' >&2\nexit 1\n")
    python.chmod(0o755)
    with (
        pytest.raises(PeerError, match=r"no such framework.*--torch-python"),
        torch_peer(str(python), "torch_fgr.py", []),
    ):
        pass


@pytest.mark.parametrize("arguments", [["speed"], ["cost", "--rounds", "0"], ["cost", "--batch-size", "x"]])
def test_bad_arguments_are_refused(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "error" in capsys.readouterr().err


def test_an_unknown_model_is_one_line(capsys):
    assert main(["cost", "--model", "vgg-12", "--rounds", "1"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "vgg-12" in error


def test_the_table_drops_what_is_the_same_everywhere():
    rows = [{"method": "a", "model": "m", "ms": 1.234}, {"method": "b", "model": "m", "ms": 56.7}]
    assert harness.table(rows).splitlines() == ["| method | ms |", "| -- | -- |", "| a | 1.23 |", "| b | 57 |"]


def test_an_unknown_preset_is_one_line(capsys):
    assert main(["input", "--preset", "mnist5k-flw", "--rounds", "1"]) == 2
    assert capsys.readouterr().err == "error: there is no preset 'mnist5k-flw': did you mean mnist5k-flow?\n"
