"""Every red flag on a model that has the fault, and none on a healthy one."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closed_forms import perceptron

from deformreg import attacks, balls
from deformreg.criteria import regression
from deformreg.evaluation import evaluate, flags
from deformreg.evaluation.flags import outputs, queries
from deformreg.evaluation.flags.diagnosis import diagnosis_failed
from deformreg.evaluation.flags.outcomes import gradient_free_beats_gradients
from deformreg.evaluation.outcomes import AttackOutcome
from deformreg.interop.host import ModelError
from deformreg.perturbations import additive, flow

KEY = jax.random.key(0)
HEALTHY = perceptron(64)
RADIUS = 0.5
IMAGES = np.random.default_rng(0).random((64, 8, 8, 1)).astype(np.float32)
SUITE = [
    attacks.random_fields(ball=balls.linf(RADIUS), num_fields=5, name="random"),
    attacks.pgd(ball=balls.linf(RADIUS), num_steps=10, keep="any", name="pgd"),
]


def diagnose(logits_fn, suite=SUITE, images=IMAGES):
    labels = np.asarray(jnp.argmax(logits_fn(jnp.asarray(images)), axis=1))
    result = evaluate(logits_fn, images, labels, suite, batch_size=64, key=KEY)
    assert result.diagnosis.model_calls > 0
    for flag in result.flags:
        assert flag.explanation
        assert flag.evidence
    return {flag.name: flag for flag in result.flags}


def test_a_healthy_model_raises_none():
    labels = np.asarray(jnp.argmax(HEALTHY(IMAGES), axis=1))
    assert evaluate(HEALTHY, IMAGES, labels, SUITE, batch_size=16, key=KEY).flags == ()


def test_an_infinite_logit_of_one_draw_is_no_fault():
    seen = np.random.default_rng(0).random((1 + queries.DRAWS, 20, 3))
    seen[3, 0] = np.nan
    seen[2, 1, 0] = -np.inf
    found = queries.Queries(seen, 0.0, 0.0, RADIUS)
    assert found.largest_logit < 1
    assert flags.raised(flags.QUERY_FLAGS, found) == ()
    still = np.repeat(seen[3:4], 1 + queries.DRAWS, axis=0)  # NaN in every draw: no response
    assert [flag.name for flag in flags.raised(flags.QUERY_FLAGS, found._replace(logits=still))] == [
        "outputs_do_not_respond"
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "attack",
    [
        attacks.elastic(0.01, sigma=0.5),
        attacks.stadv(ball=balls.linf(0.01)),
    ],
    ids=lambda attack: attack.name,
)
def test_larger_budgets_are_tried_without_the_bound_of_the_family(attack):
    assert diagnose(HEALTHY, [attack]) == {}


@pytest.mark.parametrize(
    ("ball", "family", "radius"),
    [
        (balls.l2(0.8), additive(image_range=(0.0, 1.0)), 0.8 / 64**0.5),
        (balls.pixelwise_l2(0.2), flow(), 0.2 / 2**0.5),
    ],
)
def test_the_budget_examined_lies_in_the_ball(ball, family, radius):
    def masked(images):
        return HEALTHY(jnp.round(images * 4) / 4)

    found = diagnose(masked, [attacks.pgd(ball=ball, num_steps=5, perturbation=family)])
    np.testing.assert_allclose(found["budget_without_effect"].evidence["radii"][0], radius)


def test_a_quantizing_layer_is_caught():
    def masked(images):
        return HEALTHY(jnp.round(images * 4) / 4)

    labels = np.asarray(jnp.argmax(masked(IMAGES), axis=1))
    found = {flag.name for flag in evaluate(masked, IMAGES, labels, SUITE, batch_size=16, key=KEY).flags}
    expected = {"zero_gradients", "unbounded_attack_fails", "budget_without_effect", "gradient_free_beats_gradients"}
    assert found >= expected


def test_a_huge_logit_scale_is_caught():
    assert "zero_gradients" in diagnose(lambda images: 1e4 * HEALTHY(images))


def test_probabilities_are_caught():
    assert "probabilities_not_logits" in diagnose(lambda images: jax.nn.softmax(HEALTHY(images)))


def test_a_random_model_is_caught():
    rng = np.random.default_rng(0)

    def noisy(images):
        shape = jax.ShapeDtypeStruct((len(images), 5), jnp.float32)
        return HEALTHY(images) + jax.pure_callback(lambda: 0.1 * rng.normal(size=shape.shape).astype(np.float32), shape)

    labels = np.asarray(jnp.argmax(HEALTHY(IMAGES), axis=1))
    weak = attacks.random_fields(ball=balls.linf(1e-3), num_fields=1)
    found = [flag.name for flag in evaluate(noisy, IMAGES, labels, [weak], key=KEY).flags]
    assert "outputs_change_between_calls" in found


def test_a_model_that_is_random_in_python_is_caught():
    traces = []

    def noisy(images):
        traces.append(0)
        return HEALTHY(images) + 0.1 * jax.random.normal(jax.random.key(len(traces)), (len(images), 5))

    assert "identity_changes_the_loss" in diagnose(noisy, [attacks.pgd(ball=balls.linf(0.01), num_steps=2)])


def test_statistics_of_the_batch_are_caught():
    def normalized(images):
        logits = HEALTHY(images)
        return logits - logits.mean(axis=0)

    assert "outputs_depend_on_the_batch" in diagnose(normalized)


@pytest.mark.parametrize("batch_size", [5, 64])
def test_the_model_sees_batches_of_one_size_only(batch_size):
    """A network may be exported for one batch size, and memory may allow no other."""
    sizes = set()

    def exported(images):
        sizes.add(len(images))
        return HEALTHY(images)

    labels = np.asarray(jnp.argmax(HEALTHY(IMAGES), axis=1))
    result = evaluate(exported, IMAGES, labels, SUITE, batch_size=batch_size, key=KEY)
    assert (sizes, result.flags) == ({batch_size}, ())


def test_a_fault_in_any_batch_is_caught():
    labels = np.asarray(jnp.argmax(HEALTHY(IMAGES), axis=1))
    last = jnp.asarray(IMAGES[-1])

    def faulty(images):
        is_last = (images == last).all(axis=(1, 2, 3))
        return jnp.where(is_last[:, None], jnp.nan, HEALTHY(images))

    raised = evaluate(faulty, IMAGES, labels, SUITE, batch_size=5, key=KEY).flags
    assert [(flag.name, flag.evidence) for flag in raised] == [("logits_not_finite", {"examples": 1})]


@pytest.mark.parametrize("batch_size", [16, 64])
def test_a_model_that_masks_classes_out_is_healthy(batch_size):
    """Its evaluation is that of the model without these classes; NumPy warns of nothing, or this would fail."""
    labels = np.asarray(jnp.argmax(HEALTHY(IMAGES), axis=1))

    def masked(images):
        return jnp.pad(HEALTHY(images), [(0, 0), (0, 2)], constant_values=-jnp.inf)

    plain, found = (evaluate(each, IMAGES, labels, SUITE, batch_size=batch_size, key=KEY) for each in (HEALTHY, masked))
    assert found.flags == plain.flags == ()
    assert (found.clean_accuracy, found.robust_accuracy) == (1.0, plain.robust_accuracy)
    assert plain.robust_accuracy < 1


def test_infinite_outputs_that_come_and_go_are_changes():
    """A class that is masked out in one call and not in the other, beside one that always is."""
    rows, inf = np.array([[1.0, 2.0, -np.inf]]), np.inf
    same = outputs.Outputs(rows, rows, rows, np.ones(1, bool), 2.0, None, 1)
    assert flags.raised(flags.OUTPUT_FLAGS, same) == ()
    other = np.array([[1.0, -np.inf, -np.inf]])
    for changed, name in (
        (same._replace(mixed=other, again=other), "outputs_depend_on_the_batch"),
        (same._replace(again=other), "outputs_change_between_calls"),
    ):
        (flag,) = flags.raised(flags.OUTPUT_FLAGS, changed)
        assert (flag.name, flag.evidence["largest_change"]) == (name, inf)


def test_a_regression_without_a_finite_output_is_caught():
    right = regression(1.0)

    def infinite(images):
        levels = images.mean(axis=(1, 2))
        return jnp.concatenate([levels, jnp.where(images[:, :1, 0, 0] == IMAGES[3, 0, 0, 0], -jnp.inf, levels)], axis=1)

    suite, labels = [attacks.pgd(ball=balls.linf(0.1), num_steps=2)], np.full((64, 2), 0.5, np.float32)
    found = evaluate(infinite, IMAGES, labels, suite, batch_size=64, key=KEY, criterion=right)
    assert ("logits_not_finite", {"examples": 1}) in [(flag.name, flag.evidence) for flag in found.flags]


def test_logits_that_are_not_finite_are_caught():
    assert "logits_not_finite" in diagnose(lambda images: HEALTHY(images).at[0].set(jnp.nan))


def test_a_zero_perturbation_that_changes_the_images_is_caught():
    shrinking = flow()._replace(apply=lambda params, images: flow().apply(params, 0.99 * images))
    suite = [attacks.pgd(ball=balls.linf(RADIUS), num_steps=3, perturbation=shrinking)]
    assert "identity_changes_the_loss" in diagnose(HEALTHY, suite)


def test_iterations_that_are_stuck_are_caught():
    # The gradient points the right way at the undeformed images alone.
    reference = jnp.asarray(IMAGES)

    @jax.custom_vjp
    def turned(images, away):
        return images

    turned.defvjp(lambda images, away: (images, away), lambda away, g: (jnp.where(away, -g, g), None))

    def masked(images):
        distance = jnp.abs(images[:, None] - reference[None]).max((2, 3, 4)).min(1)
        return HEALTHY(turned(images, (distance > 1e-6)[:, None, None, None]))

    assert "more_steps_are_weaker" in diagnose(masked, [attacks.pgd(ball=balls.linf(0.1), num_steps=10)])


@pytest.mark.parametrize(("missed", "raised"), [(1, False), (3, True)])
def test_examples_that_gradient_attacks_missed_are_counted(missed, raised):
    free = outcome_of("random", 64, missed, count=64)
    blind, seeing = (outcome_of("pgd", 64, broken, gradients=True, count=64) for broken in (0, missed))
    assert [flag.name for flag in flags.raised(flags.OUTCOME_FLAGS, [free, blind])] == (
        ["gradient_free_beats_gradients"] if raised else []
    )
    assert gradient_free_beats_gradients([free, seeing]) is None


# An outcome of `count` examples: the first `attacked` are attacked, the first `broken` broken.
def outcome_of(name, attacked, broken, *, gradients=False, count=2000):
    masks = {"attacked_mask": np.arange(count) < attacked, "broken_mask": np.arange(count) < broken}
    known = dict.fromkeys(AttackOutcome._fields) | {"broken": broken, "rejected": 0}
    return AttackOutcome(**known | masks | {"name": name, "uses_gradients": gradients})


@pytest.mark.parametrize(
    ("free", "raised"),
    [
        ([("random", 32, 3)], True),
        ([("random", 32, 1)], False),
        ([("square", 2000, 3)], False),
        ([("square", 2000, 4)], True),
        ([("square", 2000, 0), ("random", 32, 3)], True),
    ],
)
def test_what_attacks_on_a_sample_break_counts_by_the_sample(free, raised):
    outcomes = [outcome_of("pgd", 2000, 0, gradients=True), *(outcome_of(*entry) for entry in free)]
    flag = gradient_free_beats_gradients(outcomes)
    assert (flag is not None) == raised
    assert flag is None or flag.evidence["examples_missed"] == free[-1][2]


@pytest.mark.parametrize(
    "attack",
    [attacks.random_fields(ball=balls.linf(1e-3), num_fields=1), attacks.pgd(ball=balls.linf(1e-3), num_steps=1)],
    ids=lambda attack: attack.name,
)
def test_a_model_that_fails_in_the_diagnosis_loses_no_attack(attack):
    ready = []

    def on_host(images):
        if ready:
            raise OSError("the model is gone")
        return images

    @jax.custom_vjp
    def through_host(images):
        return jax.pure_callback(on_host, images, images)

    through_host.defvjp(lambda images: (through_host(images), None), lambda _, gradients: (gradients,))

    def recall(attack, run):
        outcome = run()
        ready.append(attack.name)
        return outcome

    images = IMAGES[:4]
    labels = np.asarray(jnp.argmax(HEALTHY(images), axis=1))
    result = evaluate(lambda images: HEALTHY(through_host(images)), images, labels, [attack], key=KEY, recall=recall)
    assert (result.robust_accuracy, [outcome.name for outcome in result.attacks]) == (1.0, ready)
    (flag,) = result.flags
    assert flag.name == "diagnosis_failed"
    assert flag.evidence == {"error": "OSError: the model is gone"}


def test_only_errors_at_run_time_are_the_models():
    assert diagnosis_failed(ModelError("no connection")).evidence == {"error": "no connection"}
    assert diagnosis_failed(jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 9 GiB\nmore")).evidence == {
        "error": "RESOURCE_EXHAUSTED: 9 GiB"
    }
    assert diagnosis_failed(ValueError("of the caller's own")) is None
    assert diagnosis_failed(TypeError("shapes")) is None


def test_a_flag_has_the_name_of_its_check():
    checks = {*flags.OUTCOME_FLAGS, *flags.OUTPUT_FLAGS, *flags.CLASS_FLAGS, *flags.QUERY_FLAGS, diagnosis_failed}
    for check in checks:
        assert f'"{check.__name__}"' in inspect.getsource(check)
    assert len({check.__name__ for check in checks}) == len(checks) == 13
