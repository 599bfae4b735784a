"""The command line: every benchmark is found, has its own options only, and refuses bad ones in a line."""

from __future__ import annotations

import pytest

from benchmarks.cli import BENCHMARKS, main

OWNERS = {
    "--methods": ("cost", "pods", "transfer"),
    "--shape": ("kernels",),
    "--preset": ("input",),
    "--topology": ("pods",),
    "--comparison": ("robustness",),
    "--results": ("report",),
    "--torch-python": ("kernels", "attacks", "input", "peers"),
    "--photographs": ("input",),
    "--rounds": ("cost", "kernels", "attacks", "input", "storage", "peers", "interop"),
}


def test_help_lists_the_benchmarks(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in BENCHMARKS)
    assert main([]) == 2


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_shows_its_own_options(name, capsys):
    with pytest.raises(SystemExit) as caught:
        main([name, "--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert {option for option in OWNERS if option in out} == {o for o, owners in OWNERS.items() if name in owners}


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [
        (["cots"], "did you mean cost?"),
        (["cost", "--rounds", "0"], "--rounds must be at least 1, got 0"),
        (["cost", "--batch-size"], "--batch-size"),
        (["cost", "--methods", "flow"], "there is no method 'flow'"),
        (["kernels", "--shape", "16x224x224"], "--shape must be four sizes"),
        (["input", "--preset", "mnist5k-flw"], "did you mean mnist5k-flow?"),
        (["pods", "--methods", "deformation, 7 steps"], "leave out 'deformation, 7 steps'"),
        (["peers", "--torch-python", "/nowhere/python"], "--torch-python"),
        (["cost", "--json", "/dev/null/cost.json"], "--json"),
        (["report", "--output", "/nowhere"], "--output"),
        (["report", "--output", "OUTPUT", "--results", "/nowhere"], "--results: there is no folder /nowhere"),
    ],
)
def test_what_cannot_be_used_is_one_line(arguments, culprit, capsys, tmp_path):
    page = tmp_path / "results.md"
    page.write_text("<!-- claims verdicts -->\na table\n<!-- end -->\n")
    assert main([str(tmp_path) if argument == "OUTPUT" else argument for argument in arguments]) == 2
    assert "a table" in page.read_text()
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert culprit in error


@pytest.mark.parametrize(
    "arguments", [["cost", "--batch-size", "x"], ["cost", "--model", "vgg-12"], ["pods", "--quick"]]
)
def test_what_the_parser_refuses_ends_with_the_same_code(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert arguments[1] in capsys.readouterr().err
