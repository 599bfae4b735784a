"""One attack against one model: runs it, checks what it claims, and says how the model fared."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from deformreg.attacks.attack import Attack, AttackResult, Budget
from deformreg.evaluation.rows import Compiled, run_refilled, warm_up

HostArray = np.ndarray[Any, Any]


class AttackOutcome(NamedTuple):
    """How a model fared under one attack.

    Attributes:
        name: the attack's.
        robust_accuracy: share of *all* examples that are right and that neither this attack nor an earlier one of the
            suite broke; of an independent evaluation, that this attack did not break.
        attacked: examples it was run on.
        broken: of these, how many it broke.
        success_rate: broken / attacked; None if it was run on none.
        model_calls: rows computed, those of idle rows and of the fresh check included.
        seconds: wall clock, without compiling.
        compile_seconds: wall clock of compiling.
        radius_pixels: the budget, where it bounds a displacement field; else None.
        budget: radius, norm and unit.
        norms: over the broken examples, mean and largest of each norm of the final field (or difference).
        mean_calls: model calls an attacked example used, mean.
        rejected: claimed successes that the fresh check did not confirm.
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


class Progress(NamedTuple):
    """What a `progress` callback is told: the attack, examples through, of how many, the robust accuracy so far."""

    attack: str
    finished: int
    total: int
    robust_accuracy: float


Collect = Callable[[Attack, HostArray, AttackResult], None]
"""Told the attack, int[k] which examples are through, and what the attack claims of them, before the fresh check."""


class Setting(NamedTuple):
    """What all attacks of an evaluation share."""

    logits_fn: Any
    forward: Callable[..., jax.Array]
    images: HostArray
    labels: HostArray
    targets: HostArray | None
    batch_size: int
    refill: bool
    progress: Callable[[Progress], None] | None
    collect: Collect | None
    image_range: tuple[float, float]


def padded(count: int, batch_size: int) -> int:
    """Rows computed for `count` examples in full batches."""
    return -(-count // batch_size) * batch_size


def predict(setting: Setting, images: HostArray) -> HostArray:
    """Fresh predictions in batches of the one shape; -1 where the logits are not finite."""
    predictions = []
    for first in range(0, len(images), setting.batch_size):
        batch = images[first : first + setting.batch_size]
        padding = [(0, setting.batch_size - len(batch)), (0, 0), (0, 0), (0, 0)]
        logits = np.asarray(setting.forward(setting.logits_fn, np.pad(batch, padding, mode="edge")))[: len(batch)]
        predictions.append(np.where(np.isfinite(logits).all(axis=1), logits.argmax(axis=1), -1))
    return np.concatenate(predictions) if predictions else np.zeros(0, int)


def broken_by(setting: Setting, predicted: HostArray, indices: HostArray) -> HostArray:
    """Whether predictions mean that the examples `indices` are broken."""
    targets = setting.targets
    broken: HostArray = predicted != setting.labels[indices] if targets is None else predicted == targets[indices]
    return broken


class _Check:
    """Collects claimed successes and confirms them by fresh forward passes of full batches."""

    def __init__(self, setting: Setting, count: int) -> None:
        self.setting = setting
        self.broken = np.zeros(count, bool)
        self.calls = 0
        self.claimed = 0
        self.norms: list[Any] = []
        self.waiting: list[tuple[HostArray, HostArray, Any]] = []

    def add(self, indices: HostArray, result: AttackResult, size: HostArray) -> None:
        valid = result.success & _admissible(np.asarray(result.images), size, self.setting.image_range)
        self.claimed += int(result.success.sum())
        norms = jax.tree.map(lambda leaf: leaf[valid], result.norms)
        self.waiting.append((indices[valid], np.asarray(result.images)[valid], norms))
        if sum(len(entry[0]) for entry in self.waiting) >= self.setting.batch_size:
            self.flush()

    def flush(self) -> None:
        if not self.waiting:
            return
        indices, images = (np.concatenate([entry[part] for entry in self.waiting]) for part in (0, 1))
        measured = jax.tree.map(lambda *leaves: np.concatenate(leaves), *(entry[2] for entry in self.waiting))
        confirmed = broken_by(self.setting, predict(self.setting, images), indices)
        self.broken[indices[confirmed]] = True
        self.norms.append(jax.tree.map(lambda leaf: leaf[confirmed], measured))
        self.calls += padded(len(indices), self.setting.batch_size)
        self.waiting.clear()

    def fallen(self) -> HostArray:
        """The broken, those whose confirmation is pending included."""
        fallen = self.broken.copy()
        for indices, *_ in self.waiting:
            fallen[indices] = True
        return fallen


def face(
    setting: Setting, attack: Attack, compiled: Compiled, attacked: HostArray, standing: HostArray, key: jax.Array
) -> AttackOutcome:
    """Runs one attack on the examples of `attacked`; `standing` are those its accuracy starts from."""
    indices = np.flatnonzero(attacked)
    data = (compiled, setting.logits_fn, setting.images, setting.labels)
    shape: dict[str, Any] = {"key": key, "batch_size": setting.batch_size, "targets": setting.targets}
    compile_seconds = warm_up(*data, **shape) if len(indices) else 0.0
    started = time.perf_counter()
    check = _Check(setting, len(attacked))
    finished = steps = used = 0
    for part in run_refilled(*data, indices, **shape, refill=setting.refill):
        check.add(part.indices, part.result, part.size)
        steps, finished = part.steps, finished + len(part.indices)
        used += int(part.result.model_calls.sum())
        if setting.collect is not None:
            setting.collect(attack, part.indices, part.result)
        if setting.progress is not None:
            accuracy = float((standing & ~check.fallen()).mean())
            setting.progress(Progress(attack.name, finished, len(indices), accuracy))
    check.flush()
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


def _admissible(images: HostArray, size: HostArray, image_range: tuple[float, float]) -> HostArray:
    """Which attacked images are finite, in range and in budget, up to rounding."""
    flat = images.reshape(len(images), -1).astype(np.float64)
    slack = 1e-5 * (image_range[1] - image_range[0])
    inside = (flat >= image_range[0] - slack).all(axis=1) & (flat <= image_range[1] + slack).all(axis=1)
    fits: HostArray = np.isfinite(flat).all(axis=1) & inside & (size <= 1 + 1e-4)
    return fits


def _summary(norms: list[Any]) -> dict[str, dict[str, float]]:
    if not norms:
        return {}
    together = jax.tree.map(lambda *leaves: np.concatenate(leaves), *norms)
    return {
        name: {"mean": float(values.mean()), "max": float(values.max())}
        for name, values in together._asdict().items()
        if len(values)
    }
