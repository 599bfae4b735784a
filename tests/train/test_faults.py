"""What goes wrong during a run: non-finite losses meet a rule, two trainings do not mix."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
from dataclasses import replace
from itertools import islice

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train import data, launch, loop, processes, rollbacks, runs
from train.config import Config, Data, Optimizer

# Rollbacks.


class Plain(nn.Module):
    """Compiles in no time."""

    @nn.compact
    def __call__(self, images, train=False):
        return nn.Dense(10)(images.reshape(len(images), -1))


CONFIG = Config(
    data=Data(name="digits"), optimizer=Optimizer(schedule="constant"), batch_size=100, epochs=1, devices=1,
    checkpoint_every=4, max_rollbacks=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture
def poisoned(monkeypatch, data_dir):
    """A trainer whose loss is NaN on the batches of the given numbers: told apart by their labels."""

    def poison(*numbers):
        source = data.load("digits", data_dir=data_dir)
        batches = [batch["label"] for batch in islice(data.train_batches(source, batch_size=100, seed=0), 20)]
        make_step = loop.make_step

        def make_poisoned_step(config, model, optimizer):
            step = make_step(config, model, optimizer)

            def poisoned_step(state, batch, *, axis=None):
                state, metrics = step(state, batch, axis=axis)
                bad = jnp.any(jnp.array([jnp.all(batch["label"] == batches[number]) for number in numbers]))
                poison = jnp.where(bad, jnp.nan, 1.0)
                return state._replace(params=jax.tree.map(lambda leaf: leaf * poison, state.params)), {
                    **metrics, "loss": metrics["loss"] * poison,
                }  # fmt: skip

            return poisoned_step

        monkeypatch.setattr(loop, "make_step", make_poisoned_step)
        monkeypatch.setattr(loop, "make_model", lambda config, num_classes: Plain())

    return poison


def assert_equal(tree, other):
    for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.slow
def test_a_rollback_goes_on_without_the_batch_and_resumes_exactly(tmp_path, data_dir, poisoned, capsys):
    config = replace(CONFIG, data=Data(name="digits", data_dir=str(data_dir)))
    poisoned(6, 9)
    state = loop.fit(config, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "rollbacks.json").read_text()) == {"skipped_batches": [6, 9]}
    lines = [line for line in capsys.readouterr().err.splitlines() if "rolling back" in line]
    assert [("without batch 6 (1 of at most 2): step 7:" in lines[0]), ("without batch 9 (2 of" in lines[1])] == [
        True
    ] * 2
    assert int(state.step) == 15
    # As if the batches had never been there.
    (tmp_path / "other").mkdir()
    rollbacks.skip(tmp_path / "other", (6,), 9, RuntimeError(), 2)
    (tmp_path / "other" / "rollbacks.json").rename(tmp_path / "known.json")
    (tmp_path / "other").rmdir()
    run, _ = runs.claim(tmp_path / "other", config, resume=False)
    runs.create(run, config, 1500)
    (tmp_path / "known.json").rename(tmp_path / "other" / "rollbacks.json")
    assert_equal(state, loop.fit(config, tmp_path / "other", resume=True))
    # Interrupted after the rollbacks.
    steps = [path for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name.isdigit()]
    for path in sorted(steps, key=lambda path: int(path.name))[1:]:
        shutil.rmtree(path)
    assert_equal(state, loop.fit(config, tmp_path / "run", resume=True))


def test_rollbacks_end_at_their_limit(tmp_path, data_dir, poisoned):
    config = replace(CONFIG, data=Data(name="digits", data_dir=str(data_dir)), max_rollbacks=1)
    poisoned(1, 6)
    with pytest.raises(loop.NonFiniteLoss, match="step 6: loss nan"):  # batch 6, one after another was left out
        loop.fit(config, tmp_path / "run")
    assert rollbacks.read(tmp_path / "run") == (1,)


def test_a_damaged_list_of_rollbacks_is_refused(tmp_path):
    for text in ("{", "{}", '{"skipped_batches": ["6"]}', '{"skipped_batches": 6}', "[" * 100_000):
        (tmp_path / "rollbacks.json").write_text(text)
        with pytest.raises(runs.RunError, match=r"rollbacks\.json cannot be used"):
            rollbacks.read(tmp_path)


# One run folder, one training.


def locked_by_another(folder):
    """An open file that holds a run folder as another process would; its end closes it."""
    folder.mkdir(exist_ok=True)
    file = (folder / ".lock").open("w")
    fcntl.flock(file, fcntl.LOCK_EX)
    return file


def test_a_folder_in_use_is_refused_and_left_alone(tmp_path, data_dir, monkeypatch):
    monkeypatch.setattr(runs, "PATIENCE", 0)
    config = replace(CONFIG, data=Data(name="digits", data_dir=str(data_dir)))
    with locked_by_another(tmp_path / "run"):
        for resume in (False, True):
            with pytest.raises(runs.RunError, match=r"run is in use by another training: .* another --run-dir"):
                loop.fit(config, tmp_path / "run", resume=resume)
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


def test_resuming_waits_for_the_training_before(tmp_path, monkeypatch, capsys):
    before = locked_by_another(tmp_path / "run")
    monkeypatch.setattr(runs.time, "sleep", lambda _: before.close())
    runs.hold(tmp_path / "run", CONFIG, resume=True)
    assert capsys.readouterr().err == f"{tmp_path / 'run'} is in use by another training: waiting for its end\n"
    with (tmp_path / "run" / ".lock").open() as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    runs.hold(tmp_path / "run", CONFIG, resume=True)  # by the same process, as after a rollback


def test_where_there_are_no_locks_a_training_goes_on_without(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    runs.hold(tmp_path / "run", CONFIG, resume=False)


def test_a_run_that_has_come_and_gone_meanwhile_is_not_overwritten(tmp_path):
    run, _ = runs.claim(tmp_path / "run", CONFIG, resume=False)
    runs.create(run, replace(CONFIG, seed=1), 1500)
    with pytest.raises(runs.RunError, match="already holds a run"):
        runs.hold(tmp_path / "run", CONFIG, resume=False)


def test_a_process_waits_for_what_process_0_has_written(tmp_path, monkeypatch):
    """A network file system shows it late."""
    run, waits = runs.Run(tmp_path / "parent" / "run"), []

    def wait(_):
        waits.append(None)
        if len(waits) == 2:
            runs.write_text(run.config, "{}")

    monkeypatch.setattr(processes, "is_lead", lambda: False)
    monkeypatch.setattr(runs.time, "sleep", wait)
    runs.create(run, CONFIG, 1500)
    assert len(waits) == 2
    monkeypatch.setattr(runs, "PATIENCE", 0)
    with pytest.raises(runs.RunError, match=r"process 0 does not see .*same file system"):
        runs.create(runs.Run(tmp_path / "other"), CONFIG, 1500)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"devices": [{}], "packages": [[]], "python": {}}', "{}", "3"])
def test_an_environment_of_any_form_only_informs(tmp_path, text):
    runs.create(runs.Run(tmp_path), CONFIG, 1500)
    (tmp_path / "environment.json").write_text(text)
    _, changes = runs.claim(tmp_path, CONFIG, resume=True)
    assert not any("\n" in line for line in changes)


# The launcher's processes.


def sleeper(started, seconds=60):
    child = subprocess.Popen(["sleep", str(seconds)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    started.append(child)
    return child


def test_no_process_outlives_a_launch_that_fails():
    started = []

    def fail():
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    with pytest.raises(OSError, match="Cannot allocate"):
        launch._supervise([lambda: sleeper(started), fail])
    assert [child.returncode for child in started] == [-signal.SIGKILL]


@pytest.mark.parametrize("number", launch.SIGNALS)
def test_signals_reach_processes_that_are_being_started(number):
    started = []

    def hang_up():
        os.kill(os.getpid(), number)
        return sleeper(started)

    before = signal.signal(number, lambda *_: pytest.fail("not the launcher's"))
    try:
        assert launch._supervise([lambda: sleeper(started), hang_up, lambda: sleeper(started)]) == 128 + number
    finally:
        signal.signal(number, before)
    assert [child.returncode for child in started] == [-number] * 3


def test_an_ignored_signal_stays_ignored():
    """Under nohup a launch goes on when its session ends."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert launch._supervise([lambda: os.kill(os.getpid(), signal.SIGHUP) or sleeper([], seconds=0)]) == 0
    finally:
        signal.signal(signal.SIGHUP, before)
