"""Decoded copies on disk."""

import json
import os
import shutil

import numpy as np
import pytest
from data_files import header_of, indices_of, refused, whole, write_folder, write_images, write_npz
from PIL import Image

from train import data
from train.data import DataError, decoded


def test_a_decoded_copy_is_used_and_invalidated(tmp_path, capsys):
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
    assert f"{new_copy}: this decoded copy cannot be used (images.npy has 7 bytes" in capsys.readouterr().err
    np.testing.assert_array_equal(load(), after)
    assert not capsys.readouterr().err


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
    decoded.write_copy(path, decoded.read_copy(path, 12, 1000))  # as a process that decoded at the same time
    assert copies() == both
    write_images(tmp_path / "set", count=13)
    changed = copies()
    assert len(changed) == 2
    assert changed.keys() & both.keys() == both.keys() - {path}


def test_the_copy_of_a_folder_that_has_changed_is_removed_whatever_its_name(tmp_path):
    for count in (12, 13):
        write_images(tmp_path / "set [2024]", count=count)
        data.load(str(tmp_path / "set [2024]"), data_dir=tmp_path / "cache")
    assert len(list((tmp_path / "cache" / "decoded").iterdir())) == 1


def damage(path, rng):
    """Flips a bit of a file, or cuts its end off in one of four calls."""
    content = bytearray(path.read_bytes())
    if rng.integers(4):
        content[rng.integers(len(content))] ^= 1 << rng.integers(8)
    else:
        del content[rng.integers(len(content)) :]
    path.write_bytes(content)


def test_flipped_bits_never_reach_a_batch(tmp_path, request):
    rng = np.random.default_rng(14)
    write_images(tmp_path / "set", count=40)
    expected = [np.repeat(np.arange(40), 18).reshape(40, 2, 3, 3), np.arange(40) >= 20]
    for number in range(request.config.getoption("--flips")):
        source = data.load(str(tmp_path / "set"), data_dir=tmp_path / "cache")
        (copy,) = (tmp_path / "cache" / "decoded").iterdir()
        damage(copy / ("images.npy", "labels.npy", "checksums.json")[number % 3], rng)
        batch = next(data.train_batches(source, batch_size=40, seed=number))
        again = data.load(str(tmp_path / "set"), data_dir=tmp_path / "cache")
        for images, labels in (whole(source), whole(again)):
            np.testing.assert_array_equal(images, expected[0])
            np.testing.assert_array_equal(labels, expected[1])
        np.testing.assert_array_equal(batch["image"][:, 0, 0, 0] >= 20, batch["label"])


def test_a_copy_that_is_cut_off_while_it_is_used_changes_nothing(tmp_path):
    """The first source has decoded the images, the second one has read them from the copy."""
    write_images(tmp_path / "set", count=4)
    for _ in range(2):
        first, second = (data.load(str(tmp_path / "set"), data_dir=tmp_path / "cache") for _ in range(2))
        for path in (tmp_path / "cache" / "decoded").rglob("*.npy"):
            os.truncate(path, 0)  # the end of a mapped file would end the process
        for source in (first, second):
            assert indices_of(whole(source)[0]) == [0, 1, 2, 3]


def test_an_image_that_is_replaced_with_equal_size_and_time_is_decoded_again(tmp_path):
    write_images(tmp_path / "set", count=4)
    path = tmp_path / "set" / "train" / "cat" / "001.png"
    assert indices_of(whole(data.load(str(tmp_path / "set"), data_dir=tmp_path / "cache"))[0]) == [0, 1, 2, 3]
    before = path.stat()
    Image.new("RGB", (3, 2), (9, 9, 9)).save(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert indices_of(whole(data.load(str(tmp_path / "set"), data_dir=tmp_path / "cache"))[0]) == [0, 9, 2, 3]


@pytest.mark.parametrize("name", ["images.npy", "labels.npy", "checksums.json"])
def test_a_pipe_or_link_in_a_decoded_copy_is_not_read(tmp_path, name):
    write_images(tmp_path / "set", count=4)
    for make in (os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda path: path.mkdir()):
        for _ in range(2):
            source = data.load(str(tmp_path / "set"), data_dir=tmp_path / "cache")
            assert indices_of(whole(source)[0]) == [0, 1, 2, 3]
        (copy,) = (tmp_path / "cache" / "decoded").iterdir()
        (copy / name).unlink()
        make(copy / name)
    assert indices_of(whole(data.load(str(tmp_path / "set"), data_dir=tmp_path / "cache"))[0]) == [0, 1, 2, 3]


def test_a_copy_over_the_limit_is_not_read_into_memory(tmp_path, small_memory):
    write_images(tmp_path / "set", count=4)
    data.load(str(tmp_path / "set"), data_dir=tmp_path / "cache")
    (copy,) = (tmp_path / "cache" / "decoded").iterdir()
    record = json.loads((copy / "checksums.json").read_text())
    record["shape"], record["images"]["bytes"] = [4, 2**17, 2**17, 3], 128 + 3 * 2**36
    (copy / "checksums.json").write_text(json.dumps(record))
    os.truncate(copy / "images.npy", record["images"]["bytes"])  # sparse
    for limit in (data.MEMORY_LIMIT, 2**50):
        if limit > 2**40:
            os.truncate(copy / "images.npy", 200)
        source = data.load(str(tmp_path / "set"), data_dir=tmp_path / "cache", memory_limit=limit)
        assert indices_of(whole(source)[0]) == [0, 1, 2, 3]


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
