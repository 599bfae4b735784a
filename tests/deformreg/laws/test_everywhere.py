"""Every operation returns the same in every style of JAX: transformations, sharding, strictness, types.

Some styles run the whole batch, others groups of it: each device or loop step then has a batch of its own, with its own
numbering of the examples. The result must equal that of the same batches without the style.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closed_forms import perceptron
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from deformreg import (
    additive,
    affine,
    attacks,
    cross_entropy,
    finite_difference_penalty,
    flow,
    forward_over_reverse_penalty,
    gradient_penalty,
    greedy_step,
    linf,
    lowres_flow,
    multi_step,
    noise,
    pixelwise_l2,
    random_start,
    warp,
)
from deformreg.certification import gaussian, smoothed_votes

SHAPE, COUNT, GROUPS = (6, 5, 1), 8, 4
BALL = linf(0.4)
LOGITS = perceptron(30, hidden=8)
PENALTIES = (gradient_penalty, finite_difference_penalty, forward_over_reverse_penalty)
ATTACKS = {
    "pgd": attacks.pgd(ball=pixelwise_l2(0.4), num_steps=2, restarts=2, start="random"),
    "apgd": attacks.apgd(ball=BALL, num_steps=2, loss="dlr", num_targets=2, restarts=2),
    "greedy": attacks.greedy(ball=BALL, num_steps=3),
    "random_fields": attacks.random_fields(ball=BALL, num_fields=2, sigma=0.5),
    "square": attacks.square(ball=BALL, num_queries=3),
    "worst": attacks.rotation_translation(grid=None, num_draws=2, max_degrees=10, max_pixels=0.5, keep="best"),
    "elastic": attacks.elastic(0.4, num_steps=2, stride=2),
    "adef": attacks.adef(max_norm=0.4, num_steps=2, candidates=2, sigma=0.5),
    "stadv": attacks.stadv(num_evaluations=3, ball=BALL, memory_size=2),
    "spsa": attacks.spsa(ball=BALL, num_steps=2, num_samples=2),
    "transfer": attacks.transfer(attacks.pgd(ball=BALL, num_steps=2, keep="best"), perceptron(30, seed=3, hidden=8)),
}


def field(images):
    return 0.7 * jnp.sin(20 * jnp.concatenate([images, -images], axis=-1))


def warps(images, labels, key):
    moved = [warp(images, field(images), boundary=boundary) for boundary in ("zeros", "edge", "reflect")]
    slope = jax.grad(lambda images: jnp.sum(warp(images, field(images), boundary="reflect") ** 2))(images)
    return moved, slope, warp(images, field(images), within=0.7)


def penalties(images, labels, key):
    def loss_fn(images):
        return cross_entropy(LOGITS(images), labels)

    found = [penalty(loss_fn, images, flow())[0] for penalty in PENALTIES]
    # Families without a closed form, and with parameters of another shape than the images.
    return found + [gradient_penalty(loss_fn, images, family) for family in (affine(), lowres_flow(2, sigma=0.5))]


def starts(images, labels, key):
    def loss_fn(images):
        return cross_entropy(LOGITS(images), labels)

    options = {"num_steps": 2, "key": key}
    return (
        [random_start(key, images, family) for family in (None, affine())],
        multi_step(loss_fn, images, ball=BALL, start="random", keep="best", **options),
        multi_step(loss_fn, images, ball=pixelwise_l2(0.4), start=noise.gaussian(0.1), **options),
        multi_step(loss_fn, images, ball=linf(0.1), perturbation=additive(), **options),
        greedy_step(loss_fn, images, ball=BALL),
        greedy_step(loss_fn, images, ball=pixelwise_l2(1.2), boundary="zeros"),
    )


def votes(images, labels, key):
    return smoothed_votes(LOGITS, images, law=gaussian(0.3), num_samples=7, batch_size=4, key=key)


def attack(name, images, labels, key):
    return ATTACKS[name].run(LOGITS, images, labels, key)


OPERATIONS = {
    "warps": warps, "penalties": penalties, "starts": starts, "votes": votes,
    **{name: functools.partial(attack, name) for name in ATTACKS},
}  # fmt: skip


@functools.cache
def examples():
    """Made once, so to be called outside of any `jax.set_mesh`: the arrays would stay on that mesh."""
    images = jnp.asarray(np.random.default_rng(0).random((COUNT, *SHAPE)), jnp.float32)
    return images, jnp.argmax(LOGITS(images), axis=1).astype(jnp.int32), jax.random.key(0)


@functools.cache
def by_jit(name, groups):
    """The reference: one compiled call on the whole batch, or one on each of its groups."""
    images, labels, key = examples()
    run = jax.jit(OPERATIONS[name])
    size = COUNT // groups
    found = [run(images[at : at + size], labels[at : at + size], key) for at in range(0, COUNT, size)]
    return jax.tree.map(lambda *parts: np.concatenate(parts), *found)


def grouped(array):
    return array.reshape(GROUPS, COUNT // GROUPS, *array.shape[1:])


def mesh(kind):
    return jax.make_mesh((GROUPS,), ("data",), axis_types=(kind,), devices=jax.devices()[:GROUPS])


def placed(devices):
    images, labels, key = examples()
    return (*jax.device_put((images, labels), NamedSharding(devices, PartitionSpec("data"))), key)


COLLECTIVES = r" (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("


def on_devices(run, *arguments):
    """The result of a compiled call, and the kinds of messages that its devices exchange."""
    program = run.lower(*arguments).compile()
    return program(*arguments), re.findall(COLLECTIVES, program.as_text())


# Styles: (operation) -> result of the whole batch.


def eager(operation):
    return operation(*examples())


def automatic(operation):
    return jax.jit(operation)(*placed(mesh(AxisType.Auto)))


def explicit(operation):
    devices = mesh(AxisType.Explicit)
    arguments = placed(devices)
    with jax.set_mesh(devices):
        found, messages = on_devices(jax.jit(operation), *arguments)
    # Attacks ask whether all rows are done.
    assert set(messages) <= ({"all-reduce"} if operation in map(OPERATIONS.get, ATTACKS) else set())
    return found


def double(operation):
    with jax.enable_x64(True):
        return jax.jit(operation)(*examples())


# Styles: (operation) -> results of groups.


def scan_of_checkpoint(operation):
    def step(carry, group):
        return carry, jax.checkpoint(operation)(*group, key)

    images, labels, key = examples()
    return merged(jax.jit(lambda *groups: jax.lax.scan(step, 0, groups)[1])(grouped(images), grouped(labels)))


def vmap(operation):
    images, labels, key = examples()
    return merged(jax.jit(jax.vmap(operation, (0, 0, None)))(grouped(images), grouped(labels), key))


def pmap(operation):
    images, labels, key = examples()
    run = jax.pmap(operation, in_axes=(0, 0, None), devices=jax.devices()[:GROUPS])
    return merged(run(grouped(images), grouped(labels), key))


def shard_map(operation, **options):
    found, messages = on_devices(jax.jit(sharded(operation, **options)), *examples())
    assert not messages
    return found


def shard_map_unchecked(operation):
    return shard_map(operation, check_vma=False)


def sharded(operation, **options):
    over = PartitionSpec("data")
    specs = {"in_specs": (over, over, PartitionSpec()), "out_specs": over}
    return jax.shard_map(operation, mesh=mesh(AxisType.Auto), **specs, **options)


def merged(results):
    return jax.tree.map(lambda leaf: np.asarray(leaf).reshape(COUNT, *leaf.shape[2:]), results)


WHOLE = (eager, automatic, explicit, double)
GROUPED = (scan_of_checkpoint, vmap, pmap, shard_map, shard_map_unchecked)
FAST = {("warps", "explicit"), ("penalties", "shard_map")}
TRACED_FAST = ("warps", "penalties", "starts", "votes", "pgd", "square")


def same(found, expected):
    def check(a, b):
        assert a.shape == b.shape
        np.testing.assert_allclose(np.asarray(a), b, rtol=2e-4, atol=2e-4)

    jax.tree.map(check, found, expected)


@pytest.mark.parametrize(
    ("name", "style"),
    [
        pytest.param(
            name, style, marks=() if (name, style.__name__) in FAST else pytest.mark.slow, id=f"{name}-{style.__name__}"
        )
        for name in OPERATIONS
        for style in (*WHOLE, *GROUPED)
        if style is not pmap or name not in ATTACKS  # it is a shard_map of JAX's own
    ],
)
def test_every_style_gives_the_same(name, style):
    """And devices speak only to ask whether all rows are done: `explicit`, `shard_map`."""
    same(style(OPERATIONS[name]), by_jit(name, GROUPS if style in GROUPED else 1))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in TRACED_FAST else pytest.mark.slow) for name in OPERATIONS]
)
def test_types_fit_under_strict_promotion_and_on_explicit_axes(name):
    """Traced only: JAX refuses types that do not fit when it traces. The slow tests compare the values."""
    operation = OPERATIONS[name]
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        jax.eval_shape(operation, *examples())
    devices = mesh(AxisType.Explicit)
    arguments = placed(devices)
    with jax.set_mesh(devices):  # JAX 0.12 requires it: without it, `zeros_like` is not sharded
        found = jax.eval_shape(operation, *arguments)
    assert all(leaf.sharding.spec[0] == "data" for leaf in jax.tree.leaves(found))


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATIONS)
def test_compiled_operations_neither_call_the_host_nor_make_nans(name):
    run = jax.jit(OPERATIONS[name])
    assert "callback" not in run.lower(*examples()).as_text()
    with jax.debug_nans(True):
        run(*examples())


@pytest.mark.slow
@pytest.mark.parametrize("kind", [AxisType.Explicit, AxisType.Auto, "shard_map", "unchecked"], ids=str)
@pytest.mark.parametrize("penalty", PENALTIES)
def test_the_gradient_of_a_batch_takes_one_sum_over_the_devices(penalty, kind):
    kernel = jnp.asarray(np.random.default_rng(4).normal(size=(30, 5)), jnp.float32)
    images, labels, _ = examples()

    def objective(kernel, images, labels):
        loss_fn = lambda images: cross_entropy(jnp.tanh(images.reshape(len(images), -1)) @ kernel, labels)  # noqa: E731
        found, losses = penalty(loss_fn, images, lowres_flow(2))
        return jnp.mean(losses + found)

    def on_each(kernel, images, labels):
        if kind == "unchecked":
            return jax.lax.pmean(jax.grad(objective)(kernel, images, labels), "data")
        return jax.grad(lambda kernel: jax.lax.pmean(objective(kernel, images, labels), "data"))(kernel)

    expected = jax.jit(jax.grad(objective))(kernel, images, labels)
    devices = mesh(kind if isinstance(kind, AxisType) else AxisType.Auto)
    run = jax.grad(objective)
    if not isinstance(kind, AxisType):
        over, everywhere = PartitionSpec("data"), PartitionSpec()
        specs = {"in_specs": (everywhere, over, over), "out_specs": everywhere}
        run = jax.shard_map(on_each, mesh=devices, check_vma=kind == "shard_map", **specs)
    sharded_batch = placed(devices)[:2]
    with jax.set_mesh(devices):
        arguments = (jax.device_put(kernel, NamedSharding(devices, PartitionSpec())), *sharded_batch)
        found, messages = on_devices(jax.jit(run), *arguments)
    assert messages == ["all-reduce"]
    # The finite difference divides rounding errors by its step.
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_models_that_differ_between_devices_do_not_mix():
    """The images are on all devices, the model's scale is not: each device has its own losses."""
    images, labels, key = examples()

    def run(scale):
        def loss_fn(images):
            return cross_entropy(scale[0] * LOGITS(images), labels)

        found = [penalty(loss_fn, images)[0] for penalty in PENALTIES]
        attacked = multi_step(loss_fn, images, ball=BALL, num_steps=2).images
        by_attack = attacks.pgd(ball=BALL, num_steps=2).run(
            lambda images: scale[0] * LOGITS(images), images, labels, key
        )
        return jax.tree.map(lambda leaf: leaf[None], (found, attacked, by_attack.losses))

    scales = jnp.arange(1.0, GROUPS + 1)
    over = PartitionSpec("data")
    found = jax.jit(jax.shard_map(run, mesh=mesh(AxisType.Auto), in_specs=over, out_specs=over))(scales)
    alone = [jax.jit(run)(scales[at : at + 1]) for at in range(GROUPS)]
    same(found, jax.tree.map(lambda *leaves: np.concatenate(leaves), *alone))
