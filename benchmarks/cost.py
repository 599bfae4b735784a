"""One training step, per method: time, FLOPs, memory, as ratios to the standard step in the same run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import numpy as np

from benchmarks import harness
from train.config import Config, Method, Model, Optimizer
from train.models import create_model
from train.optimizers import make_optimizer
from train.steps import init_state, make_step

PIXELS, FLOW = 8 / 255, 0.155

METHODS = {
    "standard": Method(),
    "input-gradient": Method(name="input-gradient", weight=0.1),
    "flow-gradient": Method(name="flow-gradient", weight=4.4),
    "flow-gradient, finite difference": Method(name="flow-gradient", weight=4.4, penalty="finite-difference"),
    "flow-gradient, every 4th step": Method(name="flow-gradient", weight=4.4, every=4),
    "adversarial, 1 step": Method(name="adversarial", radius=PIXELS, steps=1),
    "adversarial, 7 steps": Method(name="adversarial", radius=PIXELS, steps=7),
    "deformation, 1 step": Method(name="deformation", radius=FLOW, steps=1),
    "deformation, 7 steps": Method(name="deformation", radius=FLOW, steps=7),
    "flow-gradient + deformation, 7 steps": Method(name="flow-gradient+deformation", weight=4.4, radius=FLOW, steps=7),
}
QUICK = ("standard", "flow-gradient", "flow-gradient, every 4th step", "deformation, 7 steps")


def measure(
    *, model: str = "vgg-11", batch_size: int = 128, image_size: int = 32, rounds: int = 7, quick: bool = False
) -> list[dict[str, Any]]:
    """Times every method's training step on random images.

    Args:
        model: of `train.models`, full width, batch norm.
        batch_size: images per step, on one device.
        image_size: side in pixels.
        rounds: timed rounds; every round runs every method once (those of every 4th step: four times).
        quick: the main four methods, within minutes.

    Returns:
        A row per method. The FLOPs of attacks are XLA's count with the loop's body multiplied by its trips.
    """
    names = QUICK if quick else tuple(METHODS)
    steps = {name: TrainingStep(METHODS[name], model, batch_size, image_size) for name in names}
    samples = harness.interleave(
        {name: step.run for name, step in steps.items()},
        rounds=rounds,
        budget_seconds=150 if quick else None,
    )
    for name, step in steps.items():
        samples[name] = [value / step.period for value in samples[name]]
    standard = steps["standard"]
    return [
        {
            "method": name,
            "model": model,
            "batch_size": batch_size,
            "image_size": image_size,
            **harness.summary(samples[name]),
            "ratio_to_standard": harness.ratio(samples, name, "standard")["ratio"],
            "ratio_quartiles": harness.ratio(samples, name, "standard")["ratio_quartiles"],
            "flops_ratio": step.flops / standard.flops,
            "temporary_bytes": step.temporary_bytes,
            "temporary_ratio": step.temporary_bytes / standard.temporary_bytes,
            "compile_seconds": step.compile_seconds,
        }
        for name, step in steps.items()
    ]


class TrainingStep:
    """A compiled training step with its state; `run` takes `period` of them and waits."""

    def __init__(self, method: Method, name: str, batch_size: int, image_size: int) -> None:
        config = Config(model=Model(name=name), method=method, optimizer=Optimizer(learning_rate=1e-4))  # type: ignore[arg-type]
        model = create_model(name, num_classes=10)
        optimizer = make_optimizer(config.optimizer, config.optimizer.learning_rate)
        state = init_state(model, optimizer, (image_size, image_size, 3), 0)
        rng = np.random.default_rng(0)
        batch = {
            "image": rng.integers(0, 256, (batch_size, image_size, image_size, 3), np.uint8),
            "label": rng.integers(0, 10, batch_size, np.int32),
            "position": np.arange(batch_size, dtype=np.int32),
        }
        self.batch = jax.device_put(batch)
        self.state = state
        self.period = method.every
        self.executable, self.compile_seconds = harness.compiled(
            make_step(config, model, optimizer), state, self.batch, donate_argnums=0
        )
        self.temporary_bytes = harness.temporary_bytes(self.executable)
        self.flops = self._flops(config, model, optimizer)

    def _flops(self, config: Config, model: Any, optimizer: Any) -> float:
        method = config.method

        def count(method: Method) -> float:
            step = make_step(replace(config, method=method), model, optimizer)
            return harness.flops(harness.compiled(step, self.state, self.batch)[0])

        if method.every > 1:
            # Both branches of the condition are counted; the mean over a period is what a run pays.
            penalized, plain = count(replace(method, every=1)), count(Method())
            return (penalized + (method.every - 1) * plain) / method.every
        counted = harness.flops(self.executable)
        if method.steps > 1 and method.radius:
            # The loop's body once: the difference between one attack step, which is in `counted`, and none.
            trained = replace(method, name="standard") if "gradient" not in method.name else replace(method, radius=0.0)
            return counted + (method.steps - 1) * (counted - count(trained))
        return counted

    def run(self) -> None:
        for _ in range(self.period):
            self.state, metrics = self.executable(self.state, self.batch)
        jax.block_until_ready((self.state, metrics))
