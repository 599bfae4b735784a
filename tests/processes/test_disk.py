"""Disks that fill, and folders that vanish or cannot be written: one line, and earlier checkpoints stay whole."""

import resource
import shutil
import subprocess

import pytest
from training import assert_same_to_the_bit, last_step, wait_for

from train.commands import main


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
    """A disk of 40 MB; None where no file system can be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", folder]
    mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    yield folder if mounted else None
    if mounted:
        subprocess.run(["umount", "-l", folder], check=True)


def fill(folder):
    with (folder / "filler").open("wb", buffering=0) as file:
        while True:
            try:
                file.write(bytes(4096))
            except OSError:
                return


@pytest.mark.parametrize("is_disk", [True, False], ids=["disk", "quota"])
def test_a_full_disk(trainer, whole, tmp_path, small_disk, is_disk):
    """Or files that may not grow, as under a quota."""
    if is_disk and small_disk is None:
        pytest.skip("no file system can be mounted here")
    run = (small_disk if is_disk else tmp_path) / "run"

    def harm(process):
        if is_disk:
            fill(small_disk)
        else:
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1024, 1024))

    err = stop_with(trainer, run, harm)
    print(err)
    assert "No space left on device" in err or "cannot be written" in err
    if is_disk:
        (small_disk / "filler").unlink()
    assert main(["verify", str(run)]) == 0  # every completed checkpoint is whole
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
        parent = request.getfixturevalue("small_disk") or pytest.skip("a file system cannot be mounted here")
        subprocess.run(["mount", "-o", "remount,ro", parent], check=True)
    _, err = trainer.run(trainer.options(parent / "run"), code=2)
    assert err.startswith("error: ")
    assert str(parent) in err
    assert err.count("\n") == 1
