"""The attack type: a search that tries one candidate per example and step, its budget and its result.

An attack is three pure functions over the *rows* of a batch. `begin` makes the state of a search without calling the
model, `step` spends a fixed number of model calls on every row, and the state says which rows are done. Rows never
interact: each has its own counters and random key. One loop therefore runs every attack, and an evaluation can replace
a finished example by a waiting one at any time without changing another row's result.

`deformreg.attacks.search` has the functions for writing an attack.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int

from deformreg import _checks, fields
from deformreg._arrays import aligned, choose
from deformreg._families import check_layout
from deformreg.balls import l2, linf
from deformreg.criteria import Criterion, classification
from deformreg.criteria.classification import criterion_or_classification
from deformreg.perturbations import Params, Perturbation

LogitsFn = Callable[[Array], Array]
"""``images -> logits[n, classes]``, or another criterion's outputs; every row depends on its own image alone."""


class Budget(NamedTuple):
    """The bound of an attack, as plain data.

    Attributes:
        radius: in `unit`; None for no bound, or for a radius that is traced.
        norm: the norm that the radius bounds, for example ``"linf"``.
        unit: ``"pixels"`` for a bound on displacements, ``"image"`` for one on differences of pixel values, otherwise
            in words.
    """

    radius: float | tuple[float, ...] | None
    norm: str
    unit: str


class FlowNorms(NamedTuple):
    """Sizes of final flow fields and their folds: see the functions of these names in `deformreg.fields`.

    Attributes:
        max_component: float[n], in pixels.
        max_displacement: float[n], in pixels.
        mean_displacement: float[n], in pixels.
        folds: int[n], the number of cells of the pixel grid that the field turns over.
    """

    max_component: Float[Array, " n"]
    max_displacement: Float[Array, " n"]
    mean_displacement: Float[Array, " n"]
    folds: Int[Array, " n"]


class DifferenceNorms(NamedTuple):
    """Sizes of image differences, in the images' unit, float[n] each: largest component and Euclidean length."""

    linf: Float[Array, " n"]
    l2: Float[Array, " n"]


class AttackResult(NamedTuple):
    """The result of an attack on a batch; failures carry the clean image.

    Attributes:
        images: float[n, h, w, c]; where the attack failed, the clean image, bit for bit.
        params: the parameters found in the perturbation's family, for successes and failures alike.
        success: bool[n]: the output is broken (for classes, the prediction left the label), or reached the target.
        losses: float[n], the attack's own objective at `params` (higher is better for the attacker).
        norms: of the *final* field, or of the difference for families that move no pixels, at `params`.
        model_calls: int32[n], model calls spent on each example. A forward pass counts one, and so does a forward and
            backward pass. For an attack without gradients these are its queries; a transferred attack also counts the
            calls of its source model.
        labels: what is right for `images`: the labels given, warped along where the criterion says so.
    """

    images: Float[Array, "n *space c"]
    params: Params
    success: Bool[Array, " n"]
    losses: Float[Array, " n"]
    norms: FlowNorms | DifferenceNorms
    model_calls: Int[Array, " n"]
    labels: Array


class Examples(NamedTuple):
    """The examples in the rows of a batch.

    Attributes:
        images: float[n, h, w, c].
        labels: what is right: int[n] for classes, otherwise as the criterion says; first axis the example.
        keys: random keys, one per example.
        targets: int[n], the classes to reach, or None for an untargeted attack.
        criterion: says when an output is broken.
    """

    images: Float[Array, "n *space c"]
    labels: Array
    keys: Array
    targets: Int[Array, " n"] | None = None
    criterion: Criterion = classification()


class Search(NamedTuple):
    """The state of a search; the first axis of every array is the row.

    Attributes:
        params: the candidate to try next.
        kept: the best candidate so far.
        losses: float[n], the objective at `kept`.
        broken: bool[n], whether `kept` breaks the model.
        calls: int32[n], model calls spent.
        done: bool[n], whether the row's search is over.
        memory: what else the attack carries from step to step, a pytree.
    """

    params: Params
    kept: Params
    losses: Float[Array, " n"]
    broken: Bool[Array, " n"]
    calls: Int[Array, " n"]
    done: Bool[Array, " n"]
    memory: Any = ()


class Attack(NamedTuple):
    """An attack as a value: call `run`, or pass it to `deformreg.evaluate`.

    Attributes:
        name: for reports.
        perturbation: the family it searches.
        budget: its bound.
        size: ``(params, images) -> float[n]``: the share of the budget that is used, at most 1; None for no bound.
        begin: ``Examples -> Search``; does not call the model.
        step: ``(logits_fn, examples, search) -> search``.
        max_steps: the number of steps after which every row is done.
        uses_gradients: whether the model is differentiated.
        calls_per_step: model calls of one step on one row.
        settings: the factory's main arguments, plain data for reports.
        one_class: whether it needs the logits of classes, one class per image, and so fits no other criterion.
        sample: an evaluation runs the attack on at most this many examples, evenly spaced; None for all.
    """

    name: str
    perturbation: Perturbation
    budget: Budget
    size: Callable[[Params, Array], Array] | None
    begin: Callable[[Examples], Search]
    step: Callable[[LogitsFn, Examples, Search], Search]
    max_steps: int
    uses_gradients: bool
    calls_per_step: int = 1
    settings: Mapping[str, Any] = {}
    one_class: bool = False
    sample: int | None = None

    def run(
        self,
        logits_fn: LogitsFn,
        images: Float[Array, "n *space c"],
        labels: Array,
        key: Array,
        targets: Int[Array, " n"] | None = None,
        criterion: Criterion | None = None,
    ) -> AttackResult:
        """Attacks a batch. Works inside `jit`; compile it there if you call it more than once.

        All rows are computed until the last one is done. `deformreg.evaluate` gives the rows of finished examples to
        waiting ones, which saves most of the model calls of a grid on a model that breaks early.

        Args:
            logits_fn: ``images -> logits[n, classes]``, or the outputs that the criterion asks for; every row depends
                on its own image alone (inference mode).
            images: in the range the model expects.
            labels: the right classes, int[n], or what the criterion asks for.
            key: a JAX random key, from which example i gets ``fold_in(key, i)``; or an array of keys of shape [n], one
                per example.
            targets: the classes to reach; None attacks untargeted, away from the labels.
            criterion: when an output is broken, see `deformreg.criteria`; None is ``classification()``.

        Returns:
            The result.

        Raises:
            TypeError: integer images, floating labels, no random key, or a `logits_fn` that does not return one array
                of floating-point logits.
            ValueError: no images, shapes that do not fit, images that look like [n, c, h, w], labels outside the
                classes, targets or an attack that do not fit the criterion.
        """
        images = _checks.images(images)
        count = images.shape[0]
        _checks.at_least_one(images.shape)
        check_layout(self.perturbation, images.shape)
        _checks.function("logits_fn", logits_fn)
        key = _checks.key(key, count=count)
        criterion = criterion_or_classification(criterion)
        check_suits(self, criterion, targeted=targets is not None)
        is_one_per_example = key.ndim == 1 and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
        examples = Examples(
            jax.lax.stop_gradient(images),
            jnp.asarray(criterion.check_labels(labels, images.shape, None)),
            key if is_one_per_example else row_keys(key, jnp.arange(count)),
            None if targets is None else _checks.class_indices("targets", targets, count),
            criterion,
        )

        def checked(images: Array) -> Array:
            outputs = criterion.check_outputs(_checks.called("logits_fn", logits_fn, images), count, "logits_fn")
            criterion.check_labels(labels, images.shape, outputs.shape)
            if targets is not None:
                _checks.class_indices("targets", targets, count, classes=outputs.shape[1])
            return outputs

        examples = _together(checked, examples)
        search, _ = advance(self, checked, examples, self.begin(examples), count)
        return finish(self, examples, search)


def check_suits(attack: Attack, criterion: Criterion, *, targeted: bool = False) -> None:
    """Raises if an attack, or targets, need one class per image and the criterion has none."""
    if criterion.one_class or not (attack.one_class or targeted):
        return
    what = "targets" if targeted else f"attack {attack.name!r}"
    remedy = "leave them out" if targeted else "leave it out; suites have suited_to(criterion)"
    raise ValueError(f"{what} must have one class per image, got the criterion {criterion.name!r}: {remedy}")


def _together(logits_fn: LogitsFn, examples: Examples) -> Examples:
    """The examples with all their arrays spread over devices as the logits are."""
    arrays = examples[:4]
    images = functools.reduce(aligned, jax.tree.leaves(arrays), examples.images)
    if jax.sharding.get_abstract_mesh().manual_axes:  # the model may differ between devices
        images = aligned(images, jax.eval_shape(logits_fn, images))
    return Examples(*aligned((images, *arrays[1:]), images), examples.criterion)


def row_keys(key: Array, indices: Array) -> Array:
    """One key per example, from its index alone: an example's draws do not depend on its batch."""
    return jax.vmap(lambda index: jax.random.fold_in(key, index))(indices)


def as_argument(logits_fn: LogitsFn) -> Partial:
    """A function as a pytree that `jit` takes as an argument; the arrays of a `Partial` are traced, not constants.

    Its keywords without arrays, for example ``train=False`` or ``strides=(2, 2)``, stay what they are.
    """
    _checks.function("logits_fn", logits_fn)
    if not isinstance(logits_fn, Partial):
        return Partial(logits_fn)
    flags = {name: value for name, value in logits_fn.keywords.items() if _is_flag(value)}
    others = {name: value for name, value in logits_fn.keywords.items() if name not in flags}
    for path, leaf in jax.tree_util.tree_leaves_with_path((logits_fn.args, others)):
        if not _is_array(leaf):
            place = ("args", "keywords")[path[0].idx] + jax.tree_util.keystr(path[1:])
            raise TypeError(
                f"logits_fn must be a Partial of arrays, got {_checks.described(leaf)} at {place}: close over it, or "
                "split it off, as equinox.partition does"
            )
    if not flags:
        return logits_fn
    named = tuple(sorted(flags.items()))
    return Partial(_Flagged(logits_fn.func, named, repr(named)), *logits_fn.args, **others)


def _is_flag(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_flag, value))
    return value is None or isinstance(value, (bool, str, int, float))


def _is_array(leaf: Any) -> bool:
    if hasattr(leaf, "shape") and hasattr(leaf, "dtype"):
        return getattr(leaf.dtype, "kind", "V") not in "OSU"
    return isinstance(leaf, (bool, int, float, complex))


class _Flagged(NamedTuple):
    """A function with flags. Equal for equal flags, so that it is compiled once.

    `written` tells flags apart that Python calls equal, such as 1, 1.0 and True.
    """

    function: Callable[..., Array]
    flags: tuple[tuple[str, Any], ...]
    written: str

    def __call__(self, *arguments: Any, **keywords: Any) -> Array:
        return self.function(*arguments, **keywords, **dict(self.flags))


def advance(
    attack: Attack,
    logits_fn: LogitsFn,
    examples: Examples,
    search: Search,
    quota: int | Array,
    *,
    axis: str | None = None,
) -> tuple[Search, Array]:
    """Steps until at least `quota` rows are done; returns the state and the number of steps that were computed.

    Inside a `shard_map` over the mesh axis `axis`, the rows of all devices count. A device whose own rows are all done
    computes no step more.
    """
    search = aligned(search, examples.images)

    def unfinished(carry: tuple[Search, Array]) -> Array:
        done = jnp.sum(carry[0].done)
        return (done if axis is None else jax.lax.psum(done, axis)) < quota

    def step(carry: tuple[Search, Array]) -> tuple[Search, Array]:
        search, steps = carry
        stepped = attack.step(logits_fn, examples, search)
        return choose(search.done, search, stepped), steps + 1

    def step_if_busy(carry: tuple[Search, Array]) -> tuple[Search, Array]:
        stepped: tuple[Search, Array] = jax.lax.cond(jnp.all(carry[0].done), lambda same: same, step, carry)
        return stepped

    # On one device some row is always unfinished here.
    body = step if axis is None else step_if_busy
    return jax.lax.while_loop(unfinished, body, (search, jnp.zeros((), jnp.int32)))


def finish(attack: Attack, examples: Examples, search: Search) -> AttackResult:
    """The result of a search."""
    search = jax.lax.stop_gradient(search)
    images = examples.images
    found = attack.perturbation.apply(search.kept, images)
    moved = labels_along(attack.perturbation, examples, search.kept)
    return AttackResult(
        choose(search.broken, found, images),
        search.kept,
        search.broken,
        search.losses,
        measure(attack.perturbation, search.kept, images),
        search.calls,
        examples.labels if moved is examples.labels else choose(search.broken, moved, examples.labels),
    )


def labels_along(perturbation: Perturbation, examples: Examples, params: Params) -> Array:
    """The labels of the perturbed images: moved along with their pixels if the criterion says so."""
    warp_labels = examples.criterion.warp_labels
    if warp_labels is None or perturbation.field is None:
        return examples.labels
    return warp_labels(examples.labels, perturbation.field(params, examples.images))


def measure(
    perturbation: Perturbation, params: Params, images: Float[Array, "n *space c"]
) -> FlowNorms | DifferenceNorms:
    """The sizes of perturbations: of their final fields in pixels, or of the image differences they make.

    Args:
        perturbation: the family.
        params: parameters of that family.
        images: the clean images, any range.

    Returns:
        `FlowNorms` for a family with a field, else `DifferenceNorms`.

    Example:
        >>> import jax.numpy as jnp
        >>> from deformreg import flow
        >>> measure(flow(), jnp.full((1, 4, 4, 2), 0.5), jnp.zeros((1, 4, 4, 1))).max_component.tolist()
        [0.5]
    """
    if perturbation.field is not None:
        field = perturbation.field(params, images)
        return FlowNorms(
            fields.max_component(field), fields.max_displacement(field), fields.mean_displacement(field),
            fields.folds(field),
        )  # fmt: skip
    difference = perturbation.apply(params, images) - images
    return DifferenceNorms(linf(1.0).norm(difference), l2(1.0).norm(difference))
