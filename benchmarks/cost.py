"""Measures time, FLOPs and memory of one training step per method, also as ratios to the standard method's step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import harness
from benchmarks.options import Case, Networks, Timed
from benchmarks.rows import Rows
from train.data import Augmentation
from train.errors import ConfigError, one_line
from train.methods import AnyMethod, Method
from train.methods.adversarial import Adversarial, Deformation
from train.methods.cure import Cure
from train.methods.displacement import Displacement
from train.methods.elle import Elle
from train.methods.fast import NFgsm
from train.methods.gradient import FlowGradient, FlowGradientDeformation, InputGradient
from train.methods.greedy import Greedy
from train.methods.llr import Llr
from train.methods.mart import Mart
from train.methods.penalties import FiniteDifference
from train.methods.random_flows import RandomFlows
from train.methods.spatial import Spatial
from train.methods.standard import Standard
from train.methods.trades import Trades
from train.models import create_model
from train.optimizers import Sgd
from train.state import init_state
from train.step import Step, make_step

PIXELS, FLOW = 8 / 255, 0.155
WEIGHT = 4.4  # the released code's 300 at 32x32 and 128 images

METHODS: dict[str, AnyMethod] = {
    "standard": Standard(),
    "input-gradient": InputGradient(weight=0.1),
    "flow-gradient": FlowGradient(weight=WEIGHT),
    "flow-gradient, held statistics": FlowGradient(weight=WEIGHT, statistics="held"),
    "flow-gradient, dual norm": FlowGradient(weight=0.1, size="linf"),
    "flow-gradient, finite difference": FlowGradient(weight=WEIGHT, rule=FiniteDifference()),
    "flow-gradient, every 4th step": FlowGradient(weight=WEIGHT, every=4),
    "flow-gradient, a quarter of the batch": FlowGradient(weight=WEIGHT, share=0.25),
    "displacement": Displacement(radius=FLOW),
    "adversarial, 1 step": Adversarial(radius=PIXELS, steps=1),  # from a random start: "fast" adversarial training
    "adversarial, 7 steps": Adversarial(radius=PIXELS, steps=7),
    "adversarial, 10 steps": Adversarial(radius=PIXELS, steps=10),
    "deformation, 1 step": Deformation(radius=FLOW, steps=1),
    "deformation, 7 steps": Deformation(radius=FLOW, steps=7),
    "greedy": Greedy(radius=FLOW),
    "flow-gradient + deformation, 7 steps": FlowGradientDeformation(weight=WEIGHT, radius=FLOW, steps=7),
    "worst of 10 rotations": Spatial(radius=3.0, degrees=30.0, draws=10),
    "random flows": RandomFlows(),
    "trades, 7 steps": Trades(radius=FLOW, steps=7),
    "mart, 7 steps": Mart(radius=FLOW, steps=7),
    "n-fgsm": NFgsm(radius=FLOW),
    "elle": Elle(radius=FLOW),
    "cure": Cure(radius=FLOW),
    "llr, 10 steps": Llr(radius=FLOW, steps=10),
}
QUICK = (
    "standard",
    "flow-gradient",
    "flow-gradient, finite difference",
    "flow-gradient, every 4th step",
    "deformation, 7 steps",
)


@dataclass(frozen=True, kw_only=True)
class Options(Networks, Timed):
    """Times a training step of every method on random images, the methods in turn."""

    quick: bool = False
    """Measures for at most two minutes, and only five methods unless --methods chooses others."""
    methods: tuple[str, ...] = ()
    """Only these methods and the standard one, for example "flow-gradient, every 4th step".
    An unknown name lists all."""


def run(options: Options) -> Rows:
    """A row per case and method.

    `model_passes` is what the method declares (`Method.passes`), `flops` what XLA counts.

    Raises:
        ConfigError: an unknown method, or images too small for a network.
    """
    names = options.methods or (QUICK if options.quick else tuple(METHODS))
    methods = {name: find(name) for name in ("standard", *names)}
    return [row for case in options.cases() for row in _measure(case, methods, options)]


def find(name: str) -> AnyMethod:
    """The method of that name in `METHODS`; raises `ConfigError` if there is none."""
    if name not in METHODS:
        raise ConfigError(f"there is no method {name!r}: {'; '.join(METHODS)}")
    return METHODS[name]


def _measure(case: Case, methods: dict[str, AnyMethod], options: Options) -> Rows:
    steps = {name: TrainingStep(method, case) for name, method in methods.items()}
    candidates = {name: step.run for name, step in steps.items()}
    samples = harness.interleave(candidates, rounds=options.rounds, budget_seconds=120 if options.quick else None)
    for name, step in steps.items():
        samples[name] = [value / step.method.every for value in samples[name]]
    flops, memory = {name: step.flops() for name, step in steps.items()}, steps["standard"].temporary_bytes
    return [
        {
            "method": name,
            **case._asdict(),
            **harness.compared(samples, name, "standard", "ratio_to_standard"),
            "examples_per_second": 1e3 * case.batch_size / harness.summary(samples[name])["milliseconds"],
            "model_passes": step.method.passes,
            "flops": flops[name],
            "flops_ratio": flops[name] / flops["standard"],
            "temporary_bytes": step.temporary_bytes,
            "temporary_ratio": step.temporary_bytes / memory,
            "compile_seconds": step.compile_seconds,
        }
        for name, step in steps.items()
    ]


def make_training_step(method: Method, model: nn.Module) -> tuple[Step, optax.GradientTransformation]:
    """Returns a method's training step, with SGD and without augmentation, and the optimizer."""
    optimizer, rate = Sgd().make(1e-4), optax.constant_schedule(1e-4)
    return make_step(method, model, optimizer, rate=rate, augmentation=Augmentation()), optimizer


class TrainingStep:
    """A compiled training step with its state, on one batch of random images.

    Attributes:
        method: the training method.
        state: the training state; every step replaces it.
        temporary_bytes: the step's peak memory, without arguments and results.
        compile_seconds: the time that compiling took.
    """

    def __init__(self, config: AnyMethod, case: Case) -> None:
        self.config, self.method = config, config.make()
        self.model = create_model(case.model, num_classes=10, dtype=jnp.dtype(case.dtype))
        step, optimizer = make_training_step(self.method, self.model)
        shape = (case.image_size, case.image_size, 3)
        try:
            self.state = init_state(self.model, optimizer, shape, 0)
        except ValueError as error:
            raise ConfigError(f"{case.model} cannot take --image-size {case.image_size}: {one_line(error)}") from error
        rng = np.random.default_rng(0)
        batch = {
            "image": rng.integers(0, 256, (case.batch_size, *shape), np.uint8),
            "label": rng.integers(0, 10, case.batch_size, np.int32),
            "position": np.arange(case.batch_size, dtype=np.int32),
        }
        self.batch = jax.device_put(batch)
        self.executable, self.compile_seconds = harness.compiled(step, self.state, self.batch, donate_argnums=0)
        self.temporary_bytes = harness.temporary_bytes(self.executable)

    def run(self) -> None:
        """Takes `method.every` steps, so that one of them has the penalty, and waits for the last one."""
        metrics: Any = None
        for _ in range(self.method.every):
            self.state, metrics = self.executable(self.state, self.batch)
        jax.block_until_ready((self.state, metrics))

    def flops(self) -> float:
        """XLA's count for a step, averaged over `method.every` steps, with every iteration of a loop counted."""
        counts = {self.config: harness.flops(self.executable)}

        def count(config: AnyMethod) -> float:
            if config not in counts:
                step, _ = make_training_step(config.make(), self.model)
                counts[config] = harness.flops(harness.compiled(step, self.state, self.batch)[0])
            return counts[config]

        # XLA counts both branches of a conditional, and a loop's body only once: each part is compiled and counted
        # alone.
        others = self.method.every - 1
        penalized = self.config
        if isinstance(penalized, InputGradient | FlowGradient | FlowGradientDeformation):
            penalized = replace(penalized, every=1)
        without, turns = without_loop(penalized)
        loop, rest = count(penalized) - count(without), count(without)
        if isinstance(getattr(without, "rule", None), FiniteDifference):
            rest += count(Standard())  # its loop has two iterations, each with the passes of a standard step
        plain = count(Standard()) if others else 0.0
        return turns * loop + (rest + others * plain) / self.method.every


def without_loop(config: AnyMethod) -> tuple[AnyMethod, int]:
    """The method without its loop over attack steps or random draws, and the number of iterations of that loop."""
    if isinstance(config, Spatial):
        return Standard(), config.draws
    if isinstance(config, Adversarial | Deformation | FlowGradientDeformation | Trades | Mart | Llr):
        return replace(config, steps=0), config.steps
    return config, 1
