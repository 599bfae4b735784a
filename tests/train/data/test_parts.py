"""Splits by name: parts of stored splits, sets without a test split or without its labels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from train.config import Config, Data
from train.data import DataError, load
from train.data.parts import Part, parse
from train.errors import ConfigError, NoSplit
from train.task import open_split, prepare


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train", range(0, 200)),
        ("train[:98%]", range(0, 196)),
        ("train[98%:]", range(196, 200)),
        ("train[50:-50]", range(50, 150)),
        ("train[-3:]", range(197, 200)),
        ("train[10%:15%]", range(20, 30)),
        ("train[500:]", range(0)),
    ],
)
def test_parts_are_those_of_tfds(text, expected):
    part = parse(text)
    assert part.name == "train"
    assert list(part.rows(200)) == list(expected)


def test_parts_that_meet_share_nothing():
    for size in (1, 7, 99, 1000):
        rows = [*Part("train", None, "37%").rows(size), *Part("train", "37%", None).rows(size)]
        assert rows == list(range(size))


@pytest.mark.parametrize("text", ["", "train[", "train[a:]", "train[:1.5%]", "train[3]", "../train", "train+test"])
def test_what_is_no_split_is_named(text):
    with pytest.raises(DataError, match="is not a split"):
        parse(text)


def arrays(path, **splits):
    """An .npz file with counted images, so that each can be told."""
    content = {}
    for split, labels in splits.items():
        images = np.arange(len(labels), dtype=np.uint8)[:, None, None] * np.ones((1, 8, 8), np.uint8)
        content |= {f"{split}_images": images, f"{split}_labels": np.array(labels)}
    np.savez(path, **content)
    return str(path)


def test_a_part_reads_its_own_examples(tmp_path):
    name = arrays(tmp_path / "set.npz", train=[0, 1] * 10)
    part = load(name, split="train[25%:75%]")
    assert len(part) == 10
    assert part.whole == 20
    assert part.read(np.array([0, 9]))[0][:, 0, 0, 0].tolist() == [5, 14]
    assert part.name.endswith("[25%:75%]")
    rest, cut = (load(name, split=split, train_split="train[:10]", holdout=0.2) for split in ("train", "validation"))
    seen = [source.read(np.arange(len(source)))[0][:, 0, 0, 0] for source in (rest, cut)]
    assert sorted(np.concatenate(seen).tolist()) == list(range(10))
    with pytest.raises(DataError, match=r"\[50:\] of 20 examples is empty"):
        load(name, split="train[50:]")


def config_of(name, **options):
    return Config(data=Data(name=name, **options), batch_size=4)


def test_without_a_test_split_the_validation_split_is_evaluated(tmp_path, capsys):
    config = config_of(arrays(tmp_path / "set.npz", train=[0, 1] * 5, val=[0, 1, 0]))
    assert len(open_split(config, "test")) == 3
    assert "the validation split is evaluated instead" in capsys.readouterr().err
    only = config_of(arrays(tmp_path / "only.npz", train=[0, 1] * 5))
    with pytest.raises(NoSplit, match="test"):
        open_split(only, "test")
    assert len(open_split(replace(only, data=replace(only.data, test_split="train[8:]")), "test")) == 2


def test_a_split_that_is_named_is_the_stored_one(tmp_path):
    name = arrays(tmp_path / "set.npz", train=[0, 1] * 10, val=[0, 1, 0])
    assert len(open_split(config_of(name, holdout=0.2), "validation")) == 4
    assert len(open_split(config_of(name, holdout=0.2, test_split="validation"), "test")) == 3
    for option, split in (("test_split", "test"), ("validation_split", "validation")):
        assert len(open_split(config_of(name, train_split="val", **{option: "train"}), split)) == 20


def test_a_test_split_without_labels_gives_way_to_the_validation_split(tmp_path, capsys):
    name = arrays(tmp_path / "set.npz", train=[0, 1] * 5, test=[-1, -1], val=[0, 1, 0])
    assert len(open_split(config_of(name), "test")) == 3
    assert "no labels (-1)" in capsys.readouterr().err
    with pytest.raises(NoSplit, match="use a labelled split"):
        open_split(config_of(name, test_split="test"), "test")


@pytest.mark.parametrize("option", ["test_split", "validation_split"])
def test_no_image_is_trained_on_and_evaluated(tmp_path, option):
    name = arrays(tmp_path / "set.npz", train=[0, 1] * 10, val=[0, 1, 0])
    with pytest.raises(ConfigError, match=r"share 4 images.*--data.train-split train\[:90%\]"):
        prepare(config_of(name, **{option: "train[80%:]"}))
    prepare(config_of(name, train_split="train[:80%]", **{option: "train[80%:]"}))
    for trained in ("val", "validation[:2]"):
        with pytest.raises(ConfigError, match=r"--data\.validation-split validation and --data\.train-split"):
            prepare(replace(config_of(name, train_split=trained), batch_size=1))
    with pytest.raises(NoSplit):  # nothing else is left to evaluate on
        prepare(replace(config_of(name, train_split="val", holdout=0.4), batch_size=1), evaluated=True)
    with pytest.raises(ConfigError, match="both choose the validation images"):
        prepare(config_of(name, holdout=0.2, validation_split="val"))
