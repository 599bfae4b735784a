"""Robust accuracy of any logits function under a suite of attacks, worst case per example.

Accuracies are fractions of *all* examples: one that is misclassified without an attack counts as broken. An example
*stands* while it is classified correctly and not broken by any attack; attacks run on the examples that stand. A fresh
forward pass checks every claimed success, and the budget and the image range are checked too. Symptoms of an evaluation
that cannot be trusted are reported as `flags`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import jax
from numpy.typing import ArrayLike

from deformreg.attacks.attack import Attack, LogitsFn
from deformreg.criteria import Criterion
from deformreg.evaluation.data import OnDemand
from deformreg.evaluation.evaluator import evaluator
from deformreg.evaluation.outcomes import Collect, ProgressCallback, Recall
from deformreg.evaluation.results import Evaluation


def evaluate(
    logits_fn: LogitsFn,
    images: ArrayLike | OnDemand,
    labels: ArrayLike,
    attacks: Iterable[Attack],
    *,
    batch_size: int | None = None,
    key: jax.Array,
    targets: ArrayLike | None = None,
    image_range: tuple[float, float] | None = None,
    criterion: Criterion | None = None,
    independent: bool = False,
    diagnosis: bool = True,
    refill: bool = True,
    quantize: bool = False,
    devices: Sequence[jax.Device] | None = None,
    progress: ProgressCallback | None = None,
    collect: Collect | None = None,
    recall: Recall | None = None,
) -> Evaluation:
    """Attacks a model and reports on which examples every attack fails.

    Attacks run in the given order, each on the correctly classified examples that no earlier attack broke. Gradient
    attacks also run on examples that only attacks without gradients broke: if they fail there, a red flag is raised.
    All batches have the same shape. When an example is finished, a waiting one takes its row; every example has its own
    key, so this does not change the result.

    Args:
        logits_fn: ``images -> logits[n, classes]`` in inference mode: logits, not probabilities, and each row must
            depend only on its own image. With ``jax.tree_util.Partial(apply, params)`` the weights are passed as
            arguments, not compiled in as constants.
        images: float[n, h, w, c] in the range the model expects; or `OnDemand`, which reads them when they are needed.
        labels: int[n], or what the criterion asks for.
        attacks: one or more with different names, for example ``deformreg.evaluation.suites.standard(0.5)``.
        batch_size: rows per batch and device; if there are fewer examples, their number. The model sees batches of this
            size only. None is an eighth of a device's examples, from 4 to 128: with more, rows idle at the end.
        key: a JAX random key. Attack k (in order) draws for example i from ``fold_in(fold_in(key, k), i)``.
        targets: int[n], the class that the attacks should reach on each example; None for untargeted attacks. With
            targets, `robust_accuracy` is the fraction of examples that are classified correctly and do not reach their
            target. An example whose target is its label is not attacked.
        image_range: attacked images outside this range do not count as successes. None means the range of `images`,
            extended to include zero, because warps may move zeros in at the border.
        criterion: when an output is broken, see `deformreg.criteria`; None is ``classification()``. Another criterion
            says what the model returns and what the labels are; a suite's members that fit it are
            ``suites.standard.suited_to(criterion)(0.5)``.
        independent: run every attack on every correctly classified example, also those that the suite tries on a
            sample only, so that you can compare the attacks.
        diagnosis: also run the checks for red flags that need extra model calls: on clean images before the attacks,
            and short attacks after them on up to 128 examples that no gradient attack broke. They cost at most a fifth
            of all model calls, unless the attacks spend fewer than about 25 batches.
        refill: whether waiting examples take the rows of finished ones; False waits until a whole batch is finished.
        quantize: the model sees images rounded to the 256 levels of `image_range`, which must be given: what is broken
            survives saving with 8 bits. `collect` gets the rounded images.
        devices: over which the rows are divided, for example ``jax.local_devices()``; None is JAX's default device.
            The results do not depend on them, but for the model calls of idle rows. The diagnosis runs on one.
        progress: called with a `Progress` whenever examples are finished.
        collect: called at the same times with the `Attack`, the indices int[k] of the finished examples and their
            `AttackResult` as NumPy arrays, for example to keep deformed images or flows. The successes in it are not
            checked yet: the `broken_mask` of the attack's outcome says which the fresh check confirmed.
        recall: called once for each attack, in order, with the `Attack` and a function that runs it and returns its
            `AttackOutcome`. It returns that outcome, or one that it kept from an earlier evaluation with the same
            arguments, for example to continue one that was interrupted. `collect` is not called for kept outcomes.
            The function is a `Run`: it can also continue in the middle of an attack, and share it among processes.

    Returns:
        The evaluation.

    Raises:
        TypeError: integer images, floating labels, a `batch_size` that is not an integer, a `key` that is not a random
            key, `attacks` that are not attacks, or a `logits_fn` that does not return one array of floating logits.
        ValueError: no examples; images that are not finite, leave `image_range` or look like [n, c, h, w]; labels
            outside the classes; no attack, two attacks with the same name, or an attack with one radius per example;
            shapes that do not match; an attack or targets that do not fit the criterion. All are raised before the
            first attack. Also if `recall` returns the outcome of another attack or of other examples.
        NoGradients: a gradient attack on a model without gradients (`deformreg.interop`), before the model is called.
        ModelError: a model of `deformreg.interop` fails before or in an attack; in the diagnosis after them, a model's
            failure is the red flag `diagnosis_failed`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from deformreg import linf
        >>> from deformreg.attacks import pgd
        >>> edge = lambda x: jnp.stack([x[:, 0, 1, 0], 0.75 - x[:, 0, 1, 0]], axis=1)  # class 0 where bright
        >>> ramp = jnp.arange(4.0).reshape(1, 1, 4, 1) / 4
        >>> images, labels = jnp.concatenate([ramp, ramp + 2]), jnp.array([1, 0])
        >>> attacks = [pgd(ball=linf(0.9), num_steps=5)]
        >>> evaluate(edge, images, labels, attacks, key=jax.random.key(0), diagnosis=False).robust_accuracy
        0.5
        >>> flows = {}
        >>> keep = lambda attack, indices, result: flows.update(zip(indices.tolist(), result.params))
        >>> _ = evaluate(edge, images, labels, attacks, key=jax.random.key(0), diagnosis=False, collect=keep)
        >>> sorted(flows), flows[0].shape
        ([0, 1], (1, 4, 2))
        >>> kept = {}
        >>> def recall(attack, run):
        ...     if attack.name not in kept:
        ...         kept[attack.name] = run()
        ...     return kept[attack.name]
        >>> for _ in range(2):  # the second time no attack runs
        ...     again = evaluate(edge, images, labels, attacks, key=jax.random.key(0), diagnosis=False, recall=recall)
        >>> again.attacks == tuple(kept.values())
        True

    References:
        Croce and Hein, "Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free
        Attacks", ICML 2020 (sequence of attacks, fresh check, flags).
        Carlini et al., "On Evaluating Adversarial Robustness", arXiv 1902.06705.
    """
    run = evaluator(
        attacks,
        batch_size=batch_size,
        image_range=image_range,
        criterion=criterion,
        independent=independent,
        diagnosis=diagnosis,
        refill=refill,
        quantize=quantize,
        devices=devices,
    )
    return run(logits_fn, images, labels, key=key, targets=targets, progress=progress, collect=collect, recall=recall)
