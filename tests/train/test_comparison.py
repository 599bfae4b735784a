"""Runs evaluated together: what does not fit is refused before the first attack, results go where they should."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
from running import refused
from settings import OneLayer

from train import data, exports, files, options, pictures, reports, restored, runs, saving, task
from train.commands import certify, evaluate, main
from train.config import Config, Data, Evaluation, Model
from train.data.sample import balanced
from train.errors import ConfigError, RunError
from train.optimizers import Given


@pytest.fixture(autouse=True)
def one_layer(monkeypatch):
    monkeypatch.setattr(task, "make_model", lambda config, num_classes: OneLayer(num_classes))


@pytest.fixture
def no_attack(monkeypatch):
    monkeypatch.setattr(evaluate, "evaluate_run", None)


def write_run(
    folder, *, size=8, names=("a", "b"), seed=0, unreadable=0, accuracies=(0.5,), examples=0, select="last",
    optimizer=None,
):  # fmt: skip
    """A run that nobody trained, on four random test images beside it, with a checkpoint for every accuracy."""
    rng = np.random.default_rng(seed)
    images, labels = rng.integers(0, 256, (4, size, size), np.uint8), np.arange(4) % len(names)
    path = folder.with_suffix(".npz")
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        path, images=images, labels=labels, test_images=images,
        test_labels=np.where(np.arange(4) < unreadable, -1, labels), class_names=np.array(names),
    )  # fmt: skip
    config = Config(
        data=Data(name=str(path), max_unreadable=unreadable), select=select,
        evaluation=Evaluation(steps=2, batch_size=8, examples=examples),
    )  # fmt: skip
    if optimizer is not None:
        config = replace(config, optimizer=Given(optimizer.__name__))
    run = runs.Run(folder)
    runs.create(run, config, 1500)
    shapes = task.build(config, data.load(str(path)), optimizer=optimizer).shapes
    with saving.open_writer(run, config) as writer:
        for step, accuracy in enumerate(accuracies, 1):
            state = jax.tree.map(lambda leaf: np.asarray(rng.random(leaf.shape), leaf.dtype), shapes)
            writer.save(step, state._replace(step=np.int32(step)), accuracy)
    return folder


@pytest.mark.parametrize(
    "other", [{"names": ("a", "b", "c")}, {"names": ("b", "a")}, {"examples": 3}, {"size": 6}, {"seed": 1}]
)
def test_runs_on_other_images_are_not_compared(capsys, tmp_path, no_attack, other):
    first, second = write_run(tmp_path / "first"), write_run(tmp_path / "second", **other)
    error = refused(capsys, "evaluate", first, second)
    assert f"{second} does not compare with {first}" in error
    assert "4 of" in error
    if "examples" in other:
        assert len(restored.open_runs([first, second], examples=3)) == 2


def test_a_run_named_twice_is_refused(capsys, tmp_path, no_attack):
    first, second = write_run(tmp_path / "first"), write_run(tmp_path / "second")
    for twice in ([first, second, first], [first, tmp_path / "second" / ".." / "first"]):
        assert "first is named twice: leave one out" in refused(capsys, "evaluate", *twice)
    error = refused(capsys, "evaluate", first, "--transfer-from", second, second)
    assert f"{second} is named twice" in error


def test_some_images_may_be_unreadable_but_not_all(capsys, tmp_path, no_attack):
    folder = write_run(tmp_path / "run", unreadable=3)
    unreadable = next(seed for seed in range(9) if balanced(np.array([-1, -1, -1, 1]), seed)[0] < 3)
    for command in ("evaluate", "certify"):
        error = refused(capsys, command, folder, "--examples", "1", "--sample-seed", unreadable)
        assert "none of these 1 can be read" in error
    trained = restored.open_run(folder, examples=4)
    assert len(trained.images) == 1
    # What its network sees is known without them.
    assert [name for name, _ in restored.open_sources([folder], trained)] == ["run"]
    other = write_run(tmp_path / "other", size=6)
    with pytest.raises(RunError, match=r"nothing transfers from .*other: its network takes images \(6, 6, 1\)"):
        restored.open_sources([other], trained)


def test_network_and_test_images_may_be_values_of_ones_own(tmp_path):
    folder = write_run(tmp_path / "run")
    test = data.load(str(tmp_path / "run.npz"), split="test")
    given, known = restored.open_run(folder, model=OneLayer(2), test=test), restored.open_run(folder)
    np.testing.assert_array_equal(given.logits_fn(given.images), known.logits_fn(known.images))


def test_a_run_with_an_optimizer_of_ones_own_is_opened_with_it(tmp_path):
    folder = write_run(tmp_path / "run", optimizer=optax.lion)
    with pytest.raises(ConfigError, match="optimizer 'lion' of this run comes from a script"):
        restored.open_run(folder)
    assert restored.open_run(folder, optimizer=optax.lion).step == 1


def test_a_network_that_no_run_names_is_refused(capsys, tmp_path, no_attack):
    """Else a run of a network of this program would be evaluated as if the option had an effect."""
    first, source, name = write_run(tmp_path / "first"), tmp_path / "source", "flax.linen:Dense"
    for command in ("evaluate", "certify", "export"):
        error = refused(capsys, command, first, "--model.name", name)
        assert error.endswith(f"--model.name {name}: no run names this network")
    runs.create(runs.Run(source), Config(model=Model(name=name)), 1500)
    assert restored.load_networks([name], [first, source]) == {name: nn.Dense}


def test_a_model_card_states_scores_of_its_own_checkpoint_alone(tmp_path):
    folder = write_run(tmp_path / "run")
    opened = restored.open_network(folder)
    for step, said in ((1, "90.0% clean, 50.0% under"), (2, "Not evaluated")):
        row = {"step": step, "clean_accuracy": 0.9, "robust_accuracy": 0.5, "radius_pixels": 1.0, "suite": "fast"}
        files.write_json(folder / "evaluation.json", row)
        assert said in exports.model_card(opened)


def test_the_next_best_checkpoint_takes_the_place_of_a_damaged_best(capsys, tmp_path):
    folder = write_run(tmp_path / "run", accuracies=(0.9, 0.8, 0.3), select="best")
    assert restored.open_run(folder).step == 1
    arrays = [path for path in (folder / "checkpoints" / "1" / "state").rglob("*") if path.is_file()]
    for path in arrays:
        path.write_bytes(b"")
    assert restored.open_run(folder).step == 2
    assert capsys.readouterr().err.startswith("skipped the damaged checkpoint of step 1: ")


def test_whether_results_can_be_written_is_seen_before_the_first_attack(capsys, tmp_path, monkeypatch, no_attack):
    folder = write_run(tmp_path / "run")
    (tmp_path / "file").write_text("")
    below = tmp_path / "file" / "below"
    for command in ("evaluate", "certify"):
        for option, path in (("--output", below), ("--json", below / "a.json")):
            error = refused(capsys, command, folder, option, path)
            assert error == f"error: {tmp_path / 'file'} is a file, not a folder: choose another {option}"
        assert (
            refused(capsys, command, folder, "--json", tmp_path)
            == f"error: {tmp_path} is a folder: --json names a file"
        )
    # Whoever may write everywhere sees no folder that is read-only.
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != folder)
    for command in ("evaluate", "certify"):
        error = refused(capsys, command, folder)
        assert error == f"error: {folder}: nothing can be written into {folder}; choose another --output"


def test_names_reach_the_terminal_as_text(capsys, tmp_path, monkeypatch):
    """A line end or an escape sequence in a name could forge a line, or delete one."""
    folder = write_run(tmp_path / "run\n\x1b[2Jerror: no", accuracies=(0.5, 0.4))
    (folder / "checkpoints" / "1" / "state" / "bad\n\x1b[2J").mkdir()
    (folder / "checkpoints" / "1" / "state" / "bad\n\x1b[2J" / "pipe\n").symlink_to("/dev/null")
    shown = f"{tmp_path}/run\\n\\x1b[2Jerror: no"
    assert main(["verify", str(folder)]) == 1
    out, err = capsys.readouterr()
    assert (out.count(f"{shown}: step 1: "), out.count(f"{shown}: step 2: intact"), err) == (1, 1, "")
    assert "bad\\n\\x1b[2J/pipe\\n is not a regular file" in out
    assert out.replace("\n", "").isprintable()
    assert len(out.splitlines()) == 2
    monkeypatch.setattr(certify, "certify_run", lambda *_, **__: SimpleNamespace(row=CERTIFIED))
    monkeypatch.setattr(pictures, "save_certified", lambda *_: None)
    assert main(["certify", str(folder)]) == 0
    assert f"report: {shown}/certified.md\n" in capsys.readouterr().out
    assert runs.short_names([folder, folder.parent]) == ["run\\n\\x1b[2Jerror: no", tmp_path.name]

    def fail(_):
        raise OSError("no\n\x1b[2J")

    monkeypatch.setattr(evaluate, "compare", fail)
    assert "error: no\\n\\x1b[2J" in refused(capsys, "evaluate", folder)


EVALUATED = {
    "suite": "quick", "attacks": {"pgd": {"robust_accuracy": 0.25}}, "robust_accuracy": 0.25, "flags": [],
    "robust_interval": [0.1, 0.5], "clean_accuracy": 0.75, "mean_minimal_displacement": 0.5, "train_seconds": 1.0,
}  # fmt: skip
CERTIFIED = {
    "unit": "px", "examples": 4, "family": "flow", "norm": "l2", "law": "gaussian", "sigma": [0.3], "num_samples": 9,
    "alpha": 0.01, "clean_accuracy": 0.75, "abstained": 1, "mean_radius": 0.1, "ceiling": 1.0,
    "curve": [{"radius": 0.0, "accuracy": 0.25, "low": 0.1, "high": 0.5}],
}  # fmt: skip


def train_again(folder):
    """As another training in this place would: its run, and a lock of its own."""
    shutil.rmtree(folder)
    write_run(folder)
    (folder / ".lock").touch()


@pytest.mark.parametrize(
    "replace",
    [
        train_again,
        shutil.rmtree,
        lambda folder: files.write_text(folder / "config.json", options.to_json(Config(seed=3))),
        lambda folder: files.write_text(folder / ".lock", ""),
    ],
)
@pytest.mark.parametrize(("command", "row", "below"), [("evaluate", EVALUATED, None), ("certify", CERTIFIED, "report")])
def test_no_report_goes_where_another_run_is_now(capsys, tmp_path, monkeypatch, replace, command, row, below):
    folder = write_run(tmp_path / "run")
    (folder / ".lock").touch()
    left = []

    def find(name, trained, protocol, file, **places):
        replace(folder)
        with pytest.raises(RunError, match="no longer holds the run that was read"):
            file.write({}, {})
        left.extend(sorted(folder.rglob("*")))
        return SimpleNamespace(row=row)

    monkeypatch.setattr(evaluate, "evaluate_run", find)
    monkeypatch.setattr(certify, "certify_run", find)
    assert main([command, str(folder), *(["--output", str(folder / below)] if below else [])]) == 2
    out, err = capsys.readouterr()
    assert err.startswith(f"error: {folder} no longer holds the run that was read: it was removed or replaced")
    assert err.count("\n") == 1
    assert "25.0" in out  # what was found is not lost
    assert sorted(folder.rglob("*")) == left


@pytest.mark.parametrize("suite", [None, "standard"])
def test_an_evaluation_under_the_default_suite_ends_with_the_advice_to_take_another(
    capsys, tmp_path, monkeypatch, suite
):
    folders = [write_run(tmp_path / name) for name in ("first", "second")]
    monkeypatch.setattr(evaluate, "evaluate_run", lambda name, trained, protocol, *_, **__: protocol.suite)
    monkeypatch.setattr(reports, "write_run_report", lambda folder, name, suite, *_: print(f"report of {suite}"))
    monkeypatch.setattr(reports, "write_comparison", lambda *_: print("comparison"))
    chosen = ["--suite", suite] if suite else []
    for given in (folders[:1], folders):
        assert main(["evaluate", *map(str, given), *chosen]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == f"report of {suite or 'released'}"
        assert sum(line == evaluate.ADVICE for line in lines) == (suite is None)
        assert (lines[-1] == evaluate.ADVICE) == (suite is None)


def test_a_report_has_its_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    several = [Path("a/run"), tmp_path / "b" / "run", Path("a/../c/x")]
    assert reports.places(several, None) == several
    assert reports.places(several, Path("out")) == [Path("out/a/run"), Path("out/b/run"), Path("out/c/x")]
    assert reports.places(several[:2], tmp_path) == [tmp_path / "a" / "run", tmp_path / "b" / "run"]
    assert reports.places(several[:1], Path("out")) == [Path("out")]


@pytest.mark.slow
def test_all_results_go_below_the_output_whatever_classes_are_called(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = [write_run(Path(where, "run"), names=("$\\x$", "caf\udce9")) for where in ("$_$", "b")]  # no formulas
    before = set(Path().rglob("*"))
    assert main(["evaluate", *map(str, folders), "--output", "out", "--json", "all.json"]) == 0, capsys.readouterr()
    written = {str(path) for path in set(Path().rglob("*")) - before if path.is_file()}
    report = (
        "evaluation.json",
        "evaluation.csv",
        "evaluation.md",
        "curve.csv",
        "curve.png",
        "examples.png",
        "examples.npz",
    )
    together = ("comparison.json", "comparison.md", "comparison.png", "curves.csv")
    assert written == {
        "all.json",
        *(f"out/{name}" for name in together),
        *(f"out/{folder}/{name}" for folder in folders for name in report),
    }
    rows = json.loads(Path("all.json").read_text())
    for folder in folders:
        assert rows.pop(str(folder)) == json.loads(Path("out", folder, "evaluation.json").read_text())
    assert not rows


@pytest.mark.parametrize("name", [os.fsdecode(b"\xff"), "a\\b"])
def test_folders_of_which_no_checkpoint_could_be_read_are_named(capsys, tmp_path, name):
    folder = tmp_path / name
    for command in (["fit", "digits-flow", "--run-dir"], ["evaluate"], ["certify"], ["verify"]):
        assert f"{str(folder)!r} has a backslash or is not UTF-8" in refused(capsys, *command, folder)
    assert not folder.exists()
    good = write_run(tmp_path / "run")
    assert f"{str(folder)!r} has a backslash or is not UTF-8" in refused(capsys, "evaluate", good, "--output", folder)
