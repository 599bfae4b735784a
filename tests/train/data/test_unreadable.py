"""Unreadable examples are named, counted and replaced, up to a limit."""

import errno
import os
import re

import numpy as np
import pytest
from data_files import indices_of, write_images

from train import data
from train.data import DataError, decoding
from train.data.unreadable import Unreadable, tolerant
from train.errors import StorageError


@pytest.mark.parametrize("memory_limit", [data.MEMORY_LIMIT, 1])
def test_the_next_example_takes_the_place_of_an_unreadable_one(tmp_path, capsys, memory_limit):
    write_images(tmp_path, damaged=(3, 4, 11))
    options = {"data_dir": tmp_path / "cache", "memory_limit": memory_limit}
    source = data.load(str(tmp_path), max_unreadable=3, **options)
    for _ in range(2):
        images, labels = source.read(np.arange(12))
        assert indices_of(images) == [0, 1, 2, 5, 5, 5, 6, 7, 8, 9, 10, 0]
        assert labels.tolist() == [0] * 6 + [1] * 5 + [0]
        assert np.flatnonzero(source.unreadable(np.arange(12))).tolist() == [3, 4, 11]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3  # each once
    assert all(f"({number} of at most 3)" in line for number, line in enumerate(lines, 1))
    assert sorted(name for line in lines for name in ("003", "004", "011") if f"{name}.png" in line) == [
        "003", "004", "011",
    ]  # fmt: skip
    alone = data.load(str(tmp_path), max_unreadable=3, **options).read(np.array([4]))[0]
    assert indices_of(alone) == [5]  # whatever was read before
    with pytest.raises(DataError, match=r"\.png: .*number 3, over --data.max-unreadable"):
        data.load(str(tmp_path), max_unreadable=2, **options).read(np.arange(12))
    with pytest.raises(DataError, match=r"\.png: the image cannot be decoded"):
        data.load(str(tmp_path), **options).read(np.arange(12))


def test_no_substitute_comes_from_the_held_out_part(tmp_path):
    write_images(tmp_path, count=40, damaged=range(0, 40, 3))
    parts = {}
    for split in ("train", "validation"):
        source = data.load(str(tmp_path), split=split, holdout=0.4, max_unreadable=14, data_dir=tmp_path / "cache")
        parts[split] = set(indices_of(source.read(np.arange(len(source)))[0]))
    assert not parts["train"] & parts["validation"]
    assert all(index % 3 for part in parts.values() for index in part)


def test_evaluation_leaves_unreadable_examples_out(tmp_path):
    write_images(tmp_path, damaged=(3, 4))
    source = data.load(str(tmp_path), max_unreadable=2, data_dir=tmp_path / "cache", memory_limit=1)
    batches = list(data.eval_batches(source, batch_size=5))
    seen = [index for batch in batches for index in indices_of(batch["image"][batch["valid"]])]
    assert seen == [0, 1, 2, 5, 6, 7, 8, 9, 10, 11]
    assert {batch["image"].shape for batch in batches} == {(5, 2, 3, 3)}


def test_nothing_readable_is_an_error(tmp_path):
    write_images(tmp_path, count=4, damaged=range(4))
    with pytest.raises(DataError, match="no image in it can be decoded"):
        data.load(str(tmp_path), max_unreadable=9, data_dir=tmp_path / "cache")


def test_labels_out_of_range_are_unreadable_examples(tmp_path):
    path = str(tmp_path / "set.npz")
    labels = np.array([0, 1, -1, 2**40, 1], np.int64)
    images = np.arange(5, dtype=np.uint8)[:, None, None] * np.ones((1, 2, 2), np.uint8)
    np.savez(path, images=images, labels=labels, class_names=np.array(["a", "b"]))
    found, kept = data.load(path, max_unreadable=2).read(np.arange(5))
    assert (indices_of(found), kept.tolist()) == ([0, 1, 4, 4, 4], [0, 1, 1, 1, 1])
    with pytest.raises(DataError, match=r"example 3 .*number 2, over"):
        data.load(path, max_unreadable=1)


def test_an_unreadable_example_takes_nothing_from_those_beside_it():
    """Decoded one by one, the readable ones keep their random draws; what was there before is gone."""

    def decode(indices, images, draws=None):
        for position, index in enumerate(indices):
            images[position] = 7  # as far as a damaged file goes
            if index == 1:
                raise DataError("example 1 is damaged")
            images[position] = np.uint8(100 * draws[position, 0])
        return 10 * indices.astype(np.int32)

    images, draws = np.full((3, 2, 2, 1), 255, np.uint8), np.array([[0.25], [0.5], [0.75]])
    labels = tolerant(decode, Unreadable(1))(np.arange(3), images, draws)
    assert images[:, 0, 0, 0].tolist() == [25, 0, 75]
    assert labels.tolist() == [0, 0, 20]


def failing(monkeypatch, make_error):
    """Makes opening a file whose name ends in 3.png fail with the errors that a function makes, while it makes one."""

    def open_failing(path, *, limit, opened=decoding.open_regular):
        error = make_error() if path.name.endswith("3.png") else None
        if error is not None:
            raise error
        return opened(path, limit=limit)

    monkeypatch.setattr(decoding, "open_regular", open_failing)
    monkeypatch.setattr("time.sleep", lambda _: None)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE, None])
@pytest.mark.parametrize("image_size", [None, 2])
def test_what_cannot_be_read_now_is_no_unreadable_example(tmp_path, monkeypatch, number, image_size):
    write_images(tmp_path)
    source = data.load(
        str(tmp_path), max_unreadable=3, image_size=image_size, data_dir=tmp_path / "cache", memory_limit=1
    )
    failing(monkeypatch, lambda: MemoryError() if number is None else OSError(number, os.strerror(number)))
    why = "MemoryError" if number is None else re.escape(os.strerror(number))
    with pytest.raises(StorageError, match=rf"003\.png: the image cannot be read now \(.*{why}\); it may be intact"):
        source.read(np.arange(12))
    assert not source.unreadable(np.arange(12)).any()
    monkeypatch.undo()
    assert indices_of(source.read(np.arange(12))[0]) == list(range(12))


def test_reading_is_tried_again_where_that_may_help(tmp_path, monkeypatch):
    write_images(tmp_path)
    source = data.load(str(tmp_path), data_dir=tmp_path / "cache", memory_limit=1)
    errors = [OSError(errno.EIO, "Input/output error"), OSError(errno.ESTALE, "Stale file handle")]
    failing(monkeypatch, lambda: errors.pop() if errors else None)
    assert indices_of(source.read(np.arange(12))[0]) == list(range(12))
    assert not errors


def test_an_image_that_has_vanished_is_an_unreadable_example(tmp_path):
    write_images(tmp_path)
    source = data.load(str(tmp_path), max_unreadable=1, data_dir=tmp_path / "cache", memory_limit=1)
    (tmp_path / "train" / "cat" / "003.png").unlink()
    assert indices_of(source.read(np.arange(12))[0]) == [0, 1, 2, 4, *range(4, 12)]
