"""One training step, per method: time, FLOPs, memory, as ratios to the standard step in the same run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

import deformreg
from benchmarks import harness
from deformreg.losses import cross_entropy
from train.config import Config, Method, Model, Optimizer
from train.models import create_model
from train.optimizers import make_optimizer
from train.steps import State, init_state, make_step

PIXELS, FLOW = 8 / 255, 0.155
WEIGHT = 4.4

Forward = Callable[[Array, Array], tuple[Array, Any]]


class Recipe(NamedTuple):
    """A method that the trainer does not have.

    Attributes:
        objective: ``(forward, images, labels, key) -> (loss, batch statistics)``, where ``forward(images, labels)``
            gives the losses on the batch's statistics and the updated running ones.
        passes: forward passes' worth of work per step.
        trips: of a loop in it, whose body XLA counts once.
    """

    objective: Callable[[Forward, Array, Array, Array], tuple[Array, Any]]
    passes: float
    trips: int = 1


def _worst_rotation(forward: Forward, images: Array, labels: Array, key: Array) -> tuple[Array, Any]:
    """Each example as that one of ten random rotations and translations that the network likes least."""
    family = deformreg.affine(parameters=("rotation", "dy", "dx"), boundary="zeros")
    limits = jnp.array([math.radians(30), 3.0, 3.0])
    draws = limits * jax.random.uniform(key, (10, len(images), 3), minval=-1.0)
    losses = jax.lax.map(lambda params: forward(family.apply(params, images), labels)[0], draws)
    worst = jnp.take_along_axis(draws, jnp.argmax(losses, axis=0)[None, :, None], axis=0)[0]
    losses, statistics = forward(jax.lax.stop_gradient(family.apply(worst, images)), labels)
    return jnp.mean(losses), statistics


def _on_a_quarter(forward: Forward, images: Array, labels: Array, key: Array) -> tuple[Array, Any]:
    """The flow penalty on the first quarter of the batch, the plain loss on the rest."""
    del key
    count = max(1, len(images) // 4)
    penalties, (first, _) = deformreg.gradient_penalty(
        lambda some: forward(some, labels[:count]), images[:count], has_aux=True
    )
    rest, statistics = forward(images[count:], labels[count:])
    return (jnp.sum(first) + jnp.sum(rest)) / len(images) + WEIGHT * jnp.mean(penalties), statistics


METHODS: dict[str, Method | Recipe] = {
    "standard": Method(),
    "input-gradient": Method(name="input-gradient", weight=0.1),
    "flow-gradient": Method(name="flow-gradient", weight=WEIGHT),
    "flow-gradient, finite difference": Method(name="flow-gradient", weight=WEIGHT, penalty="finite-difference"),
    "flow-gradient, every 4th step": Method(name="flow-gradient", weight=WEIGHT, every=4),
    "flow-gradient, a quarter of the batch": Recipe(_on_a_quarter, 3.75),
    "adversarial, 1 step": Method(name="adversarial", radius=PIXELS, steps=1),  # random start: "fast"
    "adversarial, 7 steps": Method(name="adversarial", radius=PIXELS, steps=7),
    "adversarial, 10 steps": Method(name="adversarial", radius=PIXELS, steps=10),
    "deformation, 1 step": Method(name="deformation", radius=FLOW, steps=1),
    "deformation, 7 steps": Method(name="deformation", radius=FLOW, steps=7),
    "flow-gradient + deformation, 7 steps": Method(
        name="flow-gradient+deformation", weight=WEIGHT, radius=FLOW, steps=7
    ),
    "worst of 10 rotations": Recipe(_worst_rotation, 13.0, trips=10),
}
QUICK = (
    "standard",
    "flow-gradient",
    "flow-gradient, finite difference",
    "flow-gradient, every 4th step",
    "deformation, 7 steps",
)


def measure(
    *,
    model: str = "vgg-11",
    batch_size: int = 128,
    image_size: int = 32,
    dtype: str = "float32",
    methods: tuple[str, ...] | None = None,
    rounds: int = 7,
    quick: bool = False,
) -> list[dict[str, Any]]:
    """Times every method's training step on random images.

    Args:
        model: of `train.models`, full width, batch norm.
        batch_size: images per step, on one device.
        image_size: side in pixels.
        dtype: of the network's arithmetic.
        methods: of `METHODS`, the standard one among them; None for all.
        rounds: timed rounds; every round runs every method once (those of every 4th step: four times).
        quick: the main five methods unless `methods` says otherwise, within minutes.

    Returns:
        A row per method. The FLOPs of attacks are XLA's count with the loop's body multiplied by its trips.

    Raises:
        ValueError: an unknown method or model.
    """
    names = methods or (QUICK if quick else tuple(METHODS))
    unknown = [name for name in names if name not in METHODS]
    if unknown:
        raise ValueError(f"there is no method {unknown[0]!r}: {', '.join(METHODS)}")
    names = tuple(dict.fromkeys(("standard", *names)))
    steps = {name: TrainingStep(METHODS[name], model, batch_size, image_size, dtype) for name in names}
    samples = harness.interleave(
        {name: step.run for name, step in steps.items()},
        rounds=rounds,
        budget_seconds=120 if quick else None,
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
            "dtype": dtype,
            **harness.summary(samples[name]),
            "ratio_to_standard": harness.ratio(samples, name, "standard")["ratio"],
            "ratio_quartiles": harness.ratio(samples, name, "standard")["ratio_quartiles"],
            "examples_per_second": 1e3 * batch_size / harness.summary(samples[name])["milliseconds"],
            "model_passes": passes(METHODS[name]),
            "flops": step.flops,
            "flops_ratio": step.flops / standard.flops,
            "temporary_bytes": step.temporary_bytes,
            "temporary_ratio": step.temporary_bytes / standard.temporary_bytes,
            "compile_seconds": step.compile_seconds,
        }
        for name, step in steps.items()
    ]


def passes(method: Method | Recipe) -> float:
    """What a step costs in forward passes: a backward pass to the activations is one, the weight gradients one."""
    if isinstance(method, Recipe):
        return method.passes
    attack = 2 * method.steps if method.radius else 0
    if "gradient" not in method.name:
        return 3 + attack
    penalized = 6 if method.penalty == "exact" else 8
    return attack + (penalized + 3 * (method.every - 1)) / method.every


class TrainingStep:
    """A compiled training step with its state; `run` takes `period` of them and waits."""

    def __init__(
        self, method: Method | Recipe, name: str, batch_size: int, image_size: int, dtype: str = "float32"
    ) -> None:
        self.config = Config(
            model=Model(name=name, dtype=dtype),  # type: ignore[arg-type]
            optimizer=Optimizer(learning_rate=1e-4),
        )
        self.model = create_model(name, num_classes=10, dtype=jnp.dtype(dtype))
        self.optimizer = make_optimizer(self.config.optimizer, self.config.optimizer.learning_rate)
        self.state = init_state(self.model, self.optimizer, (image_size, image_size, 3), 0)
        rng = np.random.default_rng(0)
        batch = {
            "image": rng.integers(0, 256, (batch_size, image_size, image_size, 3), np.uint8),
            "label": rng.integers(0, 10, batch_size, np.int32),
            "position": np.arange(batch_size, dtype=np.int32),
        }
        self.batch = jax.device_put(batch)
        self.period = method.every if isinstance(method, Method) else 1
        self.executable, self.compile_seconds = harness.compiled(
            self._step(method), self.state, self.batch, donate_argnums=0
        )
        self.temporary_bytes = harness.temporary_bytes(self.executable)
        self.flops = self._flops(method)

    def _step(self, method: Method | Recipe) -> Callable[..., Any]:
        if isinstance(method, Method):
            return make_step(replace(self.config, method=method), self.model, self.optimizer)
        return _recipe_step(method, self.model, self.optimizer)

    def _flops(self, method: Method | Recipe) -> float:
        """XLA's count; it takes a loop's body once, so the difference that the body makes is multiplied."""

        def count(method: Method) -> float:
            return harness.flops(harness.compiled(self._step(method), self.state, self.batch)[0])

        counted = harness.flops(self.executable)
        if isinstance(method, Recipe):
            return counted if method.trips == 1 else counted + (method.trips - 1) * (counted - count(Method()))
        if method.every > 1:
            # Both branches of the condition are counted; the mean over a period is what a run pays.
            penalized, plain = count(replace(method, every=1)), count(Method())
            return (penalized + (method.every - 1) * plain) / method.every
        if method.penalty == "finite-difference":
            return counted + count(Method())  # a loop of two passes, each like a standard step's
        if method.steps > 1 and method.radius:
            trained = replace(method, name="standard") if "gradient" not in method.name else replace(method, radius=0.0)
            return counted + (method.steps - 1) * (counted - count(trained))
        return counted

    def run(self) -> None:
        for _ in range(self.period):
            self.state, metrics = self.executable(self.state, self.batch)
        jax.block_until_ready((self.state, metrics))


def _recipe_step(recipe: Recipe, model: Any, optimizer: optax.GradientTransformation) -> Callable[..., Any]:
    """``(state, batch) -> (state, metrics)`` of a recipe, as `train.steps.make_step` gives it for a method."""

    def step(state: State, batch: dict[str, Array]) -> tuple[State, dict[str, Array]]:
        images = batch["image"].astype(jnp.float32) / 255
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)

        def total(params: Any) -> tuple[Array, Any]:
            def forward(images: Array, labels: Array) -> tuple[Array, Any]:
                variables = {"params": params, "batch_stats": state.batch_stats}
                logits, updated = model.apply(variables, images, train=True, mutable=["batch_stats"])
                return cross_entropy(logits, labels), updated["batch_stats"]

            return recipe.objective(forward, images, batch["label"], key)

        (loss, statistics), gradients = jax.value_and_grad(total, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return State(state.step + 1, params, statistics, opt_state, state.key), {"loss": loss}

    return step
