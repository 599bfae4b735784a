"""What killed processes leave in data folders."""

import os
import time

import pytest
from data_files import write_images

from train import data
from train.data import temporary
from train.data.temporary import remove_leftovers, temporary_folder


def leave(parent, prefix):
    """A folder as a killed process leaves it: nobody holds its lock."""
    folder = parent / f"{prefix}abc12345"
    (folder / "copy").mkdir(parents=True)
    (folder / "copy" / "images.npy").write_bytes(b"half")
    return folder


def test_leftovers_are_removed_and_what_is_in_use_stays(tmp_path):
    leave(tmp_path, ".writing-")
    other = leave(tmp_path, ".other-")
    (tmp_path / ".writing-link").symlink_to(other)
    with temporary_folder(tmp_path, ".writing-") as one, temporary_folder(tmp_path, ".writing-") as two:
        remove_leftovers(tmp_path, ".writing-")
        assert {one, two, other, tmp_path / ".writing-link"} == set(tmp_path.iterdir())
    assert {other, tmp_path / ".writing-link"} == set(tmp_path.iterdir())
    remove_leftovers(tmp_path / "nowhere", ".writing-")


def test_without_locks_only_old_folders_are_leftovers(tmp_path, monkeypatch):
    monkeypatch.setattr(temporary, "lock", lambda handle: None)
    folder = leave(tmp_path, ".writing-")
    remove_leftovers(tmp_path, ".writing-")
    assert folder.exists()
    two_days_ago = time.time() - 2 * 24 * 3600
    os.utime(folder, (two_days_ago, two_days_ago))
    remove_leftovers(tmp_path, ".writing-")
    assert not folder.exists()


def test_a_folder_that_is_taken_for_a_leftover_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    lock, answers = temporary.lock, [False, True]
    monkeypatch.setattr(temporary, "lock", lambda handle: answers.pop(0) and lock(handle))
    with temporary_folder(tmp_path, ".writing-") as folder:
        assert folder.is_dir()
    assert not answers


@pytest.mark.parametrize("copied_before", [False, True])
def test_the_next_start_removes_half_a_copy(tmp_path, copied_before):
    write_images(tmp_path / "set")
    if copied_before:
        data.load(str(tmp_path / "set"), data_dir=tmp_path / "cache")
    folder = leave(tmp_path / "cache" / "decoded", ".writing-")
    data.load(str(tmp_path / "set"), data_dir=tmp_path / "cache")
    assert not folder.exists()
    assert len(list(folder.parent.iterdir())) == 1


def test_the_next_start_removes_half_a_prepared_set(copied):
    folder = leave(copied.parents[1], ".preparing-digits-")
    data.load("digits", data_dir=copied.parents[1])
    assert not folder.exists()


def test_a_start_that_may_not_write_removes_nothing(copied):
    folders = [leave(copied.parents[1], ".preparing-digits-"), leave(copied / "decoded", ".writing-")]
    data.load("digits", data_dir=copied.parents[1], write=False)
    assert all(folder.exists() for folder in folders)
