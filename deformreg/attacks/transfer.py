"""Transfer: images that fool one model, tried on another.

References:
    Papernot, McDaniel and Goodfellow, "Transferability in Machine Learning", arXiv 1605.07277.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from deformreg import _checks
from deformreg._arrays import choose
from deformreg.attacks.attack import Attack, Examples, LogitsFn, Search
from deformreg.attacks.search import try_out


def transfer(attack: Attack, source: LogitsFn, *, name: str | None = None) -> Attack:
    """An attack that searches on a source model and tries its result once on the attacked model.

    Args:
        attack: the search; best with ``keep="best"``, because an image just across the source's decision boundary
            transfers badly.
        source: the source model, ``images -> logits[n, classes]``.
        name: for reports; None makes one.

    Returns:
        The attack. It uses no gradients of the attacked model; if it beats an attack that does, that is a red flag.
        Its model calls are those of `attack` on the source, and one on the attacked model.

    Raises:
        TypeError: `attack` is no attack, or `source` no function.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from deformreg import linf
        >>> from deformreg.attacks import pgd
        >>> edge = lambda x: jnp.stack([x[:, 0, 1, 0], 0.75 - x[:, 0, 1, 0]], axis=1)  # class 0 where bright
        >>> masked = lambda x: edge(jnp.round(100 * x) / 100)
        >>> ramp, labels, key = jnp.arange(4.0).reshape(1, 1, 4, 1) / 2, jnp.array([0]), jax.random.key(0)
        >>> attack = pgd(ball=linf(0.5), num_steps=5, keep="best")
        >>> attack.run(masked, ramp, labels, key).success.tolist()
        [False]
        >>> transfer(attack, edge).run(masked, ramp, labels, key).success.tolist()
        [True]

    References:
        Papernot, McDaniel and Goodfellow, see the module.
    """

    _checks.instance("attack", attack, Attack, "pgd(ball=linf(0.5), num_steps=50)")
    _checks.function("source", source)

    def begin(examples: Examples) -> Search:
        inner = attack.begin(examples)
        return inner._replace(memory=inner)

    def step(logits_fn: LogitsFn, examples: Examples, search: Search) -> Search:
        inner: Search = search.memory

        def checked(images: Array) -> Array:
            return examples.criterion.check_outputs(source(images), images.shape[0], "source")

        inner = choose(inner.done, inner, attack.step(checked, examples, inner))

        def try_on_attacked() -> tuple[Any, Any]:
            losses, broken = try_out(logits_fn, attack.perturbation, "margin", examples, inner.kept)
            return losses.astype(search.losses.dtype), broken

        def wait() -> tuple[Any, Any]:
            return search.losses, jnp.zeros_like(search.broken)

        losses, broken = jax.lax.cond(inner.done.any(), try_on_attacked, wait)
        calls = inner.calls + inner.done.astype(jnp.int32)
        return Search(inner.params, inner.kept, losses, broken & inner.done, calls, inner.done, inner)

    return attack._replace(name=name or f"transfer-{attack.name}", begin=begin, step=step, uses_gradients=False)
