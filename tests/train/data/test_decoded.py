"""Decoded copies on disk."""

import os
import shutil

import numpy as np
import pytest
from data_files import header_of, refused, whole, write_folder, write_images, write_npz
from PIL import Image

from train import data
from train.data import DataError, decoded


def test_a_decoded_copy_is_used_and_invalidated(tmp_path):
    root, cache = tmp_path / "set", tmp_path / "cache"
    write_folder(root)

    def load():
        return whole(data.load(str(root), data_dir=cache))[0]

    before = load()
    (copy,) = (cache / "decoded").iterdir()
    np.testing.assert_array_equal(load(), before)
    Image.new("RGB", (5, 4), (1, 2, 3)).save(root / "train" / "cat" / "0.png")
    os.utime(root / "train" / "cat" / "0.png", ns=(0, 0))
    after = load()
    assert after[0, 0, 0].tolist() == [1, 2, 3]
    (new_copy,) = (cache / "decoded").iterdir()
    assert new_copy != copy
    (new_copy / "images.npy").write_bytes(b"damaged")
    np.testing.assert_array_equal(load(), after)


def test_a_decoded_copy_does_not_hide_what_is_missing_from_it(tmp_path):
    write_images(tmp_path, damaged=(3,))
    for _ in range(2):
        source = data.load(str(tmp_path), max_unreadable=1, data_dir=tmp_path / "cache")
        assert source.unreadable(np.array([3])).all()
    with pytest.raises(DataError, match=r"003\.png"):
        data.load(str(tmp_path), data_dir=tmp_path / "cache")


def test_decoded_copies_of_other_options_and_processes_stay(tmp_path):
    write_images(tmp_path / "set")
    folder = tmp_path / "cache" / "decoded"

    def copies(**options):
        data.load(str(tmp_path / "set"), data_dir=tmp_path / "cache", **options)
        return {path: (path / "images.npy").stat().st_ino for path in folder.iterdir()}

    first = copies()
    both = copies(image_size=2)
    assert len(both) == 2
    assert first.items() < both.items()
    ((path, _),) = first.items()
    images, labels = decoded.read_copy(path)
    decoded.write_copy(path, (images.copy(), labels.copy()))  # as a process that decoded at the same time
    assert copies() == both
    write_images(tmp_path / "set", count=13)
    changed = copies()
    assert len(changed) == 2
    assert changed.keys() & both.keys() == both.keys() - {path}


@pytest.mark.parametrize("content", ["header", "pickle", "zip", "shape"])
def test_a_decoded_copy_from_a_stranger_is_only_a_copy(copied, trap, content):
    folder = copied.parents[1]
    expected = data.load("digits", data_dir=folder).read(np.arange(9))
    (copy,) = (copied / "decoded").glob("train-*")
    hostile = {
        "header": header_of((1500,), "<i4", version=(2, 0), padding=1 << 16),
        "pickle": header_of((1500,), "|O") + trap,
        "zip": (write_npz(folder / "z", {"labels.npy": np.arange(4)})).read_bytes(),
        "shape": header_of((2**40,), "<i4") + bytes(6000),
    }[content]
    (copy / "labels.npy").write_bytes(hostile)
    for found, array in zip(data.load("digits", data_dir=folder).read(np.arange(9)), expected, strict=True):
        np.testing.assert_array_equal(found, array)


def test_nothing_is_written_through_a_link(copied, tmp_path):
    shutil.rmtree(copied / "decoded", ignore_errors=True)
    (tmp_path / "elsewhere").mkdir()
    (copied / "decoded").symlink_to(tmp_path / "elsewhere")
    refused("symbolic link", "digits", data_dir=copied.parents[1])
    assert not list((tmp_path / "elsewhere").iterdir())
