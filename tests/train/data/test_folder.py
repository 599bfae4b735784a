"""Image folders."""

import os

import numpy as np
import pytest
from data_files import SPLITS, refused, whole, write_folder

from train import data


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3)])
def test_reads_pixels_and_sorted_classes(tmp_path, mode, channels):
    pixels = write_folder(tmp_path / "set", sizes=[(4, 5)] * 3, mode=mode)
    (tmp_path / "set" / "train" / "cat" / ".hidden.png").write_text("not an image")
    (tmp_path / "set" / "train" / "notes.txt").write_text("not a class")
    for split in SPLITS:
        source = data.load(f"folder:{tmp_path / 'set'}", data_dir=tmp_path, split=split)
        assert source.class_names == ("cat", "dog")
        assert source.image_shape == (4, 5, channels)
        images, labels = whole(source)
        expected = [value for key, value in sorted(pixels.items()) if key.startswith(split)]
        np.testing.assert_array_equal(images, np.reshape(expected, images.shape))
        assert labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_with_grey_and_colour_is_colour_in_every_split(tmp_path):
    write_folder(tmp_path, mode="L", splits=("train",))
    write_folder(tmp_path, mode="RGB", splits=("test",))
    images, _ = whole(data.load(str(tmp_path), data_dir=tmp_path))
    assert images.shape == (2, 4, 5, 3)
    np.testing.assert_array_equal(images[..., 0], images[..., 2])


def test_sizes_must_agree_or_be_resized(tmp_path):
    write_folder(tmp_path, sizes=[(4, 5), (6, 5)])
    refused(["1.png", "6 x 5", "4 x 5", "image size"], str(tmp_path), data_dir=tmp_path)
    source = data.load(str(tmp_path), data_dir=tmp_path, image_size=7)
    assert whole(source)[0].shape == (4, 7, 7, 3)


def test_mistakes_are_named(tmp_path):
    write_folder(tmp_path, splits=("train",))
    refused(["'test'", "use one that has: train"], str(tmp_path), data_dir=tmp_path, split="test")
    refused("no image folder", f"folder:{tmp_path / 'nowhere'}")
    write_folder(tmp_path, splits=("test",), classes=("bird",))
    refused(["bird", "not in train"], str(tmp_path), data_dir=tmp_path)


@pytest.mark.parametrize("place", ["train/cat/1.png", "train/bird", "validation"])
def test_links_and_pipes_are_refused(tmp_path, place):
    write_folder(tmp_path / "set")
    link = tmp_path / "set" / place
    link.symlink_to(tmp_path / "set" / "train" / ("cat/0.png" if place.endswith("png") else "cat"))
    refused([str(link), "symbolic link"], str(tmp_path / "set"), data_dir=tmp_path)
    link.unlink()
    if place.endswith("png"):
        os.mkfifo(link)
        refused([str(link), "not a regular file"], str(tmp_path / "set"), data_dir=tmp_path)
