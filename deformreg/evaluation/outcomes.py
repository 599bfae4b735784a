"""Runs one attack on one model and confirms its claims: a fresh forward pass, the budget, the images' range."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from jax.tree_util import Partial

from deformreg import _checks
from deformreg._programs import jitted
from deformreg.attacks.attack import Attack, AttackResult, Budget
from deformreg.criteria import Criterion
from deformreg.criteria.classification import predicted_classes
from deformreg.evaluation.quantized import to_8_bits
from deformreg.evaluation.rows import Compiled, Data, HostArray, run_refilled, warm_up


class AttackOutcome(NamedTuple):
    """The result of one attack on one model.

    Attributes:
        name: the attack's.
        robust_accuracy: share of *all* examples that are classified correctly and that neither this attack nor an
            earlier one of the suite broke. In an independent evaluation earlier attacks do not count.
        attacked: number of examples it was run on.
        broken: number of attacked examples that it broke.
        success_rate: broken / attacked; None if it was run on none.
        model_calls: rows computed, idle rows and the fresh check included.
        seconds: wall clock, without compiling.
        compile_seconds: wall clock of compiling.
        radius_pixels: the budget, if it bounds a displacement field; else None.
        budget: radius, norm and unit.
        norms: mean and maximum, over the broken examples, of each norm of the final field (or image difference).
        mean_calls: mean number of model calls spent on an attacked example.
        rejected: number of claimed successes that the check did not confirm.
        uses_gradients: whether the attack differentiates the model.
        settings: the attack's.
        attacked_mask: bool[n].
        broken_mask: bool[n].
    """

    name: str
    robust_accuracy: float
    attacked: int
    broken: int
    success_rate: float | None
    model_calls: int
    seconds: float
    compile_seconds: float
    radius_pixels: float | None
    budget: Budget
    norms: dict[str, dict[str, float]]
    mean_calls: float
    rejected: int
    uses_gradients: bool
    settings: dict[str, Any]
    attacked_mask: HostArray
    broken_mask: HostArray


class Spent(NamedTuple):
    """What a part of an evaluation cost.

    Attributes:
        model_calls: images passed through the model.
        seconds: wall clock, without compiling.
        compile_seconds: wall clock of compiling.
    """

    model_calls: int = 0
    seconds: float = 0.0
    compile_seconds: float = 0.0

    def plus(self, other: Spent) -> Spent:
        """The sum."""
        return Spent(
            self.model_calls + other.model_calls,
            self.seconds + other.seconds,
            self.compile_seconds + other.compile_seconds,
        )


class Progress(NamedTuple):
    """The state of a running attack.

    Attributes:
        attack: its name; ``"diagnosis"`` for the search for red flags.
        finished: examples finished.
        total: examples in all.
        robust_accuracy: share of all examples that stand so far.
    """

    attack: str
    finished: int
    total: int
    robust_accuracy: float


class ProgressCallback(Protocol):
    """A function that an evaluation calls whenever examples are finished."""

    def __call__(self, progress: Progress, /) -> object: ...


class Collect(Protocol):
    """A function that an evaluation calls with what an attack claims for finished examples, before the fresh check."""

    def __call__(self, attack: Attack, indices: HostArray, result: AttackResult, /) -> object: ...


class Recall(Protocol):
    """A function that returns an attack's outcome: kept from an earlier evaluation of the same, or that of `run()`."""

    def __call__(self, attack: Attack, run: Callable[[], AttackOutcome], /) -> AttackOutcome: ...


class Judged(NamedTuple):
    """A model's outputs, and what a criterion says of them: one number or decision per example.

    Attributes:
        outputs: the outputs.
        broken: bool[n], whether they are broken, or reach the targets where there are some.
        losses: float[n], the criterion's loss.
        margins: float[n], its margin.
    """

    outputs: Any
    broken: Any
    losses: Any
    margins: Any


class Setting(NamedTuple):
    """What all attacks of an evaluation share. `forward`, ``(logits_fn, data) -> Judged``, is jitted and checked."""

    logits_fn: Partial
    forward: Any
    data: Data
    batch_size: int
    refill: bool
    image_range: tuple[float, float]
    progress: ProgressCallback | None
    collect: Collect | None
    recall: Recall | None = None
    quantize: bool = False


def padded(count: int, batch_size: int) -> int:
    """Rows computed for `count` examples in full batches."""
    return -(-count // batch_size) * batch_size


def compile_forward(criterion: Criterion) -> Callable[[], Any]:
    """Jits the pass of a batch through a model, with checks of what the model returns: see `jitted`."""

    @jitted
    def forward(logits_fn: Partial, data: Any) -> Judged:
        returned = _checks.called("logits_fn", logits_fn, data.images)
        outputs = criterion.check_outputs(returned, len(data.images), "logits_fn")
        criterion.check_labels(data.labels, data.images.shape, outputs.shape)
        reached = data.targets is not None and predicted_classes(outputs) == data.targets
        broken = criterion.broken(outputs, data.labels) if data.targets is None else reached
        return Judged(outputs, broken, criterion.loss(outputs, data.labels), criterion.margin(outputs, data.labels))

    return forward


def in_batches(setting: Setting, data: Data) -> Iterator[tuple[slice, Judged]]:
    """Passes examples through the model in batches of the one shape: where each batch is, and what it says of it."""
    for first in range(0, len(data.images), setting.batch_size):
        place = slice(first, min(first + setting.batch_size, len(data.images)))
        count = place.stop - first
        filled = jax.tree.map(partial(_filled, setting.batch_size - count), data.at(place))
        # On the host: on the device, JAX would compile a slice of every shape.
        judged = jax.device_get(setting.forward(setting.logits_fn, filled))
        yield place, jax.tree.map(lambda leaf, count=count: leaf[:count], judged)


class Clean(NamedTuple):
    """What a model makes of the images without an attack.

    Attributes:
        broken: bool[n], which outputs are broken.
        losses: float[n], the criterion's loss.
        margins: float[n], its margin.
        finite: bool[n], which outputs are finite.
        largest: the largest absolute value of a finite output, above zero.
        watched: the outputs of some examples.
    """

    broken: HostArray
    losses: HostArray
    margins: HostArray
    finite: HostArray
    largest: float
    watched: HostArray


def clean_pass(setting: Setting, watched: HostArray) -> Clean:
    """Passes all images through the model, and keeps the outputs of the examples `watched` (indices)."""
    count = len(setting.data.images)
    seen = Clean(np.zeros(count, bool), np.zeros(count), np.zeros(count), np.zeros(count, bool), 1e-12, np.zeros(0))
    for place, judged in in_batches(setting, setting.data._replace(targets=None)):
        outputs = np.asarray(judged.outputs)
        finite = np.isfinite(outputs)
        seen.broken[place], seen.losses[place], seen.margins[place] = judged.broken, judged.losses, judged.margins
        seen.finite[place] = finite.all(axis=tuple(range(1, outputs.ndim)))
        if place.start == 0:
            seen = seen._replace(watched=np.zeros((len(watched), *outputs.shape[1:]), outputs.dtype))
        here = (watched >= place.start) & (watched < place.stop)
        seen.watched[here] = outputs[watched[here] - place.start]
        seen = seen._replace(
            largest=max(seen.largest, float(np.abs(outputs, where=finite, out=np.zeros_like(outputs)).max()))
        )
    return seen


def find_broken(setting: Setting, data: Data) -> HostArray:
    """Which examples the model breaks on, or which reach their targets."""
    broken = np.zeros(len(data.images), bool)
    for place, judged in in_batches(setting, data):
        broken[place] = judged.broken
    return broken


def _filled(missing: int, batch: HostArray) -> HostArray:
    """The batch followed by copies of its last example."""
    return np.pad(batch, [(0, missing)] + [(0, 0)] * (batch.ndim - 1), mode="edge")


class _Check:
    """Collects claimed successes, and confirms them by fresh forward passes of full batches."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.broken = np.zeros(len(setting.data.labels), bool)
        self.calls = 0
        self.claimed = 0
        self.norms: list[Any] = []
        self.waiting: list[tuple[HostArray, HostArray, HostArray, Any]] = []

    def add(self, indices: HostArray, result: AttackResult, size: HostArray) -> None:
        images = np.asarray(result.images)
        valid = np.asarray(result.success) & _admissible(images, size, self.setting.image_range)
        self.claimed += int(result.success.sum())
        claims = images, np.asarray(result.labels), result.norms
        self.waiting.append((indices[valid], *jax.tree.map(lambda leaf: leaf[valid], claims)))
        if sum(len(indices) for indices, *_ in self.waiting) >= self.setting.batch_size:
            self.confirm()

    def confirm(self) -> None:
        if not self.waiting:
            return
        indices, images, labels, norms = jax.tree.map(lambda *parts: np.concatenate(parts), *self.waiting)
        claimed = self.setting.data.at(indices)._replace(images=images, labels=labels)
        confirmed = find_broken(self.setting, claimed)
        self.broken[indices[confirmed]] = True
        self.norms.append(jax.tree.map(lambda leaf: leaf[confirmed], norms))
        self.calls += padded(len(indices), self.setting.batch_size)
        self.waiting.clear()

    def broken_so_far(self) -> HostArray:
        """bool[n]: the broken examples and those that wait for the check."""
        broken = self.broken.copy()
        for indices, *_ in self.waiting:
            broken[indices] = True
        return broken


def run_attack(
    setting: Setting,
    number: int,
    attack: Attack,
    compiled: Compiled,
    attacked: HostArray,
    standing: HostArray,
    key: jax.Array,
) -> AttackOutcome:
    """Runs attack `number` on the examples of the mask `attacked`; its accuracy starts from the mask `standing`."""
    indices = np.flatnonzero(attacked)
    compile_seconds = 0.0
    if len(indices):
        compile_seconds = warm_up(compiled, setting.logits_fn, setting.data, key=key, batch_size=setting.batch_size)
    started = time.perf_counter()
    check = _Check(setting)
    finished = steps = used = 0
    for part in run_refilled(
        compiled, setting.logits_fn, setting.data, indices, key=key, number=number, batch_size=setting.batch_size,
        refill=setting.refill,
    ):  # fmt: skip
        if setting.quantize:
            saved: Any = np.asarray(to_8_bits(part.result.images, setting.image_range))
            part = part._replace(result=part.result._replace(images=saved))
        check.add(part.indices, part.result, part.size)
        steps, finished = part.steps, finished + len(part.indices)
        used += int(part.result.model_calls.sum())
        if setting.collect is not None:
            setting.collect(attack, part.indices, part.result)
        if setting.progress is not None:
            accuracy = float((standing & ~check.broken_so_far()).mean())
            setting.progress(Progress(attack.name, finished, len(indices), accuracy))
    check.confirm()
    broken, radius = check.broken, attack.budget.radius
    return AttackOutcome(
        name=attack.name,
        robust_accuracy=float((standing & ~broken).mean()),
        attacked=len(indices),
        broken=int(broken.sum()),
        success_rate=float(broken.sum() / len(indices)) if len(indices) else None,
        model_calls=steps * setting.batch_size * attack.calls_per_step + check.calls,
        seconds=time.perf_counter() - started,
        compile_seconds=compile_seconds,
        radius_pixels=float(radius) if attack.budget.unit == "pixels" and isinstance(radius, (int, float)) else None,
        budget=attack.budget,
        norms=_summary(check.norms),
        mean_calls=used / max(len(indices), 1),
        rejected=check.claimed - int(broken.sum()),
        uses_gradients=attack.uses_gradients,
        settings=dict(attack.settings),
        attacked_mask=attacked,
        broken_mask=broken,
    )


def checked(outcome: AttackOutcome, attack: Attack, attacked: HostArray, standing: HostArray) -> AttackOutcome:
    """A recalled outcome, if it can be that of this attack on the examples `attacked`; else raises `ValueError`."""
    _checks.instance("recall", outcome, AttackOutcome, "lambda attack, run: run()")
    same = outcome.name == attack.name and np.array_equal(outcome.attacked_mask, attacked)
    if not same or outcome.robust_accuracy != float((standing & ~outcome.broken_mask).mean()):
        raise ValueError(
            f"recall returned the outcome of another attack or of other examples for {attack.name!r}: keep outcomes "
            "apart by model, examples, suite, radius and key"
        )
    return outcome


def _admissible(images: HostArray, size: HostArray, image_range: tuple[float, float]) -> HostArray:
    """bool[n]: which attacked images are finite, in range and within the budget, up to rounding."""
    flat = images.reshape(len(images), -1).astype(np.float64)
    slack = _checks.RANGE_SLACK * (image_range[1] - image_range[0])
    inside = (flat >= image_range[0] - slack).all(axis=1) & (flat <= image_range[1] + slack).all(axis=1)
    fits: HostArray = np.isfinite(flat).all(axis=1) & inside & (size <= 1 + 1e-4)
    return fits


def _summary(norms: list[Any]) -> dict[str, dict[str, float]]:
    if not norms:
        return {}
    together = jax.tree.map(lambda *parts: np.concatenate(parts), *norms)
    return {
        name: {"mean": float(values.mean()), "max": float(values.max())}
        for name, values in together._asdict().items()
        if len(values)
    }
