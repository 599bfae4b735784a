"""Training in a run folder: batches, log, checkpoints, skipped batches, resuming, and values of one's own."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from data_files import write_arrays, write_folder
from settings import TINY, OneLayer

from train import Method, Splits, fit, loop, manifests, metrics, pace, parallel, runs, saving
from train.config import Data, Model
from train.data import Augmentation, load
from train.errors import ConfigError, DataError, NonFiniteLoss, Preempted, RunError, StorageError
from train.methods import Inputs, Penalty, Terms
from train.methods.gradient import FlowGradient, FlowGradientDeformation
from train.optimizers import Sgd
from train.restored import open_run
from train.schedules import Step
from train.task import Task, build, prepare
from train.watch import Watch


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("data"))


def small(data_dir, **changes):
    return replace(TINY, data=Data(name="digits", data_dir=data_dir), devices=1, checkpoint_every=7, **changes)


@pytest.mark.slow
def test_resume_is_exact_to_the_bit(tmp_path, data_dir):
    config = small(
        data_dir, method=FlowGradient(random_start=0.1), batch_size=100,
        augmentation=Augmentation(shift=1),
    )  # fmt: skip
    whole = fit(config, tmp_path / "whole", model=OneLayer(10))
    asked = iter([False] * 9 + [True] * 15)
    with pytest.raises(Preempted, match=r"saved step 12 of 15; --resume"):
        fit(config, tmp_path / "cut", model=OneLayer(10), stop_requested=lambda: next(asked))
    assert manifests.steps(tmp_path / "cut" / "checkpoints") == [7, 12]
    resumed = fit(config, tmp_path / "cut", model=OneLayer(10), resume=True, profile=range(13, 14))
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    assert list((tmp_path / "cut" / "profile").rglob("*.xplane.pb"))
    assert list((tmp_path / "cut" / "profile").rglob("perfetto_trace.json.gz"))
    ours, theirs = (
        [
            {value: line[value] for value in line if value not in pace.TIMES}
            for line in metrics.read_metrics(runs.Run(tmp_path / name))
        ]
        for name in ("whole", "cut")
    )
    assert [line["step"] for line in theirs] == [7, 12, 14, 15, 15]
    assert ours[0] == theirs[0]
    assert ours[2:] == theirs[3:]  # stopping ended a line at step 12, so that of step 14 has the two steps after it


def test_a_stop_whose_checkpoint_cannot_be_written_is_no_success(tmp_path, data_dir, monkeypatch):
    """Writing goes on in the background when the loop is told to stop, and fails there."""
    waits = saving.ocp.CheckpointManager.wait_until_finished

    def wait(manager):
        waits(manager)
        if manifests.steps(tmp_path / "run" / "checkpoints"):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(saving.ocp.CheckpointManager, "wait_until_finished", wait)
    with pytest.raises(StorageError, match="No space left on device"):
        fit(small(data_dir), tmp_path / "run", model=OneLayer(10), stop_requested=lambda: True)


class _Log:
    """Keeps what is written, in place of a file."""

    def __init__(self):
        self.lines, self.seconds = {}, 0.0

    def write(self, step, values):
        assert step not in self.lines
        self.lines[step] = values


@pytest.mark.parametrize(("first_step", "start"), [(0, 25), (1, 40)])
def test_the_log_counts_every_step_once_and_the_penalty_where_it_was_taken(first_step, start):
    log = _Log()
    watch = Watch(log, replace(TINY, log_every=4), Method("mine", every=3, first_step=first_step), step=0, skipped=0)
    for step in range(1, 11):
        values = {
            "loss": step,
            "penalty": 10.0 * step * (step % 3 == 1 and step > first_step),
            "learning_rate": 1 / step,
            "stop": 0,
        }
        watch.push({"step": step, "skipped": 0, "gradient_norm": 1.0, "parameter_norm": 1.0, **values})
        if step in (5, 6, 10):
            watch.drain()
    spans = {4: range(1, 5), 5: [5], 6: [6], 8: [7, 8], 10: [9, 10]}
    assert {step: line["loss"] for step, line in log.lines.items()} == {
        step: np.mean(span) for step, span in spans.items()
    }
    assert {step: line["learning_rate"] for step, line in log.lines.items()} == {step: 1 / step for step in spans}
    assert {step: line.get("penalty") for step, line in log.lines.items()} == {
        4: start,
        5: None,
        6: None,
        8: 70,
        10: 100,
    }


def test_a_sets_own_validation_split_is_used(tmp_path):
    rng = np.random.default_rng(0)

    def save(name, **sizes):
        arrays = {}
        for split, (count, side) in sizes.items():
            arrays[f"{split}_images"] = rng.integers(0, 256, (count, side, side, 1), np.uint8)
            arrays[f"{split}_labels"] = np.arange(count) % 4
        np.savez(tmp_path / name, **arrays)
        return replace(TINY, data=Data(name=str(tmp_path / name)))

    both = save("both.npz", train=(40, 8), validation=(12, 8), test=(8, 8))
    assert len(prepare(both).splits.validation) == 12
    held_out = prepare(replace(both, data=replace(both.data, holdout=0.25)))
    assert [len(split) for split in held_out.splits] == [30, 10]
    assert len(prepare(save("test.npz", train=(40, 8), test=(8, 8))).splits.validation) == 8
    with pytest.raises(DataError, match="no split 'test'"):
        prepare(save("train.npz", train=(40, 8)))
    untested = save("untested.npz", train=(40, 8), validation=(8, 8))
    prepare(untested)
    assert len(prepare(untested, evaluated=True).splits.validation) == 8  # which is evaluated as well
    unlike = save("unlike.npz", train=(40, 8), test=(8, 9))
    with pytest.raises(ConfigError, match=r"images of shape \(9, 9, 1\), .* of \(8, 8, 1\): make them alike"):
        prepare(unlike)
    prepare(replace(unlike, augmentation=Augmentation(resize=8)))
    with pytest.raises(ConfigError, match="split test: crop 8 is larger"):
        prepare(replace(save("small.npz", train=(40, 8), test=(8, 7)), augmentation=Augmentation(crop=8)))


def test_one_class_is_refused_before_the_training(tmp_path):
    write_folder(tmp_path / "set", sizes=[(8, 8)] * 8, classes=("cat",))
    with pytest.raises(DataError, match="there is only one class; a classifier needs two or more"):
        loop.fit(replace(TINY, data=Data(name=f"folder:{tmp_path / 'set'}")), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_non_finite_loss_names_the_step_and_keeps_checkpoints(tmp_path, data_dir):
    config = small(data_dir, optimizer=Sgd(learning_rate=1e9), batch_size=100)
    with pytest.raises(NonFiniteLoss, match=r"step [1-9]\d*: loss"):
        loop.fit(config, tmp_path / "run")
    assert runs.load_config(tmp_path / "run") == config


@pytest.mark.parametrize(
    ("kind", "model", "expected"),
    [
        ("pmap", Model(norm="batch"), "by pmap, batch statistics over all of them"),
        ("pmap", Model(norm="device-batch"), "by pmap, batch statistics of each alone"),
        ("jit", Model(norm="batch"), "by jit, batch statistics over all of them"),
        ("jit", Model(norm="group"), "by jit"),
        ("jit", Model(name="vit-ti-4"), "by jit"),  # layer norm
    ],
)
def test_the_first_lines_say_what_batch_norm_sees_and_what_validates(capsys, data_dir, kind, model, expected):
    config = replace(TINY, model=model, parallel=kind)
    validation = load("digits", split="test", data_dir=data_dir)
    task = Task(Splits(validation, validation), build(config, validation), Method("none"), lambda *_: None, 1)
    loop.announce(config, parallel.make_engine(kind, batch_size=16), task, None, [])
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"training on 8 cpu devices {expected}", "validating on digits, split test: 297 images"]


def test_the_first_lines_say_what_the_training_does_not_reach(capsys, data_dir):
    config = replace(
        TINY,
        method=FlowGradientDeformation(weight_ramp_steps=50, first_step=2, radius_ramp_steps=44),
        epochs=45,
        schedule=Step(decay_epochs=(40, 60)),
    )
    validation = load("digits", split="test", data_dir=data_dir)
    task = Task(Splits(validation, validation), build(config, validation), Method("none"), lambda *_: None, 1)
    engine = parallel.make_engine("pmap", batch_size=16)
    loop.announce(config, engine, task, None, [])
    assert capsys.readouterr().err.splitlines() == [
        "--method.weight-ramp-steps: the whole weight comes at step 52, and the training has 45 steps",
        "--schedule.decay-epochs 60: the training ends after 45 epochs",
    ]
    batch = replace(TINY.model, norm="batch")
    task = task._replace(network=build(replace(TINY, model=batch), validation))
    loop.announce(replace(TINY, model=replace(batch, given="Net")), engine, task, None, [])
    assert "batch statistics as the layers of your network say" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["folder", "npz"])
@pytest.mark.parametrize(("splits", "chosen"), [(("train", "val", "test"), "validation"), (("train", "test"), "test")])
def test_images_called_val_choose_the_checkpoint_and_the_first_lines_name_them(capsys, tmp_path, kind, splits, chosen):
    """`--select best` chooses by the images that validate: the test images only where there are no others."""
    path = tmp_path / ("set" if kind == "folder" else "set.npz")
    if kind == "folder":
        write_folder(path, sizes=[(8, 8)] * 8, splits=splits)
    else:
        write_arrays(path, splits, count=16)
    config = replace(TINY, data=Data(name=str(path), data_dir=str(tmp_path / "cache")), devices=1)
    task = prepare(config, evaluated=True)
    loop.announce(config, parallel.make_engine("jit", devices=1, batch_size=16), task, None, [])
    assert f"validating on {path}, split {chosen}: 16 images" in capsys.readouterr().out.splitlines()


def poisoned(numbers):
    """A method whose loss is not finite on the batches of some numbers, known by their first image's brightness."""

    def terms(forward, images, keys):
        losses, aux = forward.train(images)
        bad = jnp.any(jnp.abs(jnp.mean(images[0]) - jnp.asarray(numbers)) < 1e-6)
        return Terms(jnp.where(bad, jnp.nan, losses), jnp.zeros_like(losses), aux)

    return Method("poisoned", penalty=Penalty(terms, 3.0))


def brightness(config, data_dir, number):
    source = load("digits", split="train", data_dir=data_dir)
    engine = parallel.make_engine("jit", devices=1, batch_size=config.batch_size)
    batches = loop.device_batches(config, source, engine, number)
    return float(np.mean(next(batches)["image"][0].astype(np.float32) / 255))


@pytest.mark.slow
def test_skipped_batches_are_named_counted_and_followed_by_others(tmp_path, data_dir, capsys):
    config = small(data_dir, batch_size=100, max_skipped=2)
    own = {"method": poisoned([brightness(config, data_dir, number) for number in (3, 14)]), "model": OneLayer(10)}
    state = fit(config, tmp_path / "run", **own)
    assert (int(state.step), int(state.skipped)) == (15, 2)
    err = capsys.readouterr().err
    assert "skipped batch 3 (1 of at most 2): step 4: loss nan" in err
    assert "skipped batch 14 (2 of at most 2): step 14: loss nan" in err
    lines = list(metrics.read_metrics(runs.Run(tmp_path / "run")))
    assert [(line["step"], line["skipped_batch"]) for line in lines if "skipped" in line] == [(4, 3), (14, 14)]
    assert manifests.steps(tmp_path / "run" / "checkpoints")[-1] == 15
    asked = iter([False] * 8 + [True] * 20)
    with pytest.raises(Preempted, match="saved step 10 of 15"):
        fit(config, tmp_path / "cut", **own, stop_requested=lambda: next(asked))
    resumed = fit(config, tmp_path / "cut", **own, resume=True)
    jax.tree.map(np.testing.assert_array_equal, resumed, state)
    with pytest.raises(NonFiniteLoss, match=r"step 14: loss nan, gradient norm .*, parameter norm .*--max-skipped"):
        fit(replace(config, max_skipped=1), tmp_path / "one", **own)


def test_method_network_and_data_may_be_values_of_ones_own(tmp_path, data_dir):
    train, test = (load("digits", split=split, data_dir=data_dir) for split in ("train", "test"))
    inverted = Method("inverted", Inputs(lambda forward, images, keys: 1 - images))
    options = {"method": inverted, "model": OneLayer(10), "data": Splits(train, test)}
    config = small(data_dir, batch_size=100, optimizer=Sgd(learning_rate=0.1))
    state = fit(config, tmp_path / "run", **options)
    kernel = state.params["Dense_0"]["kernel"]
    assert kernel.shape == (64, 10)
    with pytest.raises(RunError, match=r"\(stored, current\): data.given: .*method: given, standard"):
        fit(config, tmp_path / "run", resume=True)
    fit(config, tmp_path / "run", resume=True, **options)
    stored = runs.load_config(tmp_path / "run")
    assert (stored.method.title, stored.model.given) == ("inverted", "OneLayer")
    with pytest.raises(ConfigError, match=r"the images .* of this run come from a script"):
        open_run(tmp_path / "run")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"method": TINY.method}, r"a Standard: give the config of a method as Config\(method=\.\.\.\)"),
        ({"method": type(TINY.method)}, "the class Standard"),
        ({"optimizer": 0.1}, "optimizer must be a function of the learning rate"),
        ({"data": ([], [])}, "data must be train.Splits"),
        ({"config": "digits-flow"}, "config must be a train.Config, got str"),
    ],
)
def test_values_of_another_kind_are_named_before_a_folder_is_made(values, words, tmp_path):
    with pytest.raises(ConfigError, match=words):
        fit(values.pop("config", TINY), tmp_path / "run", **values)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "model", [{"stochastic_depth": 0.2}, {"name": "convnext-t", "norm": "batch"}, {"name": "vit-ti-4", "norm": "group"}]
)
def test_options_that_a_network_has_not_are_named(model):
    with pytest.raises(ConfigError, match=model.get("name", "small-cnn")):
        prepare(replace(TINY, model=replace(TINY.model, **model)))
