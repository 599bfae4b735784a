"""The index of a large folder: used while nothing has changed, and never in place of what has."""

import os

import numpy as np
import pytest
from data_files import indices_of, whole, write_images

from train import data
from train.data import index


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Loads a folder of twelve images that counts as large and unchanged since long before."""
    monkeypatch.setattr(index, "INDEXED", 12)
    monkeypatch.setattr(index, "_SETTLED", -(2**62))
    write_images(tmp_path / "set")
    return lambda **options: data.load(str(tmp_path / "set"), data_dir=tmp_path / "cache", **options)


@pytest.fixture
def scans(monkeypatch):
    """The folders that were scanned."""
    scanned, scan = [], index.scan
    monkeypatch.setattr(index, "scan", lambda root: scanned.append(root) or scan(root))
    return scanned


def test_a_folder_is_scanned_once(folder, scans, tmp_path):
    first = folder()
    again = folder()
    assert len(scans) == 1
    assert first.class_names == again.class_names
    for ours, theirs in zip(whole(first), whole(again), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    folder(write=False)
    assert len(scans) == 2


@pytest.mark.parametrize("change", ["add", "remove", "rename", "overwrite", "class"])
def test_a_change_is_noticed(folder, scans, tmp_path, change):
    folder()
    path, other = tmp_path / "set" / "train" / "cat" / "003.png", tmp_path / "set" / "train" / "cat" / "0030.png"
    if change == "add":
        other.write_bytes(path.read_bytes())
    elif change == "remove":
        path.unlink()
    elif change == "rename":
        path.rename(other)
    elif change == "overwrite":
        path.write_bytes((tmp_path / "set" / "train" / "dog" / "010.png").read_bytes())
    else:
        (tmp_path / "set" / "train" / "cat").rename(tmp_path / "set" / "train" / "cow")
    expected = {"add": [0, 1, 2, 3, 3], "remove": [0, 1, 2, 4], "overwrite": [0, 1, 2, 10, 4]}.get(change, range(5))
    source = folder()
    assert len(scans) == 2
    assert indices_of(whole(source)[0])[: len(expected)] == list(expected)


@pytest.mark.parametrize("content", [b"", b"noise", None])
def test_a_damaged_index_is_not_used(folder, scans, tmp_path, content):
    folder()
    (path,) = (tmp_path / "cache" / "decoded").glob("*.index.npz")
    stored = path.read_bytes()
    path.write_bytes(stored[: len(stored) // 2] if content is None else content)
    assert indices_of(whole(folder())[0]) == list(range(12))
    assert len(scans) == 2
    folder()
    assert len(scans) == 2


def test_a_folder_that_was_just_changed_is_scanned_again(folder, scans, monkeypatch):
    monkeypatch.setattr(index, "_SETTLED", 10**12)
    folder()
    folder()
    assert len(scans) == 2


def test_without_a_place_for_the_index_every_start_scans(folder, scans, tmp_path):
    (tmp_path / "cache").write_text("not a folder")
    assert len(folder()) == len(folder()) == 12
    assert len(scans) == 2


def test_the_index_keeps_any_name(folder, scans, tmp_path):
    odd = os.fsdecode(b"\xff\xfe caf\xc3\xa9.png")
    (tmp_path / "set" / "train" / "cat" / "000.png").rename(tmp_path / "set" / "train" / "cat" / odd)
    (tmp_path / "set" / "train" / "dog").rename(tmp_path / "set" / "train" / os.fsdecode(b"dog\xff"))
    first = folder(memory_limit=1)
    again = folder(memory_limit=1)
    assert len(scans) == 1
    assert first.class_names == again.class_names
    assert sorted(indices_of(whole(again)[0])) == list(range(12))
