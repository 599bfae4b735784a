"""Catastrophic overfitting is noticed: an accuracy under more steps that falls is a line for the user."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from settings import TINY

from train import overfitting, parallel
from train.data import Augmentation, Source, load
from train.loop import fit
from train.methods.fast import Fast
from train.methods.method import Inputs
from train.metrics import read_metrics
from train.runs import Run
from train.task import build


@pytest.fixture(scope="module")
def measured():
    """``(before, images) -> accuracies`` of two epochs: with the images as they are, or black ones."""
    source = load("digits", split="test")
    trained = build(TINY, source)
    engine = parallel.make_engine("jit", devices=1, batch_size=16)

    def detect(before, *, visible):
        watch = Inputs(lambda forward, images, keys: images if visible else 0 * images)
        measure = overfitting.detector(watch, trained, source, engine, Augmentation(), before=before)
        return measure(trained.init())["attacked_accuracy"]

    return detect


def test_a_fall_below_half_of_the_best_is_said(measured, capsys):
    accuracy = measured([], visible=True)
    assert 0 < accuracy < 0.4
    assert measured([accuracy], visible=True) == accuracy
    assert capsys.readouterr().err == ""
    measured([0.1, 0.9, 0.8], visible=False)
    (line,) = capsys.readouterr().err.splitlines()
    assert "catastrophic overfitting" in line
    assert "from 90.0% to" in line
    assert "--method.steps" not in line  # fast and n-fgsm have none


def test_what_counts_is_the_best_accuracy_before_not_the_last(measured, capsys):
    accuracy = measured([], visible=True)
    measured([1.9 * accuracy, 1.9 * accuracy], visible=True)
    assert capsys.readouterr().err == ""
    measured([2.1 * accuracy, accuracy], visible=True)
    assert "catastrophic overfitting" in capsys.readouterr().err


def test_every_class_is_measured_where_the_images_are_stored_by_class():
    labels = np.repeat(np.arange(2), 600)
    images = np.zeros((1200, 8, 8, 1), np.uint8)

    def read(indices):
        return images[indices], labels[indices]

    source = Source(
        "by class", 1200, (8, 8, 1), ("a", "b"), read, lambda at: np.zeros(len(at), bool), in_memory=False,
        labels=lambda at: labels[at],
    )  # fmt: skip
    trained = build(TINY, source)
    engine = parallel.make_engine("jit", devices=1, batch_size=16)
    watch = Inputs(lambda forward, images, keys: images)
    measure = overfitting.detector(watch, trained, source, engine, Augmentation())
    assert measure(trained.init())["attacked_accuracy"] == 0.5  # one answer for all images


def test_without_a_stronger_attack_nothing_is_measured():
    assert overfitting.detector(None, None, None, None, Augmentation())(None) == {}


@pytest.mark.slow
def test_one_step_training_logs_its_accuracy_under_more_steps(tmp_path):
    fit(replace(TINY, method=Fast(radius=0.3), devices=1), tmp_path / "run")
    (line,) = [line for line in read_metrics(Run(tmp_path / "run")) if "attacked_accuracy" in line]
    assert 0 < line["attacked_accuracy"] < line["validation_accuracy"] - 0.1


def test_every_image_has_the_same_random_numbers_in_batches_of_any_size():
    """The attack turns a random half of the images black; another half would give another accuracy."""
    source, found = load("digits", split="test"), {}
    trained = build(TINY, source)
    state = trained.init()
    for seed in (0, 1):

        def make(forward, images, keys, seed=seed):
            drawn = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, seed)))(keys)
            return jnp.where(drawn[:, None, None, None] < 0.5, images, 0.0)

        for devices, at_once in ((1, 500), (1, 64), (8, 64)):
            engine = parallel.make_engine("jit", devices=devices, batch_size=16)
            measure = overfitting.detector(Inputs(make), trained, source, engine, Augmentation(), at_once=at_once)
            found[seed, devices, at_once] = measure(state)["attacked_accuracy"]
    assert found[0, 1, 500] == found[0, 1, 64] == found[0, 8, 64]
    assert found[1, 1, 500] == found[1, 1, 64] != found[0, 1, 64]
