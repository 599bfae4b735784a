"""Image folders."""

import os
import unicodedata

import numpy as np
import pytest
from data_files import SPLITS, indices_of, refused, whole, write_folder, write_images
from PIL import Image

from train import data
from train.data import DataError, places


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
    refused(["1.png", "6 x 5", "4 x 5", "--data.image-size"], str(tmp_path), data_dir=tmp_path)
    source = data.load(str(tmp_path), data_dir=tmp_path, image_size=7)
    assert whole(source)[0].shape == (4, 7, 7, 3)


def test_mistakes_are_named(tmp_path):
    write_folder(tmp_path, splits=("train",))
    refused(["'test'", "use one that has: train"], str(tmp_path), data_dir=tmp_path, split="test")
    refused("no such folder", f"folder:{tmp_path / 'nowhere'}")
    for name in ("cat", "dog"):
        (tmp_path / "bare" / "train" / name).mkdir(parents=True)
    refused("no examples in 'train', nor in any other split", f"folder:{tmp_path / 'bare'}", data_dir=tmp_path)
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


@pytest.mark.parametrize("name", ["val", "valid", "dev", "validation"])
def test_the_set_s_own_validation_images_are_found(tmp_path, name):
    write_images(tmp_path, count=4)
    write_images(tmp_path, count=6, split=name)
    source = data.load(str(tmp_path), split="validation", data_dir=tmp_path / "cache")
    assert indices_of(whole(source)[0]) == list(range(6))


def test_two_folders_of_one_split_are_refused(tmp_path):
    write_folder(tmp_path, splits=("train", "val", "valid"))
    refused(["val and valid", "validation"], str(tmp_path), data_dir=tmp_path / "cache")


def test_what_is_left_out_is_counted_and_named_once(tmp_path, capsys):
    root = tmp_path / "set"
    write_folder(root, sizes=[(4, 5)] * 2)
    for split in ("train", "test"):
        for number in range(3):
            (root / split / "xray").mkdir(exist_ok=True)
            Image.new("RGB", (5, 4)).save(root / split / "xray" / f"{number}.tif")
    Image.new("RGB", (5, 4)).save(root / "train" / "0.png")
    (root / "train" / ".DS_Store").write_text("hidden")
    (root / "evaluation").mkdir()
    for split in ("train", "test", "train"):
        source = data.load(str(root), split=split, data_dir=tmp_path / "cache")
        assert (len(source), source.class_names) == (4, ("cat", "dog"))
    (line,) = capsys.readouterr().err.splitlines()
    for words in (
        f"{root}: not read: ",
        "6 files of other formats (train/xray/0.tif, ...)",
        "2 classes without images (train/xray, ...)",
        "1 files outside of a class (train/0.png)",
        "1 folders that are no split (evaluation)",
        ".png|.jpg",
    ):
        assert words in line


def test_folders_inside_a_class_are_read(tmp_path, capsys):
    pixels = write_folder(tmp_path / "set", sizes=[(4, 5)] * 2, splits=("train",))
    (tmp_path / "set" / "train" / "dog" / "2021" / "may").mkdir(parents=True)
    (tmp_path / "set" / "train" / "dog" / "0.png").rename(tmp_path / "set" / "train" / "dog" / "2021" / "may" / "0.png")
    images, labels = whole(data.load(str(tmp_path / "set"), data_dir=tmp_path))
    assert labels.tolist() == [0, 0, 1, 1]
    np.testing.assert_array_equal(images[[0, 1, 3, 2]], list(pixels.values()))
    (tmp_path / "set" / "train" / "dog" / "2022").symlink_to(tmp_path)
    refused([str(tmp_path / "set" / "train" / "dog" / "2022"), "symbolic link"], tmp_path / "set", data_dir=tmp_path)
    assert not capsys.readouterr().err


def test_a_folder_of_classes_has_a_fixed_test_split_of_every_class(tmp_path, capsys):
    root = tmp_path / "set"
    for number, name in enumerate(("cat", "dog", "emu")):
        for index in range((20, 4, 1)[number]):
            (root / name).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (3, 2), (index, number, 0)).save(root / name / f"{index:02}.png")
    (root / "notes").mkdir()
    found = {}
    for split in SPLITS:
        source = data.load(f"folder:{root}", split=split, data_dir=tmp_path / "cache")
        assert source.class_names == ("cat", "dog", "emu")
        images, labels = whole(source)
        np.testing.assert_array_equal(images[:, 0, 0, 1], labels)
        found[split] = [(label, index) for label, index in zip(labels.tolist(), indices_of(images), strict=True)]
    assert [label for label, _ in found["test"]] == [0, 0, 1]
    assert sorted(found["train"] + found["test"]) == [(0, i) for i in range(20)] + [(1, i) for i in range(4)] + [(2, 0)]
    (line,) = capsys.readouterr().err.splitlines()
    for words in ("no train/ and test/", "a tenth of every class", "1 classes without images (notes)"):
        assert words in line
    refused(["'validation'", "use one that has: train, test"], f"folder:{root}", data_dir=tmp_path, split="validation")
    (root / "cat").rename(tmp_path / "cat")
    (root / "dog").rename(tmp_path / "dog")
    (root / "emu").rename(tmp_path / "emu")
    refused("no image folder", f"folder:{root}", data_dir=tmp_path)


def test_a_folder_of_classes_is_found_where_it_has_moved(tmp_path):
    path = tmp_path / "new" / "set" / "cat" / "0.png"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"not looked at")
    for place in (tmp_path / "new", tmp_path / "new" / "set"):
        assert places.moved(f"folder:{tmp_path / 'old' / 'set'}", place) == f"folder:{tmp_path / 'new' / 'set'}"
    assert places.moved(f"folder:{tmp_path / 'old' / 'other'}", tmp_path) is None
    assert places.moved(str(tmp_path / "old" / "set"), tmp_path / "new" / "set") is None


def test_a_plain_folder_says_nothing(tmp_path, capsys):
    write_folder(tmp_path / "set")
    data.load(str(tmp_path / "set"), data_dir=tmp_path / "set")
    data.load(str(tmp_path / "set"), data_dir=tmp_path / "set")
    assert not capsys.readouterr().err


def test_class_names_of_different_unicode_forms_are_one_class(tmp_path):
    composed, decomposed = (
        unicodedata.normalize(form, "caf\N{LATIN SMALL LETTER E WITH ACUTE}") for form in ("NFC", "NFD")
    )
    write_folder(tmp_path / "a", splits=("train",), classes=(composed, "dog"))
    write_folder(tmp_path / "a", splits=("test",), classes=(decomposed, "dog"))
    source = data.load(str(tmp_path / "a"), split="test", data_dir=tmp_path)
    assert (source.class_names, whole(source)[1].tolist()) == ((composed, "dog"), [0, 1])
    write_folder(tmp_path / "b", classes=(composed, "dog", decomposed))
    source = data.load(str(tmp_path / "b"), data_dir=tmp_path)
    assert (source.class_names, whole(source)[1].tolist()) == ((composed, "dog"), [0, 0, 1])


@pytest.mark.parametrize("letters", ["\n", "\x1b]0;title\x07", "\x1b[2J", "\u202e", "\udc80", "\r"])
def test_names_never_reach_the_terminal_raw(tmp_path, capsys, letters):
    root = tmp_path / f"set{letters}x"
    write_images(root, count=4, damaged=(1,))
    (root / "train" / "cat" / f"{letters}.tif").write_bytes(b"")
    (root / "train" / "cat").rename(root / "train" / f"cat{letters}")
    for folder in (root, tmp_path / f"no{letters}"):
        with pytest.raises(DataError) as caught:
            data.load(f"folder:{folder}", data_dir=tmp_path / "cache")
        assert str(caught.value).isprintable()
    source = data.load(f"folder:{root}", data_dir=tmp_path / "cache", max_unreadable=1)
    printed = capsys.readouterr().err.splitlines()
    assert len(printed) == 2
    assert all(text.isprintable() for text in (*printed, source.name, *source.class_names))
