"""The evaluation: denominators, refilling, checked claims, compilation, curves and reports."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closed_forms import perceptron
from jax.tree_util import Partial

from deformreg import _checks, attacks, balls
from deformreg.evaluation import Suite, accuracy_curve, evaluate, evaluator, reports, suites
from deformreg.perturbations import additive
from deformreg.statistics import wilson_interval

SHAPE = (5, 6, 1)
LOGITS = perceptron(30)
COUNT = 200
KEY = jax.random.key(7)


def data(wrong=20):
    images = np.random.default_rng(0).random((COUNT, *SHAPE)).astype(np.float32)
    labels = np.array(jnp.argmax(LOGITS(images), axis=1))
    labels[:wrong] = (labels[:wrong] + 1) % 5
    return images, labels


def any_iterate(num_steps=100, radius=0.1):
    return attacks.pgd(ball=balls.linf(radius), num_steps=num_steps, start="random", keep="any", name="pgd")


five_steps = evaluator(Suite({"pgd": lambda radius: any_iterate(5, radius)}), batch_size=32, diagnosis=False)
"""Compiled once for tests of what it returns."""


def test_the_calls_of_a_transferred_attack_include_those_of_the_attacked_model():
    images, labels = data()
    attack = attacks.transfer(attacks.pgd(ball=balls.linf(1e-6), num_steps=5, keep="best"), LOGITS)
    right = np.argmax(LOGITS(images), axis=1) == labels
    (outcome,) = evaluate(LOGITS, images[right][:1], labels[right][:1], [attack], key=KEY, diagnosis=False).attacks
    assert (outcome.broken, outcome.model_calls, outcome.mean_calls) == (0, 7, 7.0)  # five steps, the start, the other


def test_refilling_changes_no_result_and_saves_model_calls():
    images, labels = data()
    attack = any_iterate()
    both = [
        evaluate(LOGITS, images, labels, [attack], batch_size=16, key=KEY, refill=refill, diagnosis=False)
        for refill in (True, False)
    ]
    refilled, plain = (evaluation.attacks[0] for evaluation in both)
    np.testing.assert_array_equal(refilled.broken_mask, plain.broken_mask)
    whole = jax.jit(lambda key: attack.run(LOGITS, images, labels, key))(jax.random.fold_in(KEY, 0))
    np.testing.assert_array_equal(refilled.broken_mask, np.asarray(whole.success) & refilled.attacked_mask)
    assert 0.1 < refilled.robust_accuracy < 0.6
    assert refilled.model_calls <= (refilled.robust_accuracy + 0.2) * COUNT * 101
    assert refilled.model_calls < plain.model_calls
    assert refilled.mean_calls == plain.mean_calls


def test_clean_errors_count_as_broken_and_are_not_attacked():
    images, labels = data(wrong=50)
    weak = attacks.random_fields(ball=balls.linf(1e-6), num_fields=1, name="weak")
    result = evaluate(LOGITS, images, labels, [weak], batch_size=64, key=KEY, diagnosis=False)
    assert result.clean_accuracy == 0.75
    assert result.robust_accuracy == result.attacks[0].robust_accuracy == 0.75
    assert (result.attacks[0].attacked, result.attacks[0].broken, result.attacks[0].success_rate) == (150, 0, 0.0)
    assert result.robust_interval == wilson_interval(150, 200)


def test_gradient_attacks_also_run_on_examples_that_other_attacks_broke():
    images, labels = data()
    free = attacks.random_fields(ball=balls.linf(1.0), num_fields=5, name="random")
    strong, more = any_iterate(20, 0.3), any_iterate(5, 0.3)._replace(name="more")
    sequence = [free, strong, more, free._replace(name="again")]
    result = evaluate(LOGITS, images, labels, sequence, batch_size=32, key=KEY, diagnosis=False)
    first, second, third, fourth = result.attacks
    assert first.broken > 0
    np.testing.assert_array_equal(second.attacked_mask, first.attacked_mask)
    np.testing.assert_array_equal(third.attacked_mask, second.attacked_mask & ~second.broken_mask)
    np.testing.assert_array_equal(
        fourth.attacked_mask, ~(first.broken_mask | second.broken_mask | third.broken_mask) & first.attacked_mask
    )
    accuracies = [outcome.robust_accuracy for outcome in result.attacks]
    assert accuracies == sorted(accuracies, reverse=True)
    assert result.robust_accuracy == accuracies[-1]
    alone = evaluate(LOGITS, images, labels, sequence[:2], batch_size=32, key=KEY, diagnosis=False, independent=True)
    assert all(outcome.attacked == first.attacked for outcome in alone.attacks)
    np.testing.assert_array_equal(alone.attacks[1].broken_mask, second.broken_mask)


def test_an_attack_without_examples_costs_nothing():
    images, labels = data(wrong=0)
    everything = attacks.pgd(ball=balls.linf(9.0), num_steps=20, perturbation=additive(), keep="any", name="all")
    result = evaluate(
        LOGITS, images, labels, [everything, any_iterate()], batch_size=64, key=KEY, diagnosis=False,
        image_range=(-10, 10),
    )  # fmt: skip
    assert result.attacks[0].robust_accuracy == 0
    assert (result.attacks[1].attacked, result.attacks[1].model_calls, result.attacks[1].success_rate) == (0, 0, None)


@pytest.mark.parametrize("lie", ["claim", "range", "budget", "nan"])
def test_claims_are_checked(lie):
    images, labels = data()
    honest = attacks.pgd(ball=balls.linf(0.5), num_steps=2, perturbation=additive(), keep="best", name="liar")
    attack, image_range = honest, (-1.0, 2.0)
    if lie == "claim":
        attack = attacks.pgd(ball=balls.linf(1e-6), num_steps=1, keep="best", name="liar")
        step = attack.step
        attack = attack._replace(step=lambda *arguments: _always_broken(step(*arguments)))
    elif lie == "range":
        image_range = None
    elif lie == "budget":
        attack = honest._replace(size=lambda params, images: jnp.full(len(images), 1.01))
    else:
        family = honest.perturbation._replace(apply=lambda params, images: images + params * jnp.nan)
        attack = honest._replace(perturbation=family)
    result = evaluate(
        LOGITS, images, labels, [attack], batch_size=64, key=KEY, image_range=image_range, diagnosis=False
    )
    outcome = result.attacks[0]
    assert outcome.rejected > 0
    if lie != "range":
        assert outcome.broken == 0
        assert outcome.robust_accuracy == result.clean_accuracy
    assert [flag.name for flag in result.flags] == ["success_not_confirmed"]


def _always_broken(search):
    return search._replace(broken=jnp.ones_like(search.broken))


@pytest.mark.parametrize("diagnosis", [False, True])
def test_new_weights_data_and_radii_compile_nothing_new(diagnosis):
    images, labels = data()
    traces = []

    def apply(scale, images):
        if isinstance(images, jax.core.Tracer):
            traces.append(images.shape)
        return scale * LOGITS(images)

    suite = Suite({"pgd": lambda radius: any_iterate(5, radius)})
    run = evaluator(suite, batch_size=32, diagnosis=diagnosis)
    first = run(Partial(apply, jnp.float32(1)), images, labels, radius=0.1, key=KEY)
    count = len(traces)
    assert set(traces) == {(32, *SHAPE)}
    # Predictions, the attack and the diagnosis: one program each, traced once.
    assert count == 2 + diagnosis
    second = run(Partial(apply, jnp.float32(2)), images[:150], labels[:150], radius=0.2, key=KEY)
    assert len(traces) == count
    assert first.examples == 200
    assert second.examples == 150


def test_results_of_attacks_can_be_collected():
    images, labels = data()
    found = {}

    def keep(attack, indices, result):
        assert attack.name == "pgd"
        for row, index in enumerate(indices):
            assert index not in found
            found[int(index)] = jax.tree.map(lambda leaf, row=row: leaf[row], result)

    attack = any_iterate(20)
    evaluation = evaluate(LOGITS, images, labels, [attack], batch_size=32, key=KEY, diagnosis=False, collect=keep)
    outcome = evaluation.attacks[0]
    assert sorted(found) == np.flatnonzero(outcome.attacked_mask).tolist()
    broken = [index for index, result in found.items() if result.success]
    assert sorted(broken) == np.flatnonzero(outcome.broken_mask).tolist()
    params = np.stack([found[index].params for index in broken])
    np.testing.assert_array_equal(
        attack.perturbation.apply(params, images[broken]), np.stack([found[index].images for index in broken])
    )


def without_seconds(result):
    """An evaluation or a curve as nested lists, without the times."""
    return json.dumps(
        [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(result) if "seconds" not in str(path)],
        default=lambda array: array.tolist(),
    )


class Notebook:
    """Outcomes in the order in which attacks ran; after `patience` of them the next attack is interrupted."""

    def __init__(self, patience):
        self.kept, self.patience, self.at, self.ran = [], patience, 0, 0

    def __call__(self, attack, run):
        if self.at == len(self.kept):
            if self.ran == self.patience:
                raise KeyboardInterrupt
            self.ran += 1
            self.kept.append(run())
        self.at += 1
        return self.kept[self.at - 1]


def test_an_interrupted_evaluation_continues_with_the_same_result():
    images, labels = data()
    images, labels = images[:60], labels[:60]
    few = lambda radius: attacks.random_fields(ball=balls.linf(radius), num_fields=2)  # noqa: E731
    run = evaluator(Suite({"first": few, "second": few}), batch_size=32, diagnosis=False)

    def both(**options):
        evaluation = run(LOGITS, images, labels, radius=0.2, key=KEY, **options)
        return evaluation, accuracy_curve(run, LOGITS, images, labels, [0.1, 0.4], key=KEY, **options)

    whole = both()
    assert all(outcome.broken for outcome in whole[0].attacks)
    for patience, interruptions in ((1, 5), (4, 1)):
        notebook, interrupted = Notebook(patience), 0
        while True:
            notebook.at = notebook.ran = 0
            try:
                found = both(recall=notebook)
                break
            except KeyboardInterrupt:
                interrupted += 1
        assert interrupted == interruptions
        assert without_seconds(found) == without_seconds(whole)
        assert found[0].seconds > sum(outcome.seconds for outcome in notebook.kept[:2])
    for change in ({"name": "other"}, {"attacked_mask": np.ones(60, bool)}, {"robust_accuracy": 1.0}):
        with pytest.raises(ValueError, match="outcome of another attack or of other examples for 'first'"):
            run(LOGITS, images, labels, radius=0.2, key=KEY, recall=lambda _, run: run()._replace(**change))  # noqa: B023


def test_progress_reports_the_running_accuracy():
    images, labels = data()
    told = []
    result = five_steps(LOGITS, images, labels, radius=0.1, key=KEY, progress=told.append)
    assert told[-1] == ("pgd", 180, 180, result.robust_accuracy)
    assert [entry.finished for entry in told] == sorted(entry.finished for entry in told)


def test_targets():
    images, labels = data()
    targets = (labels + 2) % 5
    result = evaluate(
        LOGITS, images, labels, [any_iterate(10, 0.5)], batch_size=32, key=KEY, targets=targets, diagnosis=False
    )
    broken = evaluate(LOGITS, images, labels, [any_iterate(10, 0.5)], batch_size=32, key=KEY, diagnosis=False)
    assert broken.robust_accuracy < result.robust_accuracy < result.clean_accuracy


@pytest.mark.parametrize("radius", [1e-6, 1.0])
def test_examples_of_the_target_class_are_not_attacked(radius):
    images, labels = data()
    attack, targets = any_iterate(10, radius), np.full(COUNT, 2)
    result = evaluate(LOGITS, images, labels, [attack], batch_size=32, key=KEY, targets=targets, diagnosis=False)
    assert result.clean_accuracy == 0.9
    spared = result.correct_mask & (labels == 2)
    np.testing.assert_array_equal(result.attacks[0].attacked_mask, result.correct_mask & ~spared)
    assert result.standing_mask[spared].all()
    assert spared.sum() > 5
    if radius == 1e-6:
        assert result.robust_accuracy == 0.9
    else:
        assert result.robust_accuracy < 0.8


def test_the_default_image_range_includes_the_zeros_of_a_boundary():
    images = -1 - np.random.default_rng(0).random((4, *SHAPE)).astype(np.float32)
    shift = attacks.rotation_translation(grid=(1, 3, 3), max_pixels=1.0, boundary="zeros")

    def dark(images):
        return jnp.stack([-images[:, 0, 0, 0], jnp.full(len(images), 0.5)], axis=1)

    for sign, logits_fn in ((1, dark), (-1, lambda images: dark(-images))):
        result = evaluate(logits_fn, sign * images, np.zeros(4, int), [shift], key=KEY, diagnosis=False)
        assert (result.robust_accuracy, result.flags) == (0, ())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_error_names_images_that_are_not_finite(value):
    images, labels = data()
    images[[17, 30], 2, 3] = value
    for image_range in (None, (0.0, 1.0)):
        with pytest.raises(ValueError, match="images must be finite, got NaN or infinity in 2, the first at index 17"):
            evaluate(LOGITS, images, labels, [any_iterate()], key=KEY, image_range=image_range)


def test_a_curve_counts_breaks_that_are_known():
    images, labels = data()
    radii, known = (0.02, 0.05, 0.1), np.full(COUNT, np.inf)
    free = accuracy_curve(five_steps, LOGITS, images, labels, radii, key=KEY)
    standing = np.flatnonzero(np.isinf(free.smallest_radii))[:20]
    known[standing] = 0.05
    known[free.smallest_radii == 0.02] = 0.1
    found = accuracy_curve(five_steps, LOGITS, images, labels, radii, key=KEY, known=known)
    np.testing.assert_array_equal(found.smallest_radii, np.minimum(free.smallest_radii, known))
    assert found.model_calls < free.model_calls
    with pytest.raises(ValueError, match="known must be float of shape"):
        accuracy_curve(five_steps, LOGITS, images, labels, radii, key=KEY, known=known[:3])


def test_a_data_set_stays_on_the_host(tmp_path):
    images, _ = data()
    assert _checks.images_on_host(images) is images
    np.save(tmp_path / "images.npy", images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    assert np.shares_memory(_checks.images_on_host(mapped), mapped)
    assert _checks.images_on_host(images.astype(np.float64)).dtype == np.float32
    np.testing.assert_array_equal(_checks.images_on_host(jnp.asarray(images)), images)


def refused(error, words, *, logits_fn=LOGITS, attack_list=None, **changes):
    """Checks that an evaluation ends with one line before the model has seen an image, and that it is one line."""
    images, labels = data()
    seen = []

    def watched(images):
        seen.append(not isinstance(images, jax.core.Tracer))
        return logits_fn(images)

    arguments = {"images": images, "labels": labels, "key": KEY, "batch_size": 16, **changes}
    chosen = [any_iterate()] if attack_list is None else attack_list
    model = watched if callable(logits_fn) else logits_fn
    with pytest.raises(error) as caught:
        evaluate(model, arguments.pop("images"), arguments.pop("labels"), chosen, **arguments)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message
    assert not any(seen)


@pytest.mark.parametrize(
    ("error", "words", "change"),
    [
        (TypeError, ["logits_fn", "a tuple of 2"], lambda logits: (logits, logits)),
        (TypeError, ["logits_fn", "a dict of 1"], lambda logits: {"logits": logits}),
        (TypeError, ["logits_fn", "None"], lambda logits: None),
        (ValueError, ["logits_fn", "one per image, shape (16,)", "jnp.stack"], lambda logits: logits[:, 0]),
        (ValueError, ["logits_fn", "one per image, shape (16, 1)"], lambda logits: logits[:, :1]),
        (ValueError, ["logits_fn", "shape (5, 16)"], lambda logits: logits.T),
        (ValueError, ["logits_fn", "shape ()"], lambda logits: logits.sum()),
        (TypeError, ["logits_fn", "int32"], lambda logits: logits.astype(int)),
    ],
)
def test_what_is_no_logits_ends_before_the_first_attack(error, words, change):
    refused(error, words, logits_fn=lambda images: change(LOGITS(images)))
    images, labels = data()
    with pytest.raises(error) as caught:
        any_iterate().run(lambda images: change(LOGITS(images)), images[:16], labels[:16], KEY)
    assert words[0] in str(caught.value)


def _replaced(labels, index, value):
    return np.where(np.arange(len(labels)) == index, value, labels)


@pytest.mark.parametrize(
    ("error", "words", "change"),
    [
        (ValueError, ["labels must be in [0, 5)", "99 at index 3"], lambda labels: _replaced(labels, 3, 99)),
        (ValueError, ["labels must be in [0, ", "-1 at index 0"], lambda labels: _replaced(labels, 0, -1)),
        (ValueError, ["labels must be in [0, ", str(2**40)[:5]], lambda labels: labels.astype(np.int64) + 2**40),
        (ValueError, ["labels must be in [0, 5)", "subtract 1"], lambda labels: labels + 1),
        (ValueError, ["labels", "labels.argmax(axis=1)"], lambda labels: np.eye(5, dtype=int)[labels]),
        (ValueError, ["labels", "labels[:, 0]"], lambda labels: labels[:, None]),
        (TypeError, ["labels must be integers", "float32"], lambda labels: labels.astype(np.float32)),
        (TypeError, ["labels must be integers", "<U1"], lambda labels: [str(label) for label in labels]),
        (TypeError, ["labels must be integers", "None"], lambda labels: None),
    ],
)  # fmt: skip
def test_labels_outside_the_classes_are_named(error, words, change):
    images, labels = data()
    refused(error, words, labels=change(labels))
    with pytest.raises(error) as caught:
        any_iterate().run(LOGITS, images, change(labels), KEY)
    assert words[0] in str(caught.value)


def test_targets_outside_the_classes_are_named():
    _, labels = data()
    refused(ValueError, ["targets must be in [0, 5)", "5 at index"], targets=labels + 1)
    refused(TypeError, ["targets must be integers", "float32"], targets=labels.astype(np.float32))


@pytest.mark.parametrize("kind", ["radius", "step_size", "component"])
def test_one_number_per_example_ends_before_the_first_attack(kind):
    """In the rows of a batch an example would get another's; one batch that holds all examples is no exception."""
    numbers = np.linspace(0, 0.1, COUNT, dtype=np.float32)
    attack = {
        "radius": attacks.pgd(ball=balls.l2(numbers), num_steps=2, name="own"),
        "step_size": attacks.pgd(ball=balls.l2(0.1), step_size=numbers, num_steps=2, name="own"),
        "component": attacks.pgd(ball=balls.linf(numbers.reshape(-1, 1, 1, 1)), num_steps=2, name="own"),
    }[kind]
    for batch_size in (16, COUNT):
        refused(
            ValueError, ["'own'", "one radius or step size per example"], attack_list=[attack], batch_size=batch_size
        )
    images, labels = data()
    assert attack.run(LOGITS, images, labels, KEY).success.shape == (COUNT,)


def test_radii_per_component_are_evaluated():
    images, labels = data()
    attack = attacks.pgd(ball=balls.linf(np.array([0.5, 0.0])), num_steps=5, name="rows")
    result = evaluate(LOGITS, images, labels, [attack], batch_size=16, key=KEY, diagnosis=False)
    assert result.attacks[0].budget.radius == (0.5, 0.0)
    assert result.attacks[0].broken > 0
    assert result.attacks[0].rejected == 0


@pytest.mark.parametrize(
    ("error", "words", "image_range"),
    [
        (ValueError, ["images must lie in image_range (0.0, 0.5)", "from 0"], (0.0, 0.5)),
        (ValueError, ["images must lie in image_range (0.5, 2.0)"], (0.5, 2.0)),
        (ValueError, ["low < high", "(1.0, 0.0)"], (1.0, 0.0)),
        (ValueError, ["low < high", "nan"], (0.0, np.nan)),
        (ValueError, ["image_range must be finite"], (0.0, np.inf)),
        (ValueError, ["image_range must be (low, high)"], 1.0),
        (ValueError, ["image_range must be (low, high)"], (None, 1.0)),
    ],
)
def test_a_range_that_the_images_cannot_keep_is_named(error, words, image_range):
    refused(error, words, image_range=image_range)


@pytest.mark.parametrize("radius", [np.inf, np.nan, -1.0])
def test_a_radius_that_is_none_ends_before_the_first_attack(radius):
    images, labels = data()
    run = evaluator(Suite({"own": lambda radius: any_iterate()}), diagnosis=False)
    with pytest.raises(ValueError, match="radius must be"):
        run(LOGITS, images, labels, radius=radius, key=KEY)
    with pytest.raises(ValueError, match="radii must"):
        accuracy_curve(run, LOGITS, images, labels, [0.1, radius], key=KEY)


def test_images_of_another_layout_are_named():
    labels = data()[1]
    wide = np.random.default_rng(0).random((COUNT, 3, 24, 25)).astype(np.float32)

    def channels_first(images):
        return LOGITS(images[:, :1, :5, :6].transpose(0, 2, 3, 1))

    refused(ValueError, ["[n, h, w, c]", "(0, 2, 3, 1)"], images=wide, logits_fn=channels_first)
    with pytest.raises(ValueError, match=r"looks like \[n, c, h, w\]"):
        any_iterate().run(channels_first, wide, labels, KEY)
    # Pixel attacks have no axes to confuse.
    pixels = attacks.pgd(ball=balls.linf(0.1), num_steps=2, perturbation=additive())
    labels = np.asarray(jnp.argmax(channels_first(wide), axis=1))
    result = evaluate(channels_first, wide, labels, [pixels], key=KEY, diagnosis=False, image_range=(-1, 2))
    assert result.robust_accuracy < 1


def test_big_endian_arrays_are_read():
    images, labels = data()
    swapped = images.astype(">f4"), labels.astype(">i8")
    results = [five_steps(LOGITS, *pair, radius=0.1, key=KEY) for pair in ((images, labels), swapped)]
    np.testing.assert_array_equal(results[0].standing_mask, results[1].standing_mask)
    assert any_iterate(5).run(LOGITS, *swapped, KEY).success.shape == (COUNT,)


def test_what_is_no_list_of_attacks_is_named():
    refused(TypeError, ["'pgd' alone", "[attack]"], attack_list=any_iterate())
    refused(TypeError, ["attacks", "the function pgd"], attack_list=attacks.pgd)
    refused(TypeError, ["attacks", "call it, pgd(...)"], attack_list=[attacks.pgd])
    refused(TypeError, ["suites.standard(0.5)"], attack_list=suites.standard)
    refused(TypeError, ["attacks must be a list"], attack_list=0.5)
    refused(TypeError, ["key must be a JAX random key", "got 0"], key=0)
    refused(TypeError, ["logits_fn must be a function"], logits_fn=None)


def test_what_no_attack_can_do_ends_before_the_first_one():
    def failing(logits, labels):
        raise ValueError("no such loss")

    last = attacks.pgd(ball=balls.linf(0.1), num_steps=1, loss=failing, name="last")
    refused(ValueError, ["no such loss"], attack_list=[any_iterate(), last])


@pytest.mark.parametrize("classes", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_the_suites_evaluate_models_of_few_classes(classes):
    logits_fn = perceptron(30, classes=classes)
    images = data()[0][:8]
    labels = np.asarray(jnp.argmax(logits_fn(images), axis=1))
    members = [attack for attack in suites.standard(0.1) if attack.uses_gradients]
    result = evaluate(logits_fn, images, labels, members, batch_size=8, key=KEY, diagnosis=False)
    assert len(result.attacks) == 3


def test_the_diagnosis_takes_at_most_a_fifth_of_the_calls_and_is_shown():
    images, labels = data(wrong=0)
    told = []
    attack = attacks.pgd(ball=balls.linf(1e-4), num_steps=40, name="weak")
    result = evaluate(LOGITS, images, labels, [attack], batch_size=50, key=KEY, progress=told.append)
    assert result.robust_accuracy > 0.9
    assert 0.1 < result.diagnosis.model_calls / result.model_calls <= 0.2
    assert 0 < result.diagnosis.seconds + result.diagnosis.compile_seconds < result.seconds
    assert {entry.attack for entry in told} == {"weak", "diagnosis"}
    assert told[-1].finished == told[-1].total


def test_a_sample_is_attacked_unless_attacks_are_compared():
    images, labels = data()
    weak = attacks.random_fields(ball=balls.linf(1e-6), num_fields=1)._replace(sample=7)
    for independent, count in ((False, 7), (True, 180)):
        result = evaluate(
            LOGITS, images, labels, [weak], batch_size=32, key=KEY, diagnosis=False, independent=independent
        )
        assert result.attacks[0].attacked == count
        assert result.robust_accuracy == 0.9


def test_an_evaluation_prints_as_a_table():
    images, labels = data()
    text = str(five_steps(LOGITS, images, labels, radius=0.1, key=KEY))
    lines = text.splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["attack", "clean", "pgd", "worst"]
    assert "90.0%" in lines[1]
    assert "no red flags" in lines[-1]
    assert max(len(line) for line in lines) < 80


def test_arguments_are_checked_by_name():
    images, labels = data()
    with pytest.raises(ValueError, match="different names"):
        evaluate(LOGITS, images, labels, [any_iterate(), any_iterate()], key=KEY)
    with pytest.raises(ValueError, match="labels must have shape"):
        evaluate(LOGITS, images, labels[:3], [any_iterate()], key=KEY)
    with pytest.raises(ValueError, match="at least one example"):
        evaluate(LOGITS, images[:0], labels[:0], [any_iterate()], key=KEY)
    with pytest.raises(TypeError, match="images must be floating point"):
        evaluate(LOGITS, np.zeros((2, 4, 4, 1), int), labels[:2], [any_iterate()], key=KEY)
    with pytest.raises(ValueError, match=r"images must have shape \[n, h, w, c\]"):
        evaluate(LOGITS, images[0, :, :, 0], labels, [any_iterate()], key=KEY)
    with pytest.raises(TypeError, match="images must be an array, got None"):
        evaluate(LOGITS, None, labels, [any_iterate()], key=KEY)


def test_a_curve_attacks_the_examples_that_still_stand_and_compiles_once():
    images, labels = data()
    traces = []

    def apply(images):
        traces.append(images.shape)
        return LOGITS(images)

    def pgd(radius):
        return attacks.pgd(ball=balls.linf(radius), num_steps=5, step_size=radius / 2, keep="any")

    radii = (0.02, 0.05, 0.1)
    run = evaluator(Suite({"pgd": pgd}), batch_size=32, diagnosis=False)
    at_once = run(apply, images, labels, radius=0.05, key=KEY)
    count = len(traces)
    curve = accuracy_curve(run, apply, images, labels, radii, key=KEY)
    assert len(traces) == count
    assert curve.accuracies[0] == at_once.clean_accuracy == 0.9
    assert list(curve.accuracies) == sorted(curve.accuracies, reverse=True)
    # Deterministic steps from zero: alone, the attack at one radius breaks no more than the curve says.
    assert curve.accuracies[2] <= at_once.robust_accuracy <= curve.accuracies[1]
    np.testing.assert_array_equal(curve.smallest_radii == 0, ~at_once.correct_mask)
    for radius, accuracy in zip(curve.radii, curve.accuracies, strict=True):
        assert np.mean(curve.smallest_radii > radius) == accuracy
    # An example counts the midpoint between the radius that broke it and the one before.
    midpoints = {0.0: 0.0, 0.02: 0.01, 0.05: 0.035, 0.1: 0.075, np.inf: 0.1}
    assert curve.mean_minimal_displacement == pytest.approx(np.mean([midpoints[r] for r in curve.smallest_radii]))
    points = reports.curve_points(curve)
    assert [point["radius_pixels"] for point in points] == [0.0, *radii]
    assert all(point["low"] <= point["accuracy"] <= point["high"] for point in points)
    lines = reports.curves_to_csv({"a": points, "b": points}).splitlines()
    assert lines[0] == "model,radius_pixels,accuracy,low,high"
    assert len(lines) == 9
    with pytest.raises(ValueError, match="radii must increase"):
        accuracy_curve(run, apply, images, labels, (0.2, 0.1), key=KEY)
    with pytest.raises(TypeError, match="radius must be given"):
        run(apply, images, labels, key=KEY)


def test_reports_are_plain_data():
    images, labels = data()
    result = five_steps(LOGITS, images, labels, radius=0.1, key=KEY)
    written = json.loads(reports.to_json(result))
    assert written["clean_accuracy"] == 0.9
    row = written["attacks"]["pgd"]
    assert row["robust_accuracy"] == result.robust_accuracy == written["robust_accuracy"]
    assert row["radius_pixels"] == 0.1
    assert row["model_calls"] == result.attacks[0].model_calls
    assert written["flags"] == []
    assert reports.to_csv(result).splitlines()[0].startswith("attack,robust_accuracy")
    assert "| pgd |" in reports.to_markdown(result)


@pytest.mark.parametrize(("levels", "broken"), [(0.4, 0), (1.0, 4)])
def test_what_breaks_an_image_survives_eight_bits(levels, broken):
    images = np.full((4, 2, 2, 1), 100 / 255, np.float32)

    def bright(images):  # class 1 from a tenth of a level on
        return 1e3 * jnp.stack([jnp.zeros(len(images)), images[:, 0, 0, 0] - 100.1 / 255], axis=1)

    found = {}
    attack = attacks.pgd(ball=balls.linf(levels / 255), num_steps=3, perturbation=additive(), keep="any", name="pixels")
    options = {"key": KEY, "diagnosis": False, "image_range": (0.0, 1.0)}
    result = evaluate(
        bright, images, np.zeros(4, int), [attack], quantize=True, **options,
        collect=lambda attack, indices, result: found.update(zip(indices.tolist(), result.images, strict=True)),
    )  # fmt: skip
    assert (result.attacks[0].broken, result.flags) == (broken, ())
    for image in found.values():
        np.testing.assert_allclose(255 * image, np.round(255 * image), atol=1e-4)
    assert evaluate(bright, images, np.zeros(4, int), [attack], **options).attacks[0].broken == 4
    with pytest.raises(ValueError, match="image_range must be given to quantize"):
        evaluator([attack], quantize=True)
