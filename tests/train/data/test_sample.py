"""Samples of a split: random, nested, every class in its proportion."""

import numpy as np
import pytest

from train.data import load
from train.data.sample import balanced, sample
from train.data.source import Source


@pytest.mark.parametrize("sizes", [[7] * 9, [1, 2, 40, 200], [5], [1] * 30])
@pytest.mark.parametrize("seed", [0, 1])
def test_every_beginning_has_each_class_in_its_proportion(sizes, seed):
    labels = np.repeat(np.arange(len(sizes)) - 1, sizes)  # sorted by class; a label may be none of a class
    order = balanced(labels, seed)
    assert sorted(order) == list(range(len(labels)))
    for count in range(len(labels) + 1):
        found = np.bincount(labels[order[:count]] + 1, minlength=len(sizes))
        # One share of all classes lies within one example of each.
        assert ((found - 1) / sizes).max() <= ((found + 1) / sizes).min()


def test_seeds_choose_different_samples_of_every_class_alike():
    labels = np.repeat(np.arange(4), [10, 20, 30, 40])
    drawn = np.stack([balanced(labels, seed)[:10] for seed in range(400)])
    assert len({tuple(one) for one in drawn}) > 390
    shares = np.bincount(labels[drawn.ravel()]) / drawn.size
    np.testing.assert_allclose(shares, [0.1, 0.2, 0.3, 0.4], atol=0.02)
    often = np.bincount(drawn.ravel(), minlength=100)
    assert 15 < often.min() <= often.max() < 75  # each example is drawn 40 times on average


def split(labels, shuffled=False, known=True):
    labels = np.asarray(labels)

    def read(indices):
        return np.zeros((len(indices), 2, 2, 1), np.uint8), labels[indices]

    return Source(
        "a set", len(labels), (2, 2, 1), ("a", "b"), read, lambda indices: np.zeros(len(indices), bool),
        in_memory=True, labels=(lambda indices: labels[indices]) if known else None, shuffled=shuffled,
    )  # fmt: skip


def test_a_sample_is_the_beginning_of_a_larger_one_and_at_most_the_split():
    labels = np.repeat([0, 1], 50)
    for known in (True, False):
        source = split(labels, known=known)
        assert np.array_equal(sample(source, 10), sample(source, 30)[:10])
        assert sorted(sample(source, 0)) == sorted(sample(source, 1000)) == list(range(100))
        assert not np.array_equal(sample(source, 10), sample(source, 10, seed=1))
    assert np.bincount(labels[sample(split(labels), 10)]).tolist() == [5, 5]


def test_the_first_of_a_set_stored_in_random_order_are_its_sample():
    labels = np.array([0, 0, 1, 0, 1, 1])
    source = split(labels, shuffled=True)
    assert sample(source, 4).tolist() == [0, 1, 2, 3]
    assert np.bincount(labels[sample(source, 4, seed=0)]).tolist() == [2, 2]
    assert sample(load("digits", split="test"), 7).tolist() == list(range(7))
    assert load("digits", split="validation", holdout=0.1).shuffled


def test_labels_are_known_without_images():
    for source in (load("digits", split="test"), load("digits", split="test", memory_limit=0)):
        indices = np.array([5, 0, 290])
        assert source.labels(indices).tolist() == source.read(indices)[1].tolist()
    cut = load("digits", split="train[10:20]")
    assert cut.labels(np.arange(10)).tolist() == cut.read(np.arange(10))[1].tolist()
