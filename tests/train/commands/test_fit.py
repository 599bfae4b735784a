"""What `fit` hands over to the evaluation at its end, and what it refuses before a run folder is made or changed."""

from __future__ import annotations

from dataclasses import replace

import jax
import numpy as np
import pytest
from data_files import write_arrays, write_images
from running import command
from settings import TINY

from train import checks, files, loop, options, processes, runs
from train.commands import evaluate
from train.config import Data, Model
from train.errors import ConfigError, RunError
from train.methods.adversarial import Deformation
from train.methods.gradient import FlowGradient
from train.state import State


@pytest.fixture
def handed(monkeypatch):
    """Trains nothing; the evaluation's options and how it is continued. `elsewhere` changes the data that is stored."""
    found = {"elsewhere": lambda name, data_dir: (name, data_dir)}

    def fit(config, folder, *, resume, **_):
        here = loop.located(config, folder, resume)
        name, data_dir = found["elsewhere"](here.data.name, here.data.data_dir)
        stored = replace(here, data=replace(here.data, name=name, data_dir=data_dir))
        files.write_text(folder / "config.json", options.to_json(stored))

    monkeypatch.setattr(loop, "fit", fit)
    monkeypatch.setattr(evaluate, "compare", lambda options, *, again: found.update(options=options, again=again))
    return found


def train(*arguments):
    return command("fit", "digits-standard", *arguments)


@pytest.mark.parametrize(("count", "devices"), [(1, 8), (2, 0)])
def test_devices_are_those_of_all_processes_in_training_and_of_each_in_the_evaluation(
    tmp_path, monkeypatch, handed, count, devices
):
    monkeypatch.setattr(jax, "process_count", lambda: count)
    monkeypatch.setattr(processes, "from_all", lambda number: [number] * count)
    assert train("--run-dir", tmp_path / "run", "--data-dir", tmp_path / "data", "--devices", "8") == 0
    assert handed["options"] == evaluate.Evaluate((tmp_path / "run",), devices=devices)
    assert handed["again"] == f"`fit --resume {tmp_path / 'run'}`"


def test_each_process_evaluates_on_its_own_host_s_data(tmp_path, handed):
    """The config in the run folder is that of process 0."""
    handed["elsewhere"] = lambda name, data_dir: (name, "/of/process/0")
    assert train("--run-dir", tmp_path / "a", "--data-dir", tmp_path / "data") == 0
    assert handed["options"].data_dir == str(tmp_path / "data")
    write_images(tmp_path / "photos")
    handed["elsewhere"] = lambda name, data_dir: ("folder:/of/process/0/photos", data_dir)
    for name in (f"folder:{tmp_path / 'photos'}", str(tmp_path / "photos")):
        folder = tmp_path / f"run-{len(name)}"
        assert train("--run-dir", folder, "--data.name", name, "--data-dir", tmp_path / "cache") == 0
        assert handed["options"].data_dir == str(tmp_path / "photos")


def test_a_process_that_is_given_no_folder_of_sets_evaluates_on_the_usual_ones(tmp_path, monkeypatch, handed):
    """Where process 0 has its data, there may be nothing here, or something else."""
    monkeypatch.setenv("DEFORMREG_DATA", str(tmp_path / "usual"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    prepared = tmp_path / "tfds" / "cifar10" / "3.0.2" / "dataset_info.json"
    prepared.parent.mkdir(parents=True)
    prepared.write_text("{}")
    handed["elsewhere"] = lambda name, data_dir: (name, "/of/process/0")
    for name, folder in (("digits", "usual"), ("cifar10", "tfds")):
        assert train("--run-dir", tmp_path / f"run-{name}", "--data.name", name) == 0
        assert handed["options"].data_dir == str(tmp_path / folder)


@pytest.mark.parametrize("statistics", ["held", "running"])
def test_statistics_that_a_network_does_not_have_are_refused(tmp_path, capsys, statistics):
    chosen = ("--method", "flow-gradient", "--method.statistics", statistics, "--model.norm", "group")
    assert train("--run-dir", tmp_path / "run", *chosen) == 2
    said = f"--method.statistics {statistics} has no effect on a network without batch normalization: leave it out"
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_statistics_that_have_an_effect_are_taken():
    none, some = (jax.tree.map(np.zeros, stats) for stats in ({}, {"mean": 3}))
    for method, model, batch_stats, refused in (
        (FlowGradient(statistics="running"), Model(), some, False),
        (FlowGradient(), Model(), none, False),
        (FlowGradient(statistics="running"), Model(dropout=0.1), none, False),  # the penalty leaves out dropout
        (FlowGradient(statistics="held"), Model(dropout=0.1), none, True),
        (FlowGradient(statistics="running"), Model(name="nets:Net"), none, False),
        (Deformation(radius=0.2, statistics="running"), Model(), none, True),
        (TINY.method, Model(), none, False),
    ):
        shapes = State(0, 0, {}, batch_stats, (), None)
        config = replace(TINY, method=method, model=model)
        if refused:
            with pytest.raises(ConfigError, match="has no effect on a network without batch normalization"):
                checks.statistics(config, shapes)
        else:
            checks.statistics(config, shapes)


@pytest.mark.parametrize(
    ("splits", "chosen", "refused"),
    [
        (("train", "test"), {}, True),
        (("train", "test"), {"holdout": 0.5}, False),
        (("train", "test"), {"validation_split": "train[:1]", "train_split": "train[1:]"}, False),
        (("train", "validation", "test"), {}, False),
    ],
)
def test_the_test_split_may_change_unless_it_is_validated_on(tmp_path, splits, chosen, refused):
    name = str(write_arrays(tmp_path / "set.npz", splits, count=8))
    config = replace(TINY, data=Data(name=name, **chosen), batch_size=8)
    runs.create(runs.Run(tmp_path / "run"), config, 8)
    other = replace(config, data=replace(config.data, test_split="test[:4]"))
    checks.validation(config, tmp_path / "run")
    checks.validation(other, tmp_path / "nothing")
    assert options.differences(config, other).fixed == []
    if not refused:
        checks.validation(other, tmp_path / "run")
        return
    for resumed in (
        lambda: checks.validation(other, tmp_path / "run"),
        lambda: loop.fit(other, tmp_path / "run", resume=True),
    ):
        with pytest.raises(RunError, match=r"validated on its test images, so .*: None, 'test\[:4\]'"):
            resumed()
