"""The training application in process: steps of every method, engines, checkpoints, resuming, reports."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from functools import cache, partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from methods import METHODS
from train.steps import init_state, make_step, predict

import deformreg
from deformreg.losses import cross_entropy
from train import evaluation, logs, loop, manifests, parallel, processes, runs
from train.config import Config, ConfigError, Data, Method, Model, Optimizer, check, differences, from_json, to_json
from train.data import Augmentation, DataError, load
from train.data.augmentation import example_keys
from train.models import create_model
from train.optimizers import learning_rate, make_optimizer

TINY = Config(
    data=Data(name="digits"),
    model=Model(width=0.25, norm="group"),
    optimizer=Optimizer(learning_rate=0.02, schedule="constant"),
    batch_size=16,
    epochs=1,
)


def batches(count, size=16, seed=0):
    """Random 8x8 images that a network can learn: brighter on the side that the label says."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        labels = rng.integers(0, 4, size).astype(np.int32)
        images = rng.integers(0, 100, (size, 8, 8, 1))
        for image, label in zip(images, labels, strict=True):
            image[4 * (label // 2) : 4 * (label // 2) + 4, 4 * (label % 2) : 4 * (label % 2) + 4] += 100
        yield {"image": images.astype(np.uint8), "label": labels, "position": np.arange(size, dtype=np.int32)}


@cache
def network(config, axis_name=None):
    rate = learning_rate(config.optimizer, epochs=1, steps_per_epoch=10)
    optimizer = make_optimizer(config.optimizer, rate)
    options = {"width": config.model.width, "norm": config.model.norm, "axis_name": axis_name}
    model = create_model("small-cnn", num_classes=4, **options)
    return model, init_state(model, optimizer, (8, 8, 1), config.seed), make_step(config, model, optimizer)


@cache
def compiled(config):
    return jax.jit(network(config)[2])


@pytest.mark.parametrize("kind", ["pmap", "jit"])
@pytest.mark.parametrize("devices", [1, 4])
def test_what_a_step_is_fed_equals_what_would_be_moved(kind, devices):
    def step(state, batch, *, axis=None):
        total = jnp.sum(batch["image"] * (1.0 + batch["position"])[:, None, None, None])
        return state, total if axis is None else jax.lax.psum(total, axis)

    engine = parallel.make_engine(kind, devices=devices, batch_size=16)
    (batch,) = batches(1)
    totals = [
        engine.compile(step)(engine.put_state(jnp.zeros(())), give(batch))[1]
        for give in (engine.feed, engine.put_batch)
    ]
    np.testing.assert_array_equal(*totals)
    np.testing.assert_allclose(totals[0], np.vdot(batch["image"].sum((1, 2, 3)), 1.0 + batch["position"]), rtol=1e-5)


def run(config, devices, kind, steps):
    engine = parallel.make_engine(kind, devices=devices, batch_size=16)
    axis = parallel.AXIS if kind == "pmap" and config.model.synchronize else None
    _, state, step = network(config, axis)
    state, parallel_step, first = engine.put_state(state), engine.compile(step), None
    for batch in batches(steps):
        state, metrics = parallel_step(state, engine.feed(batch))
        first = first or {name: float(value) for name, value in metrics.items()}
    return first, jax.tree.map(np.asarray, state)


COMBINED = ("every third", "both")  # of what the others compile already


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in COMBINED)) for name in METHODS]
)
def test_every_method_learns_and_reports_finite_metrics(name):
    config = replace(TINY, method=METHODS[name], model=Model(width=0.25, norm="batch"))
    _, state, _ = network(config)
    losses = []
    for batch in batches(12):
        state, metrics = compiled(config)(state, batch)
        assert all(np.isfinite(value) for value in metrics.values())
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
    assert int(state.step) == 12


def test_standard_step_is_plain_sgd():
    config = replace(TINY, optimizer=Optimizer(learning_rate=0.1, momentum=0.0, weight_decay=0.01, schedule="constant"))
    model, state, step = network(config)
    batch = next(batches(1))
    images = batch["image"].astype(np.float32) / 255

    def loss(params):
        logits = model.apply({"params": params}, images, train=True)
        return jnp.mean(cross_entropy(logits, batch["label"]))

    gradients = jax.jit(jax.grad(loss))(state.params)
    expected = jax.tree.map(lambda p, g: p - 0.1 * (g + 0.01 * p), state.params, gradients)
    after, _ = jax.jit(step)(state, batch)
    for a, b in zip(jax.tree.leaves(after.params), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_flow_step_descends_loss_plus_weighted_mean_penalty():
    config = replace(
        TINY,
        method=Method(name="flow-gradient", weight=3.0),
        optimizer=Optimizer(learning_rate=0.1, momentum=0.0, weight_decay=0.0, schedule="constant"),
    )
    model, state, step = network(config)
    batch = next(batches(1))
    images = jnp.asarray(batch["image"], jnp.float32) / 255

    def objective(params):
        def losses(flow):
            logits = model.apply({"params": params}, deformreg.warp(images, flow), train=True)
            return jnp.sum(cross_entropy(logits, batch["label"]))

        flow = jnp.zeros((16, 8, 8, 2))
        return losses(flow) / 16 + 3.0 * jnp.sum(jax.grad(losses)(flow) ** 2) / 16

    expected = jax.tree.map(lambda p, g: p - 0.1 * g, state.params, jax.jit(jax.grad(objective))(state.params))
    after, metrics = jax.jit(step)(state, batch)
    for a, b in zip(jax.tree.leaves(after.params), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert float(metrics["penalty"]) > 0


def test_every_kth_step_has_k_times_the_weight():
    every = replace(TINY, method=Method(name="flow-gradient", weight=1.0, every=3))
    tripled = replace(TINY, method=Method(name="flow-gradient", weight=3.0))
    _, state, _ = network(every)
    for index, batch in enumerate(batches(4)):
        expected, _ = compiled(tripled if index % 3 == 0 else TINY)(state, batch)
        state, metrics = compiled(every)(state, batch)
        assert (float(metrics["penalty"]) > 0) == (index % 3 == 0)
        for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(expected.params), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("standard", "random start")])
def test_running_statistics_are_updated_once_and_on_the_training_images_only(name):
    method = METHODS[name]
    config = replace(TINY, method=method, model=Model(width=0.25, norm="batch"))
    model, state, _ = network(config)
    batch = next(batches(1))
    after, _ = compiled(config)(state, batch)
    # Attacked images are not known here; their statistics stay within one update of the clean ones.
    attacked = "deformation" in method.name or method.name in ("adversarial", "spatial")
    tolerance = 0.05 if attacked else 1e-5
    images = batch["image"].astype(np.float32) / 255
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    _, once = jax.jit(partial(model.apply, train=True, mutable=["batch_stats"]))(variables, images)
    for a, b in zip(jax.tree.leaves(after.batch_stats), jax.tree.leaves(once["batch_stats"]), strict=True):
        np.testing.assert_allclose(a, b, atol=tolerance)


def test_standard_training_with_a_random_start_sees_gaussian_flow_noise():
    config = replace(TINY, method=Method(random_start=0.4))
    model, state, _ = network(config)
    batch = next(batches(1))
    _, metrics = compiled(config)(state, batch)
    step_key = jax.random.fold_in(jax.random.wrap_key_data(state.key), 0)
    keys = example_keys(jax.random.fold_in(step_key, 1), batch["position"])
    images = batch["image"].astype(np.float32) / 255

    @jax.jit
    def loss(sigma):
        noise = jax.vmap(lambda key: sigma * jax.random.normal(key, (*images.shape[1:3], 2)))(
            jax.vmap(lambda key: jax.random.split(key, 1)[0])(keys)
        )
        noisy = deformreg.warp(images, noise, boundary="zeros")
        return jnp.mean(cross_entropy(model.apply({"params": state.params}, noisy, train=True), batch["label"]))

    assert abs(loss(0.4) - loss(0.0)) > 1e-4
    np.testing.assert_allclose(metrics["loss"], loss(0.4), rtol=1e-5)
    assert metrics["penalty"] == 0


def test_spatial_training_sees_the_worst_of_each_images_own_draws():
    config = replace(TINY, method=Method(name="spatial", radius=1.0, degrees=20.0, draws=4))
    model, state, _ = network(config)
    batch = next(batches(1))
    _, metrics = compiled(config)(state, batch)

    @jax.jit
    def tried(draw):
        step_key = jax.random.fold_in(jax.random.wrap_key_data(state.key), 0)
        keys = jax.vmap(lambda key: jax.random.fold_in(key, draw))(
            example_keys(jax.random.fold_in(step_key, 1), batch["position"])
        )
        limits = jnp.array([jnp.deg2rad(20.0), 1, 1])
        params = jax.vmap(lambda key: jax.random.uniform(key, (3,), minval=-1, maxval=1))(keys) * limits
        images = deformreg.affine(boundary="zeros").apply(params, batch["image"].astype(np.float32) / 255)
        logits = model.apply({"params": state.params}, images, train=True)
        return cross_entropy(logits, batch["label"]), jnp.argmax(logits, axis=1) != batch["label"]

    losses, wrong = (np.stack(values) for values in zip(*(tried(draw) for draw in range(4)), strict=True))
    # A wrong prediction beats a right one, then the higher loss.
    worst = np.lexsort((losses, wrong), axis=0)[-1]
    assert len(np.unique(worst)) > 1
    np.testing.assert_allclose(metrics["loss"], losses[worst, np.arange(16)].mean(), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["group", "batch"])
@pytest.mark.parametrize("kind", ["pmap", "jit"])
def test_devices_agree(kind, norm):
    method = Method(name="flow-gradient", weight=1.0, random_start=0.1)
    config = replace(
        TINY,
        method=method,
        model=Model(width=0.25, norm=norm),
        augmentation=Augmentation(shift=1, flip=True),
        parallel=kind,
    )
    first, state = run(config, 1, kind, 20)
    for devices in (2, 4, 8):
        metrics, other = run(config, devices, kind, 20)
        assert abs(metrics["loss"] - first["loss"]) < 1e-5
        assert abs(metrics["penalty"] - first["penalty"]) < 1e-5 * max(first["penalty"], 1e-3)
        for a, b in zip(jax.tree.leaves(other.params), jax.tree.leaves(state.params), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.slow
def test_pmap_and_jit_agree():
    config = replace(TINY, method=Method(name="deformation", radius=0.2, steps=2), model=Model(width=0.25))
    mapped, state = run(config, 4, "pmap", 3)
    sharded, other = run(config, 4, "jit", 3)
    assert abs(mapped["loss"] - sharded["loss"]) < 1e-5
    for a, b in zip(jax.tree.leaves(other.params), jax.tree.leaves(state.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_config_round_trip_and_differences():
    config = replace(TINY, optimizer=Optimizer(schedule="step", decay_epochs=(4, 6)))
    assert from_json(to_json(config)) == config
    assert differences(config, replace(config, seed=3)) == ["seed: 0, 3"]
    assert differences(config, replace(config, model=Model(width=2.0, norm="group"))) == ["model.width: 0.25, 2.0"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tree: tree.update(epochs="many"), "epochs must be of type"),
        (lambda tree: tree.update(epohcs=3), r"no field 'epohcs': epochs\?"),
        (lambda tree: tree["model"].update(name="vgg"), "model.name must be"),
        (lambda tree: tree.update(method=[]), "method must be an object|method. must be an object"),
        (lambda tree: tree["method"].update(weight=-1.0), "--method.weight must be at least 0, got -1.0"),
        (lambda tree: tree.update(batch_size=True), "batch_size must be of type"),
    ],
)
def test_bad_config_files_are_named(change, message):
    tree = json.loads(to_json(TINY))
    change(tree)
    with pytest.raises(ConfigError, match=message):
        from_json(json.dumps(tree))


@pytest.mark.parametrize(
    ("method", "option"),
    [
        (Method(name="flow-gradient"), "--method.weight"),
        (Method(name="deformation"), "--method.radius"),
        (Method(name="adversarial", radius=0.1, random_start=0.1), "--method.random-start"),
        (Method(every=0), "--method.every"),
    ],
)
def test_methods_that_make_no_sense_are_refused(method, option):
    with pytest.raises(ConfigError, match=option):
        check(replace(TINY, method=method))


def test_engine_refuses_what_does_not_divide():
    with pytest.raises(ConfigError, match="--batch-size must divide among 8 devices, got 12"):
        parallel.make_engine("pmap", batch_size=12)
    with pytest.raises(ConfigError, match="--devices must be at most 8"):
        parallel.make_engine("jit", devices=9, batch_size=18)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("data"))


def small(data_dir, **changes):
    return replace(TINY, data=Data(name="digits", data_dir=data_dir), devices=1, checkpoint_every=7, **changes)


@pytest.mark.slow
def test_resume_is_exact_to_the_bit(tmp_path, data_dir):
    config = small(
        data_dir, method=Method(name="flow-gradient", weight=1.0, random_start=0.1), batch_size=100,
        augmentation=Augmentation(shift=1),
    )  # fmt: skip
    whole = loop.fit(config, tmp_path / "whole")
    asked = iter([False] * 9 + [True] * 15)
    with pytest.raises(processes.Preempted, match=r"saved step 12 of 15; --resume"):
        loop.fit(config, tmp_path / "cut", stop_requested=lambda: next(asked))
    assert manifests.steps(tmp_path / "cut" / "checkpoints") == [7, 12]
    resumed = loop.fit(config, tmp_path / "cut", resume=True)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    ours, theirs = (
        [{**line, "seconds": 0} for line in logs.read_metrics(runs.Run(tmp_path / name))] for name in ("whole", "cut")
    )
    assert [line["step"] for line in theirs] == [7, 12, 14, 15, 15]
    assert ours[0] == theirs[0]
    assert ours[2:] == theirs[3:]  # stopping ended a line at step 12, so that of step 14 has the two steps after it


class _Log:
    """Keeps what is written, in place of a file."""

    def __init__(self):
        self.lines = {}

    def write(self, step, values):
        assert step not in self.lines
        self.lines[step] = values


def test_the_log_counts_every_step_once_and_the_penalty_where_it_was_taken():
    log = _Log()
    watch = loop._Watch(log, interval=4, every=3, began=0.0)
    for step in range(1, 11):
        values = {"loss": step, "penalty": 10.0 * step * (step % 3 == 1), "learning_rate": 1 / step, "stop": 0}
        watch.push(step, {"gradient_norm": 1.0, "parameter_norm": 1.0, **values})
        if step in (5, 6, 10):
            watch.drain()
    spans = {4: range(1, 5), 5: [5], 6: [6], 8: [7, 8], 10: [9, 10]}
    assert {step: line["loss"] for step, line in log.lines.items()} == {
        step: np.mean(span) for step, span in spans.items()
    }
    assert {step: line["learning_rate"] for step, line in log.lines.items()} == {step: 1 / step for step in spans}
    assert {step: line.get("penalty") for step, line in log.lines.items()} == {4: 25, 5: None, 6: None, 8: 70, 10: 100}


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
    assert len(loop.prepare(both).validation) == 12
    held_out = loop.prepare(replace(both, data=replace(both.data, holdout=0.25)))
    assert (len(held_out.train), len(held_out.validation)) == (30, 10)
    assert len(loop.prepare(save("test.npz", train=(40, 8), test=(8, 8))).validation) == 8
    with pytest.raises(DataError, match="no split 'test'"):
        loop.prepare(save("train.npz", train=(40, 8)))
    untested = save("untested.npz", train=(40, 8), validation=(8, 8))
    loop.prepare(untested)
    with pytest.raises(DataError, match="no split 'test'"):
        loop.prepare(untested, evaluated=True)
    unlike = save("unlike.npz", train=(40, 8), test=(8, 9))
    with pytest.raises(ConfigError, match=r"images of shape \(9, 9, 1\), .* of \(8, 8, 1\): make them alike"):
        loop.prepare(unlike)
    loop.prepare(replace(unlike, augmentation=Augmentation(resize=8)))
    with pytest.raises(ConfigError, match="split test: crop 8 is larger"):
        loop.prepare(replace(save("small.npz", train=(40, 8), test=(8, 7)), augmentation=Augmentation(crop=8)))


@pytest.mark.parametrize(
    "line",
    [
        '{"step": 9, "seconds": "x"}', '{"step": 9, "seconds": NaN}', '{"step": 9, "seconds": 1e999}',
        '{"step": 9, "seconds": -1}', '{"step": 9, "seconds": 1' + "0" * 400 + "}", '{"step": 9, "seconds": null}',
        '{"step": "9"}', '{"step": 9, "loss": ' + "[" * 100_000, "[9]", '{"step": 9,',
    ],
)  # fmt: skip
def test_lines_that_no_log_has_are_left_out(tmp_path, line):
    run = runs.Run(tmp_path)
    run.metrics.write_text(f'{{"step": 5, "seconds": 2.5}}\n{line}\n{{"step": 7}}\n')
    assert logs.read_metrics(run) == [{"step": 5, "seconds": 2.5}, {"step": 7}]


def test_non_finite_loss_names_the_step_and_keeps_checkpoints(tmp_path, data_dir):
    optimizer = Optimizer(learning_rate=1e9, schedule="step", decay_epochs=(), warmup_epochs=0.0)
    config = small(data_dir, optimizer=optimizer, batch_size=100)
    with pytest.raises(loop.NonFiniteLoss, match=r"step [1-9]\d*: loss"):
        loop.fit(config, tmp_path / "run")
    assert runs.load_config(tmp_path / "run") == config


def test_a_run_folder_is_never_overwritten(tmp_path, data_dir):
    config = small(data_dir)
    run, changes = runs.claim(tmp_path / "run", config, resume=False)
    assert changes == []
    assert not run.folder.exists()
    runs.create(run, config, 1500)
    with pytest.raises(runs.RunError, match="already holds a run"):
        runs.claim(tmp_path / "run", config, resume=False)
    with pytest.raises(runs.RunError, match=r"another config \(there, here\): seed: 0, 5"):
        runs.claim(tmp_path / "run", replace(config, seed=5), resume=True)
    runs.check_data(run, 1500)
    with pytest.raises(runs.RunError, match="was trained on 1500 images, now there are 1499: give it the same data"):
        runs.check_data(run, 1499)
    (run.folder / "environment.json").write_text("[" * 10**5)
    runs.check_data(run, 1499)  # who knows
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("precious")
    with pytest.raises(runs.RunError, match="not empty"):
        runs.claim(tmp_path / "other", config, resume=False)
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["thesis.txt"]
    (tmp_path / "other" / "thesis.txt").rename(tmp_path / "other" / ".config.json.8x_killed")
    (tmp_path / "other" / ".lock").touch()
    runs.claim(tmp_path / "other", config, resume=True)


def test_what_may_change_is_said(tmp_path, data_dir):
    config = small(data_dir)
    runs.create(runs.Run(tmp_path), config, 1500)
    environment = json.loads((tmp_path / "environment.json").read_text())
    environment["packages"]["jax"] = "0.0.1"
    environment["processes"] = 4
    runs.write_json(tmp_path / "environment.json", environment)
    _, changes = runs.claim(tmp_path, replace(config, devices=4, parallel="jit"), resume=True)
    expected = [
        "parallel: 'pmap', 'jit'",
        "devices: 1, 4",
        f"packages: jax 0.0.1, jax {jax.__version__}",
        "processes: 4, 1",
    ]
    assert changes == expected


@pytest.mark.parametrize(
    ("kind", "synchronize", "expected"),
    [
        ("pmap", True, "by pmap, batch statistics over all of them"),
        ("pmap", False, "by pmap, batch statistics of each alone"),
        ("jit", False, "by jit, batch statistics over all of them"),
    ],
)
def test_the_first_lines_say_what_batch_norm_sees_and_what_validates(capsys, data_dir, kind, synchronize, expected):
    config = replace(TINY, model=Model(norm="batch", synchronize=synchronize), parallel=kind)
    validation = load("digits", split="test", data_dir=data_dir)
    loop.announce(config, parallel.make_engine(kind, batch_size=16), validation, None, [])
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"training on 8 cpu devices {expected}", "validating on digits, split test: 297 images"]


def test_writing_is_tried_again_where_that_may_help(tmp_path, monkeypatch):
    errors, pauses = [errno.ESTALE, errno.EIO, None], []

    def write(path, data):
        if code := errors.pop(0):
            raise OSError(code, os.strerror(code))

    monkeypatch.setattr(runs, "_write_whole", write)
    monkeypatch.setattr(runs.time, "sleep", pauses.append)
    runs.write_text(tmp_path / "file", "text")
    assert pauses == sorted(pauses)
    assert len(pauses) == 2
    errors[:] = [errno.ENOSPC]
    with pytest.raises(OSError, match="No space left"):
        runs.write_text(tmp_path / "file", "text")


def test_predict_does_not_depend_on_the_batch():
    config = replace(TINY, model=Model(width=0.25, norm="batch"))
    model, state, _ = network(config)
    images = next(batches(1))["image"].astype(np.float32) / 255
    logits_fn = jax.jit(partial(predict, model, state.params, state.batch_stats))
    together, alone = logits_fn(images), logits_fn(images[:1])
    np.testing.assert_allclose(together[:1], alone, atol=1e-5)


def test_pictures_show_the_flow_that_broke_an_image_or_the_last_one():
    images = np.random.default_rng(0).random((4, 8, 8, 1)).astype(np.float32)

    def logits_fn(batch):
        return jnp.stack([batch.mean(axis=(1, 2, 3)), batch[:, 0, 0, 0]], axis=1)

    exhibits, outcomes = {}, []

    def face(name, shift, indices, broken, family):
        faced = deformreg.attacks.pgd(ball=deformreg.linf(1.0), num_steps=1, perturbation=family, name=name)
        for part in ([index] for index in indices):
            params = np.asarray(family.init(np.zeros((1, 8, 8, 1), np.float32)) + shift)
            claims = np.array([True])  # which the fresh check need not confirm
            found = deformreg.attacks.AttackResult(np.zeros((1, 8, 8, 1)), params, claims, np.zeros(1), (), np.ones(1))
            evaluation._collect(exhibits, 4, faced, np.array(part), found)
        masks = (np.isin(np.arange(9), which) for which in (indices, broken))
        outcomes.append(SimpleNamespace(name=name, **dict(zip(("attacked_mask", "broken_mask"), masks, strict=True))))

    edge = deformreg.flow(boundary="edge")
    face("first", 1.0, [0, 1, 8], [0], edge)  # more images than are shown
    face("second", 2.0, [1, 0], [0], edge)
    face("pixels", 9.0, [2], [2], deformreg.additive())  # moves none
    sample = evaluation._sample(jax.tree_util.Partial(logits_fn), images, np.zeros(4, int), outcomes, exhibits)
    assert [flow.mean() for flow in sample.flows] == [1.0, 2.0, 0.0, 0.0]
    flows = jnp.broadcast_to(jnp.array([1.0, 2.0, 0.0, 0.0]).reshape(4, 1, 1, 1), (4, 8, 8, 2))
    np.testing.assert_array_equal(sample.deformed, deformreg.warp(images, flows, boundary="edge"))
    np.testing.assert_array_equal(sample.before, jnp.argmax(logits_fn(images), axis=1))
    np.testing.assert_array_equal(sample.after, jnp.argmax(logits_fn(sample.deformed), axis=1))
