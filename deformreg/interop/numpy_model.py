"""Functions of NumPy arrays as logits functions without derivatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from jax import Array

from deformreg import _checks
from deformreg.interop.host import HostArray, HostModel, checked, failures_of, in_batches, logits_function

WHAT = "the model"


def from_numpy(
    function: Callable[[HostArray], Any], num_classes: int, *, batch_size: int | None = None
) -> Callable[[Array], Array]:
    """Makes a logits function of a model that runs on the host and has no derivatives.

    Attacks without gradients work (`deformreg.evaluation.suites.gradient_free`, or random fields, Square, SPSA, NES,
    rotations with translations, transferred attacks), and so do evaluation and certification. The diagnosis makes the
    checks that need no gradients. A gradient attack raises `NoGradients` before the model is called.

    Args:
        function: ``images -> logits``, from NumPy arrays float[n, h, w, c], float32 or wider, to float[n,
            num_classes], for example
            ``lambda images: session.run(None, {"input": images.transpose(0, 3, 1, 2)})[0]`` for an ONNX session.
        num_classes: at least 2.
        batch_size: the only number of images that the function takes: others are split, and the last batch is filled
            up with copies. None if it takes any number.

    Returns:
        ``images -> logits[n, num_classes]``, also inside `jit`.

    Raises:
        TypeError: no function, or counts that are not integers.
        ValueError: fewer than two classes, or a batch size below 1.
        ModelError: when called, if the function fails or returns another shape.

    Example:
        >>> import jax, jax.numpy as jnp, numpy as np
        >>> from deformreg import linf
        >>> from deformreg.attacks import square
        >>> edge = from_numpy(lambda x: np.stack([x[:, 0, 1, 0], 0.75 - x[:, 0, 1, 0]], axis=1), num_classes=2)
        >>> ramp = jnp.arange(4.0).reshape(1, 1, 4, 1) / 2
        >>> square(ball=linf(0.5)).run(edge, ramp, jnp.array([0]), jax.random.key(0)).success.tolist()
        [True]
    """
    _checks.function("function", function)
    num_classes = _checks.count("num_classes", num_classes, minimum=2)
    batch_size = None if batch_size is None else _checks.count("batch_size", batch_size)

    def logits(images: HostArray) -> HostArray:
        parts, wide = [np.zeros((0, num_classes), np.float32)], np.promote_types(images.dtype, np.float32)
        for batch, count in in_batches(images, batch_size):
            with failures_of(WHAT, batch):
                # A copy: the function may write to it, or keep it.
                values = checked(WHAT, function(np.array(batch, wide)), len(batch), num_classes)
            parts.append(values[:count])
        return np.concatenate(parts)

    return logits_function(
        HostModel(
            classes=lambda shape: num_classes,
            logits=logits,
            linearize=_impossible,
            pull_back=_impossible,
            no_gradients=lambda shape: (
                "a model from from_numpy has no gradients: use attacks without them, for example "
                "deformreg.evaluation.suites.gradient_free(0.5) or deformreg.attacks.square"
            ),
        )
    )


def _impossible(*arguments: Any) -> Any:
    raise AssertionError("refused by no_gradients")
