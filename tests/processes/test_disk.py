"""Disks that fill, and folders that vanish or cannot be written: one line, and earlier checkpoints stay whole."""

import resource
import shutil
import subprocess

import pytest
from training import assert_same_to_the_bit, last_step, wait_for


def stop_with(trainer, run, harm):
    """The standard error of a run that is harmed after its first checkpoints; its exit code is 4."""
    process = trainer.start(trainer.options(run))
    assert wait_for(lambda: last_step(run) >= 20, process)
    harm(process)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 4, out + err
    assert err.startswith("error: "), err
    assert err.count("\n") == 1, err
    return err


def assert_goes_on(trainer, run):
    """With room again the run ends."""
    out, _ = trainer.run(trainer.options(run, "--resume"))
    assert "continuing after step" in out


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("a file system cannot be mounted here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def fill(folder):
    with (folder / "filler").open("wb", buffering=0) as file:
        while True:
            try:
                file.write(bytes(4096))
            except OSError:
                return


def test_a_full_disk(trainer, whole, small_disk):
    run = small_disk / "run"
    err = stop_with(trainer, run, lambda _: fill(small_disk))
    print(err)
    assert "No space left on device" in err or "cannot be written" in err
    (small_disk / "filler").unlink()
    trainer.run(["verify", str(run)])  # every completed checkpoint is whole
    assert_goes_on(trainer, run)
    assert_same_to_the_bit(run, whole())


def test_files_that_may_not_grow(trainer, whole, tmp_path):
    """The same where nothing can be mounted: a limit on the size of every file, as a quota would set."""
    run = tmp_path / "run"
    err = stop_with(trainer, run, lambda child: resource.prlimit(child.pid, resource.RLIMIT_FSIZE, (1024, 1024)))
    assert "cannot be written" in err
    trainer.run(["verify", str(run)])  # every completed checkpoint is whole
    assert_goes_on(trainer, run)
    assert_same_to_the_bit(run, whole())


def test_a_folder_that_vanishes(trainer, tmp_path):
    run = tmp_path / "run"
    err = stop_with(trainer, run, lambda _: run.rename(tmp_path / "gone"))
    assert f"{run} has vanished" in err
    shutil.rmtree(run, ignore_errors=True)
    (tmp_path / "gone").rename(run)
    assert_goes_on(trainer, run)  # no `verify` before: an old step may have lost its folder halfway through its removal


@pytest.mark.parametrize("place", ["a file", "a disk that is read-only"])
def test_a_folder_that_cannot_be_written(trainer, tmp_path, request, place):
    if place == "a file":
        parent = tmp_path / "file"
        parent.write_text("")
    else:
        parent = request.getfixturevalue("small_disk")
        subprocess.run(["mount", "-o", "remount,ro", parent], check=True)
    _, err = trainer.run(trainer.options(parent / "run"), code=2)
    assert err.startswith("error: ")
    assert str(parent) in err
    assert err.count("\n") == 1
