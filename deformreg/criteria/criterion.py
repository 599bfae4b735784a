"""The type of a criterion, and a criterion made of one function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Bool

from deformreg import _checks
from deformreg.criteria import checks

PerExample = Callable[[Array, Array], Array]
"""``(outputs, labels) -> [n]``: one number or decision per example, which depends on that example alone."""


@jax.tree_util.register_static  # so that it travels with the examples through `jit` and loops
class Criterion(NamedTuple):
    """When an output is right. Functions compile once per criterion: make one and pass it on.

    Attributes:
        name: for reports and messages, with its bound.
        broken: ``(outputs, labels) -> bool[n]``: whether the output is wrong. It is where a number is NaN or +inf, or
            none is finite.
        margin: ``(outputs, labels) -> float[n]``: positive where broken, negative where not, but for such outputs.
        loss: ``(outputs, labels) -> float[n]``: what models are trained on, for penalties, and for attacks that ascend
            ``"cross_entropy"``.
        check_outputs: ``(outputs, n, name of the model) -> outputs``; raises if the model cannot have meant these.
        check_labels: ``(labels, images' shape, outputs' shape or None) -> labels``; raises likewise.
        warp_labels: ``(labels, flow) -> labels`` of the image whose pixels moved along the flow, in pixels; None if the
            labels stay as they are.
        one_class: whether outputs are float[n, classes] and labels int[n]. Targets, ADef, APGD's `num_targets` and the
            loss ``"dlr"`` need that.
        probabilities: ``outputs -> bool``: whether these are probabilities where the loss wants logits; None: do not
            look.
    """

    name: str
    broken: PerExample
    margin: PerExample
    loss: PerExample
    check_outputs: Callable[[Any, int, str], Array]
    check_labels: Callable[[Any, tuple[int, ...], tuple[int, ...] | None], Any]
    warp_labels: Callable[[Array, Array], Array] | None = None
    one_class: bool = False
    probabilities: Callable[[Any], bool] | None = None


def from_margin(
    margin: PerExample,
    *,
    loss: PerExample | None = None,
    name: str = "own",
    warp_labels: Callable[[Array, Array], Array] | None = None,
) -> Criterion:
    """A criterion of your own: broken where a function of outputs and labels is positive.

    Args:
        margin: ``(outputs, labels) -> float[n]``: positive where the output is wrong.
        loss: ``(outputs, labels) -> float[n]``, which gradient attacks ascend by default; None is `margin`. Give one if
            the margin is a step function, without slopes.
        name: for reports.
        warp_labels: ``(labels, flow) -> labels`` of an image whose pixels moved along the flow, float[n, h, w, 2] in
            pixels; None if the labels stay as they are.

    Returns:
        The criterion: outputs a floating-point array and labels an array, first axis the example.

    Raises:
        TypeError: an argument is not a function.

    Example:
        >>> import jax.numpy as jnp
        >>> def second_best(logits, labels):  # positive where the label is not among the best two
        ...     others = jnp.sort(jnp.where(jnp.arange(3) == labels[:, None], -jnp.inf, logits), axis=1)
        ...     return others[:, -2] - jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
        >>> top2 = from_margin(second_best, name="among the best two")
        >>> top2.broken(jnp.array([[3.0, 2.0, 1.0]] * 3), jnp.array([0, 1, 2])).tolist()
        [False, False, True]
    """
    for label, function in (("margin", margin), ("loss", loss or margin), ("warp_labels", warp_labels or margin)):
        _checks.function(label, function)

    def checked(kind: str, function: PerExample) -> PerExample:
        return lambda outputs, labels: _checks.per_example(function(outputs, labels), outputs.shape[0], kind)

    def broken(outputs: Array, labels: Array) -> Bool[Array, " n"]:
        values = checked("margin", margin)(outputs, labels)
        right: Array = checks.usable(outputs.reshape(outputs.shape[0], -1)) & (values <= 0)
        return ~right

    def check_outputs(outputs: Any, count: int, name: str = "logits_fn") -> Array:
        return checks.outputs(outputs, count, name, "[n, ...]", rank=1)

    return Criterion(
        name,
        broken,
        checked("margin", margin),
        checked("loss", loss or margin),
        check_outputs,
        lambda labels, images, outputs: checks.first_axis("labels", labels, images[0]),
        warp_labels=warp_labels,
    )
