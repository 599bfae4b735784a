"""Run folders: one training at a time, what it may change, and what the folder may hold."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest

from train import environment, files, metrics, processes, runs, saving
from train.config import Config
from train.errors import RunError, StorageError

CONFIG = Config()


def test_a_run_folder_is_never_overwritten(tmp_path):
    run, changes = runs.claim(tmp_path / "run", CONFIG, resume=False)
    assert changes == []
    assert not run.folder.exists()
    runs.create(run, CONFIG, 1500)
    with pytest.raises(RunError, match="already holds a run"):
        runs.claim(tmp_path / "run", CONFIG, resume=False)
    with pytest.raises(RunError, match=r"another config \(stored, current\): seed: 0, 5"):
        runs.claim(tmp_path / "run", replace(CONFIG, seed=5), resume=True)
    runs.check_data(run, 1500)
    with pytest.raises(RunError, match="was trained on 1500 images, now there are 1499: give it the same data"):
        runs.check_data(run, 1499)
    runs.create(run, CONFIG, 1500, "decoded")
    with pytest.raises(RunError, match=r"was trained on other images .* \(other versions of pillow, simplejpeg or O"):
        runs.check_data(run, 1500, "otherwise decoded")
    (run.folder / "environment.json").write_text("[" * 10**5)
    runs.check_data(run, 1499)  # who knows
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("precious")
    with pytest.raises(RunError, match="not empty"):
        runs.claim(tmp_path / "other", CONFIG, resume=False)
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["thesis.txt"]
    (tmp_path / "other" / "thesis.txt").rename(tmp_path / "other" / ".config.json.8x_killed")
    (tmp_path / "other" / ".lock").touch()
    runs.claim(tmp_path / "other", CONFIG, resume=True)


def test_what_may_change_is_said(tmp_path):
    runs.create(runs.Run(tmp_path), CONFIG, 1500)
    environment = json.loads((tmp_path / "environment.json").read_text())
    environment["packages"]["jax"] = "0.0.1"
    environment["processes"] = 4
    files.write_json(tmp_path / "environment.json", environment)
    _, changes = runs.claim(tmp_path, replace(CONFIG, devices=4, parallel="jit"), resume=True)
    expected = [
        "parallel: 'pmap', 'jit'",
        "devices: 0, 4",
        f"packages: jax 0.0.1, jax {jax.__version__}",
        "processes: 4, 1",
    ]
    assert changes == expected


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("jax_enable_x64", True, "jax_enable_x64 False, jax_enable_x64 True"),
        ("jax_threefry_partitionable", False, "jax_threefry_partitionable True, jax_threefry_partitionable False"),
        (
            "jax_default_matmul_precision",
            "highest",
            "jax_default_matmul_precision None, jax_default_matmul_precision h",
        ),
        ("jax_default_prng_impl", "rbg", "jax_default_prng_impl threefry2x32, jax_default_prng_impl rbg"),
    ],
)
def test_options_that_change_bits_are_said(tmp_path, option, value, said):
    runs.create(runs.Run(tmp_path), CONFIG, 1500)
    before = getattr(jax.config, option)
    jax.config.update(option, value)
    try:
        _, (change,) = runs.claim(tmp_path, CONFIG, resume=True)
    finally:
        jax.config.update(option, before)
    assert change.startswith(f"settings: {said}")


def test_flags_and_cores_are_said(tmp_path, monkeypatch):
    """`taskset` leaves `os.cpu_count` as it is."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    runs.create(runs.Run(tmp_path), CONFIG, 1500)
    assert runs.claim(tmp_path, CONFIG, resume=True)[1] == []
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1})
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
    assert runs.claim(tmp_path, CONFIG, resume=True)[1] == [
        "cores: 2, 1",
        "settings: XLA_FLAGS None, XLA_FLAGS --xla_cpu_enable_fast_math=true",
    ]


def test_what_an_older_version_did_not_store_is_not_said(tmp_path):
    runs.create(runs.Run(tmp_path), CONFIG, 1500)
    stored = json.loads((tmp_path / "environment.json").read_text())
    del stored["settings"]
    files.write_json(tmp_path / "environment.json", stored)
    assert runs.claim(tmp_path, CONFIG, resume=True)[1] == []


def locked_by_another(folder):
    """An open file that holds a run folder as another process would; its end closes it."""
    folder.mkdir(exist_ok=True)
    file = (folder / ".lock").open("w")
    fcntl.flock(file, fcntl.LOCK_EX)
    return file


def test_a_folder_in_use_is_refused_and_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "PATIENCE", 0)
    with locked_by_another(tmp_path / "run"):
        for resume in (False, True):
            with pytest.raises(RunError, match=r"run is in use by another training: .* another --run-dir"):
                runs.hold(tmp_path / "run", CONFIG, resume=resume)
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


def test_resuming_waits_for_the_training_before(tmp_path, monkeypatch, capsys):
    before = locked_by_another(tmp_path / "run")
    monkeypatch.setattr("time.sleep", lambda _: before.close())
    runs.hold(tmp_path / "run", CONFIG, resume=True)
    assert capsys.readouterr().err == f"{tmp_path / 'run'} is in use by another training: waiting for its end\n"
    with (tmp_path / "run" / ".lock").open() as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    runs.hold(tmp_path / "run", CONFIG, resume=True)  # again by the same process


def test_where_there_are_no_locks_a_training_goes_on_without(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    run, changes = runs.hold(tmp_path / "run", CONFIG, resume=False)
    assert run.folder == tmp_path / "run"
    assert not changes


def test_a_run_that_has_come_and_gone_meanwhile_is_not_overwritten(tmp_path):
    run, _ = runs.claim(tmp_path / "run", CONFIG, resume=False)
    runs.create(run, replace(CONFIG, seed=1), 1500)
    with pytest.raises(RunError, match="already holds a run"):
        runs.hold(tmp_path / "run", CONFIG, resume=False)


def test_a_process_waits_for_what_process_0_has_written(tmp_path, monkeypatch):
    """A network file system shows it late."""
    run, waits = runs.Run(tmp_path / "parent" / "run"), []

    def wait(_):
        waits.append(None)
        if len(waits) == 2:
            files.write_text(run.config, "{}")

    monkeypatch.setattr(processes, "is_lead", lambda: False)
    monkeypatch.setattr("time.sleep", wait)
    runs.create(run, CONFIG, 1500)
    assert len(waits) == 2
    monkeypatch.setattr(runs, "PATIENCE", 0)
    with pytest.raises(RunError, match=r"process 0 does not see .*same file system"):
        runs.create(runs.Run(tmp_path / "other"), CONFIG, 1500)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"devices": [{}], "packages": [[]], "python": {}}', "{}", "3"])
def test_an_environment_of_any_form_only_informs(tmp_path, text):
    runs.create(runs.Run(tmp_path), CONFIG, 1500)
    (tmp_path / "environment.json").write_text(text)
    _, changes = runs.claim(tmp_path, CONFIG, resume=True)
    assert not any("\n" in line for line in changes)


def test_a_training_whose_folder_was_replaced_writes_nothing_more(tmp_path):
    """The lock of the first is on a deleted file, so the second takes the folder."""
    first, _ = runs.hold(tmp_path / "run", CONFIG, resume=False)
    runs.create(first, CONFIG, 1500)
    log = metrics.MetricLog(first)
    log.write(1, {"loss": 1.0})
    with saving.open_writer(first, CONFIG) as writer:
        shutil.rmtree(first.folder)
        second, _ = runs.hold(tmp_path / "run", replace(CONFIG, seed=1), resume=False)
        runs.create(second, replace(CONFIG, seed=1), 1500)
        before = contents(second.folder)
        state = {"step": np.int32(2)}
        for write in (
            lambda: writer.save(2, state),
            lambda: log.write(2, {"loss": 0.5}),
            lambda: runs.create(first, CONFIG, 1500),
            lambda: metrics.MetricLog(first),
            lambda: saving.open_writer(first, CONFIG).__enter__(),
        ):
            with pytest.raises(StorageError, match="is no longer the folder of this training"):
                write()
    log.close()
    assert contents(second.folder) == before
    runs.check_ours(second)
    runs.check_still_ours(second.folder)
    with (second.folder / ".lock").open() as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    (second.folder / ".lock").unlink()
    with pytest.raises(StorageError, match="is no longer"):
        runs.check_still_ours(second.folder)


def contents(folder):
    """Every file below a folder with its bytes, and every link with its target."""
    return {
        path.relative_to(folder).as_posix(): path.readlink() if path.is_symlink() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


LINKS = [".lock", "checkpoints", "events.out.tfevents.1.host", "checkpoints/5", "profile", "profile/plugins/profile"]


@pytest.mark.parametrize("name", LINKS)
def test_nothing_outside_a_run_folder_is_written_through_a_link(tmp_path, name):
    """`checkpoints` of another run, whose steps a training would delete; a lock that would be created elsewhere."""
    run, outside = runs.Run(tmp_path / "run"), tmp_path / "outside"
    runs.create(run, CONFIG, 1500)
    if name == "checkpoints":
        run.checkpoints.rmdir()
        (outside / "checkpoints" / "5").mkdir(parents=True)
    path = run.folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(outside / name)
    before = contents(tmp_path)
    for take in (runs.claim, runs.hold):
        with pytest.raises(RunError, match=rf"{name} is a link, and a training writes only into its run folder"):
            take(run.folder, CONFIG, resume=True)
    assert contents(tmp_path) == {"run/.lock": b"", **before}


def test_a_lock_that_is_no_file_is_named(tmp_path):
    os.mkfifo(tmp_path / ".lock")
    with pytest.raises(RunError, match=r"\.lock is not a regular file: remove it"):
        runs.hold(tmp_path, CONFIG, resume=False)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"seed": 1}, "process 1 has other options than process 0: start all processes with the same options"),
        ({"asked": {"resume": True}}, "process 1 has other options than process 0"),
        ({"images": {"training": "abd", "validation": "def"}}, "process 1 has other training images than process 0"),
        ({"images": {"training": "abc", "validation": "deg"}}, "process 1 has other validation images than process 0"),
        ({"network": {"params/kernel": "float32[3]"}}, "process 1 has other arrays in its network than process 0"),
        ({"code": "other"}, "process 1 has other code of this program than process 0"),
        ({"_version": "0.0.1"}, "process 1 has other versions of Python and packages than process 0"),
        ({"_settings": {}}, "process 1 has other settings of JAX and XLA (JAX_*, XLA_FLAGS) than process 0"),
    ],
)
def test_processes_that_would_train_something_else_are_named(monkeypatch, changed, said):
    """Each fact is a digest; the other process's comes from a call of its own."""
    asked = []
    images, network = {"training": "abc", "validation": "def"}, {"params/kernel": "float32[2]"}
    asked_for = {"resume": False}
    elsewhere = replace(CONFIG, data=replace(CONFIG.data, data_dir="/other/host", name="/other/host/set.npz"))
    here = replace(CONFIG, data=replace(CONFIG.data, data_dir="/here", name="/here/set.npz"))
    monkeypatch.setattr(processes, "from_all", lambda number: asked.append(number) or [number, number])
    runs.check_alike(elsewhere, images, network, asked_for)
    others = iter(asked)
    monkeypatch.setattr(processes, "from_all", lambda number: [next(others), number])
    runs.check_alike(here, images, network, asked_for)  # paths may differ
    others = iter(asked)
    images, network = changed.pop("images", images), changed.pop("network", network)
    asked_for = changed.pop("asked", asked_for)
    for name in {"code", "_version", "_settings"} & set(changed):
        found = changed.pop(name)
        monkeypatch.setattr(environment, name, lambda *_, found=found: found)
    with pytest.raises(RunError, match=re.escape(said)):
        runs.check_alike(replace(here, **changed), images, network, asked_for)
