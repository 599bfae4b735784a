"""The evaluation of a run: what its pictures show."""

from __future__ import annotations

import re
import threading
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deformreg
from deformreg.evaluation.found import Found
from train import evaluation, parts, reports
from train.config import Config, Evaluation
from train.errors import Preempted, counted
from train.exhibits import Exhibits
from train.parts import Team

PROTOCOL = evaluation.Protocol(radius=0.5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, []),
        ({"seed": 3}, ["--seed 3 has no effect: the attacks of --suite released start from zero"]),
        ({"seed": 3, "suite": "standard", "independent": True}, []),
        ({"seed": 3, "sources": (("other", jnp.sum),)}, []),
        ({"independent": True}, []),
        ({"independent": True, "suite": "quick"}, ["--independent has no effect: --suite quick has one attack"]),
    ],
)
def test_what_has_no_effect_is_said(changes, said):
    assert evaluation.without_effect(PROTOCOL._replace(**changes)) == said


def fake_run(logits_fn, images, labels, *, batch_size=32):
    """A run that nobody trained."""
    return SimpleNamespace(
        images=images, labels=labels, contents="images", logits_fn=jax.tree_util.Partial(logits_fn),
        class_names=tuple("abcde"), step=1, source="images", train_seconds=1.0, sample_seed=None,
        config=Config(evaluation=Evaluation(radius=0.5, steps=4, batch_size=batch_size)),
    )  # fmt: skip


@pytest.fixture(scope="module")
def studied():
    """A study, the sizes of the batches that its network saw, and its run."""
    images = np.random.default_rng(1).random((60, 6, 6, 1)).astype(np.float32)
    sizes = set()

    def narrow(batch):
        """Class 1 where a pixel is nearly 0.5: steps along the gradient cross it, and the last one may be beyond."""
        sizes.add(len(batch))
        distance = jnp.abs(batch[:, 2, 2, 0] - 0.5)
        return jnp.stack([jnp.zeros_like(distance), 1 - 20 * distance], axis=1)

    labels = np.array(jnp.argmax(narrow(images), axis=1))
    labels[:3] = 1 - labels[:3]
    sizes.clear()
    run = fake_run(narrow, images, labels)
    return evaluation.evaluate_run("run", run, PROTOCOL), sizes, run


def test_the_number_of_a_run_counts_every_break_that_is_known(studied):
    """Those of the curve's attack, too: a report contradicts itself if its number is above its own curve."""
    row = studied[0].row
    at = {point["radius_pixels"]: point["accuracy"] for point in row["curve"]}
    lenient = row["attacks"]["multi-step"]["robust_accuracy"]
    assert row["robust_accuracy"] == at[0.5] < lenient - 0.1
    assert row["robust_accuracy"] == studied[0].evaluation.standing_mask.mean()
    assert row["robust_interval"][0] < row["robust_accuracy"] < row["robust_interval"][1]
    assert at[0.75] <= at[0.5] <= at[0.375]
    assert at[0.0] == row["clean_accuracy"] == 57 / 60


def test_the_released_protocol_is_named_as_lenient(studied):
    row = studied[0].row
    table, caption = reports.table({"run": row}), reports._caption(row)
    assert "| multi-step (released, lenient) |" in table
    assert "`multi-step` is the released protocol" in caption
    assert f" {100 * row['robust_accuracy']:.1f} [" in table.splitlines()[-1]
    strict = {**row, "suite": "quick"}
    assert "lenient" not in reports.table({"run": strict}) + reports._caption(strict)


def test_no_batch_of_a_run_is_larger_than_its_option(studied):
    assert max(studied[1]) == 32


def test_a_report_of_more_images_than_its_curve(studied, tmp_path, monkeypatch):
    """The curve has the first images only; the number of the run, all of them."""
    monkeypatch.setattr(evaluation, "CURVE_EXAMPLES", 40)
    whole, _, run = studied
    study = evaluation.evaluate_run("run", run, PROTOCOL)
    row = study.row
    at = {point["radius_pixels"]: point["accuracy"] for point in row["curve"]}
    assert (row["examples"], row["curve_examples"], len(study.sample.images)) == (60, 40, 40)
    standing, first = study.evaluation.standing_mask, whole.evaluation.standing_mask[:40]
    assert at[0.5] == standing[:40].mean() == first.mean()
    assert row["robust_accuracy"] == standing.mean()
    both = [row["attacks"][name]["robust_accuracy"] for name in ("multi-step", "any iterate")]
    assert whole.row["robust_accuracy"] <= row["robust_accuracy"] <= min(both)
    for array, expected in zip(study.sample, whole.sample, strict=True):
        np.testing.assert_array_equal(array, expected[:40])
    reports.write_run_report(tmp_path, "run", study, run.class_names, lambda: None)
    text = (tmp_path / "evaluation.md").read_text()
    assert "Accuracy in percent of 60 test images" in text
    assert "(40 images, 15 sign steps from zero, any iterate)" in text
    assert all((tmp_path / name).stat().st_size > 1000 for name in ("examples.png", "curve.png"))


def test_a_protocol_may_name_the_steps_of_all_runs(studied, tmp_path):
    _, _, run = studied
    found = {}
    for steps in (None, 4, 1):
        protocol = PROTOCOL._replace(steps=steps)
        file = evaluation.partial_of(tmp_path, run, protocol)
        suite, _ = evaluation._suites(protocol, protocol.steps_of(run))
        found[steps] = file.path, suite(0.5)[0].settings["num_steps"]
    assert found[None] == found[4]  # the run's own
    assert found[1][0] != found[4][0]
    assert [count for _, count in found.values()] == [4, 4, 1]


def without_times(study):
    """The report and the pictures of a study, without what every start measures anew."""
    row = {name: value for name, value in study.row.items() if name != "seconds"}
    for attack in row["attacks"].values():
        del attack["seconds"], attack["compile_seconds"]
    return row, [array.tolist() for array in study.sample]


def test_an_interrupted_evaluation_continues_with_the_same_report(studied, tmp_path, capsys):
    study, _, run = studied
    writes, told = [], []

    def interrupt_the_third():
        writes.append(None)
        if len(writes) == 3:
            raise KeyboardInterrupt

    for _ in range(3):
        writes.clear()
        file = evaluation.partial_of(tmp_path, run, PROTOCOL, interrupt_the_third)
        with pytest.raises(KeyboardInterrupt):
            evaluation.evaluate_run("run", run, PROTOCOL, file)
        told.append(capsys.readouterr().err)
    attack = r"\d+ images of pgd at 0\.375 px"
    assert re.match(rf"run: continuing after 4 attacks and {attack} of an earlier start\n", told[-1])
    kept = rf"run: kept 6 attacks and \d+ images of pgd at 0\.75 px in {re.escape(str(file.path))}; the same command"
    assert re.search(rf"{kept} continues from there; missing: pgd at 0\.75 px\n", told[-1])
    writes.clear()
    again = evaluation.evaluate_run("run", run, PROTOCOL, file)
    assert len(writes) == 1
    assert without_times(again) == without_times(study)
    assert again.row["seconds"] > sum(attack.seconds for attack in again.evaluation.attacks)
    for other in ({"seed": 1}, {"radius": 0.6}, {"suite": "quick"}, {"quantize": True}):
        other = PROTOCOL._replace(**other)
        assert evaluation.partial_of(tmp_path, run, other).path != file.path
    file.remove()
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_what_a_quantized_evaluation_breaks_has_8_bits(studied):
    _, _, run = studied
    study = evaluation.evaluate_run("run", run, PROTOCOL._replace(quantize=True))
    assert study.row["quantize"]
    deformed = study.sample.deformed[study.sample.after != study.sample.before]
    assert len(deformed) > 10
    np.testing.assert_allclose(255 * deformed, np.rint(255 * deformed), atol=1e-4)


def test_pictures_show_the_flow_that_broke_an_image_or_the_last_one():
    images = np.random.default_rng(0).random((4, 8, 8, 1)).astype(np.float32)

    def logits_fn(batch):
        return jnp.stack([batch.mean(axis=(1, 2, 3)), batch[:, 0, 0, 0]], axis=1)

    exhibits = Exhibits(fake_run(logits_fn, images, np.zeros(4, int)), 4)

    def face(name, shift, indices, broken, family):
        faced = deformreg.attacks.pgd(ball=deformreg.linf(1.0), num_steps=1, perturbation=family, name=name)
        for part in ([index] for index in indices):
            params = np.asarray(family.init(np.zeros((1, 8, 8, 1), np.float32)) + shift)
            claims = np.array([True])  # which the fresh check need not confirm
            nothing = np.zeros(1)
            found = deformreg.attacks.AttackResult(nothing, params, claims, nothing, (), nothing, nothing)
            exhibits.collect(faced, np.array(part), found)
        masks = (np.isin(np.arange(9), which) for which in (indices, broken))
        exhibits.conclude(faced, SimpleNamespace(**dict(zip(("attacked_mask", "broken_mask"), masks, strict=True))))

    edge = deformreg.flow(boundary="edge")
    face("first", 1.0, [0, 1, 8], [0], edge)  # more images than are shown
    face("second", 2.0, [1, 0], [0], edge)
    face("pixels", 9.0, [2], [2], deformreg.additive())  # moves none
    sample = exhibits.sample()
    assert [flow.mean() for flow in sample.flows] == [1.0, 2.0, 0.0, 0.0]
    flows = jnp.broadcast_to(jnp.array([1.0, 2.0, 0.0, 0.0]).reshape(4, 1, 1, 1), (4, 8, 8, 2))
    np.testing.assert_array_equal(sample.deformed, deformreg.warp(images, flows, boundary="edge"))
    np.testing.assert_array_equal(sample.before, jnp.argmax(logits_fn(images), axis=1))
    np.testing.assert_array_equal(sample.after, jnp.argmax(logits_fn(sample.deformed), axis=1))


def in_a_thread(*arguments, **options):
    """Starts an evaluation beside the test; returns its thread and a list that gets its study, or what it raises."""
    ends = []

    def evaluate():
        try:
            ends.append(evaluation.evaluate_run(*arguments, **options))
        except Preempted as error:
            ends.append(error)

    thread = threading.Thread(target=evaluate, daemon=True)
    thread.start()
    return thread, ends


def test_a_process_that_comes_late_takes_its_own_share(studied, tmp_path):
    """What the others have found of this start by then is no work of an earlier one."""
    study, _, run = studied
    file = evaluation.partial_of(tmp_path, run, PROTOCOL)
    thread, ends = in_a_thread("run", run, PROTOCOL, file, team=Team(1, 2, start=7))
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("*.1.0.partial")) and time.monotonic() < deadline:
        time.sleep(0.01)
    own = evaluation.evaluate_run("run", run, PROTOCOL, file, team=Team(0, 2, start=7))
    thread.join(timeout=120)
    for mask in (own.evaluation.standing_mask, ends[0].evaluation.standing_mask):
        np.testing.assert_array_equal(mask, study.evaluation.standing_mask)


def test_what_is_left_of_an_earlier_attack_is_passed_over_in_silence(studied, tmp_path, capsys):
    file, team = evaluation.partial_of(tmp_path, studied[2], PROTOCOL), Team(0, 1, start=7)
    parts.write(file, team, parts.Part(0, 7, True, Found.nothing(5), (0, 0.0, 0.0), np.zeros(0, np.int64), []))
    assert len(parts.begun(file, 0, 5).parts) == 1
    assert parts.begun(file, 2, 3).parts == []  # of a curve, which has fewer images
    assert capsys.readouterr().err == ""


def test_radii_that_differ_little_are_attacks_of_their_own():
    protocol = PROTOCOL._replace(radii=(0.5, 0.5000001))
    assert len(evaluation._attacks(protocol, 1, protocol.radii, (3, 3))) == 2 + 2 * 2


def test_a_process_that_waits_for_another_one_stops_when_asked(studied, tmp_path):
    file = evaluation.partial_of(tmp_path, studied[2], PROTOCOL)
    options = {"team": Team(1, 2, start=7), "stop_requested": lambda: True, "again": "`fit --resume RUN`"}
    thread, ends = in_a_thread("run", studied[2], PROTOCOL, file, **options)
    thread.join(timeout=60)
    assert isinstance(ends[0], Preempted)
    assert str(ends[0]) == "SIGTERM; `fit --resume RUN` continues"


def test_all_processes_hear_that_one_was_asked_to_stop(studied, tmp_path):
    file = evaluation.partial_of(tmp_path, studied[2], PROTOCOL)
    asked = [False, True, False]
    starts = [Team(0, 2, start=7), Team(1, 2, start=7), Team(0, 2, start=8)]
    first, second, later = (parts.stop_together(file, team, lambda at=at: asked[at]) for at, team in enumerate(starts))
    assert not first()
    assert second()
    assert first()
    assert second()
    assert not later()  # what an earlier start has left stops none
    asked[2] = True
    assert later()
    assert not first()
    file.remove()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("number", "text"), [(0, "0 images"), (1, "1 image"), (1000, "1,000 images")])
def test_one_is_singular(number, text):
    assert counted(number, "image") == text
