"""Runs one attack on one model and confirms its claims: a fresh forward pass, the budget, the images' range."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from deformreg import _checks
from deformreg.attacks.attack import Attack
from deformreg.evaluation.data import HostArray
from deformreg.evaluation.found import Found
from deformreg.evaluation.outcomes import AttackOutcome, Progress
from deformreg.evaluation.passes import Setting, find_broken, padded
from deformreg.evaluation.quantized import to_8_bits
from deformreg.evaluation.rows import Compiled, Finished, run_refilled, warm_up


class _Check:
    """Collects what an attack claims, and confirms it by fresh forward passes of full batches."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.confirmed = Found.nothing(len(setting.data.labels))
        self.waiting: list[tuple[HostArray, HostArray, HostArray, Any]] = []

    def add(self, part: Finished) -> None:
        indices, result, found = part.indices, part.result, self.confirmed
        images = np.asarray(result.images)
        valid = np.asarray(result.success) & _admissible(images, part.size, self.setting.image_range)
        found.claimed[indices] = result.success
        found.calls[indices] = result.model_calls
        found.finished[indices[~valid]] = True
        claims = images, np.asarray(result.labels), result.norms
        self.waiting.append((indices[valid], *jax.tree.map(lambda leaf: leaf[valid], claims)))
        if sum(len(indices) for indices, *_ in self.waiting) >= self.setting.batch_size:
            self.confirm()

    def confirm(self) -> None:
        if not any(len(indices) for indices, *_ in self.waiting):
            return
        indices, images, labels, norms = jax.tree.map(lambda *parts: np.concatenate(parts), *self.waiting)
        claimed = self.setting.data.with_images(indices, images)._replace(labels=labels)
        confirmed = indices[right := find_broken(self.setting, claimed)]
        found = self.confirmed
        for name, values in norms._asdict().items():
            found.norms.setdefault(name, np.zeros(len(found.broken), values.dtype))[confirmed] = values[right]
        found.broken[confirmed] = found.finished[indices] = True
        self.confirmed = found._replace(model_calls=found.model_calls + padded(len(indices), self.setting.batch_size))
        self.waiting.clear()

    def broken_so_far(self) -> HostArray:
        """bool[n]: the broken examples and those that wait for the check."""
        broken = self.confirmed.broken.copy()
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
    begun: Found | None = None,
    *,
    keep: Callable[[Found], object] | None = None,
    share: tuple[int, int] = (0, 1),
    gather: Callable[[Found], Found] | None = None,
) -> AttackOutcome:
    """Runs attack `number` on the examples of the mask `attacked`; its accuracy starts from the mask `standing`.

    The others are those of `Run`.
    """
    begun = Found.nothing(len(attacked)) if begun is None else begun
    if begun.finished.shape != attacked.shape or (begun.finished & ~attacked).any():
        raise ValueError(f"begun must be what {attack.name!r} has found on these examples: keep such results apart")
    first, step = share
    indices = np.flatnonzero(attacked & ~begun.finished)[first::step]
    found = _search(setting, number, attack, compiled, indices, standing, key, begun, keep)
    found = (found if gather is None else gather(found)).after(begun)
    if (attacked & ~found.finished).any():
        raise ValueError(f"gather must return what all processes have found with {attack.name!r}, got a part")
    return _concluded(attack, found, attacked, standing)


def _search(
    setting: Setting,
    number: int,
    attack: Attack,
    compiled: Compiled,
    indices: HostArray,
    standing: HostArray,
    key: jax.Array,
    begun: Found,
    keep: Callable[[Found], object] | None,
) -> Found:
    """What the attack finds on the examples `indices`."""
    compile_seconds = 0.0
    if len(indices):
        compile_seconds = warm_up(compiled, setting.logits_fn, setting.data, key=key, batch_size=setting.batch_size)
    started = time.perf_counter()
    check = _Check(setting)
    before = int(begun.finished.sum())
    finished = computed = 0

    def so_far() -> Found:
        found = check.confirmed
        return found._replace(
            # A transferred attack's steps do not all show an image to the attacked model.
            model_calls=max(computed * attack.calls_per_step, int(found.calls.sum())) + found.model_calls,
            seconds=time.perf_counter() - started,
            compile_seconds=compile_seconds,
        )

    for part in run_refilled(
        compiled, setting.logits_fn, setting.data, indices, key=key, number=number, batch_size=setting.batch_size,
        refill=setting.refill,
    ):  # fmt: skip
        if setting.quantize:
            saved: Any = np.asarray(to_8_bits(part.result.images, setting.image_range))
            part = part._replace(result=part.result._replace(images=saved))
        check.add(part)
        computed, finished = part.computed, finished + len(part.indices)
        if setting.collect is not None:
            setting.collect(attack, part.indices, part.result)
        if keep is not None:
            keep(so_far().after(begun))
        if setting.progress is not None:
            accuracy = float((standing & ~begun.broken & ~check.broken_so_far()).mean())
            setting.progress(Progress(attack.name, before + finished, before + len(indices), accuracy))
    check.confirm()
    if keep is not None and len(indices):
        keep(so_far().after(begun))
    return so_far()


def _concluded(attack: Attack, found: Found, attacked: HostArray, standing: HostArray) -> AttackOutcome:
    """The outcome of an attack that has finished all its examples."""
    count, broken, radius = int(attacked.sum()), found.broken, attack.budget.radius
    return AttackOutcome(
        name=attack.name,
        robust_accuracy=float((standing & ~broken).mean()),
        attacked=count,
        broken=int(broken.sum()),
        success_rate=float(broken.sum() / count) if count else None,
        model_calls=found.model_calls,
        seconds=found.seconds,
        compile_seconds=found.compile_seconds,
        radius_pixels=float(radius) if attack.budget.unit == "pixels" and isinstance(radius, (int, float)) else None,
        budget=attack.budget,
        norms=found.summary(),
        mean_calls=int(found.calls.sum()) / max(count, 1),
        rejected=int(found.claimed.sum()) - int(broken.sum()),
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
    slack = _checks.range_slack(image_range, images.dtype)
    inside = (flat >= image_range[0] - slack).all(axis=1) & (flat <= image_range[1] + slack).all(axis=1)
    fits: HostArray = np.isfinite(flat).all(axis=1) & inside & (size <= 1 + 1e-4)
    return fits
