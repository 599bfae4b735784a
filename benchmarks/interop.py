"""A PyTorch network called from JAX, against the same network in plain PyTorch, in the same process, in turn.

Times are processor time of the whole process: PyTorch and JAX share threads, and other programs disturb it less.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import harness
from benchmarks.options import BatchSize, Several, Timed
from benchmarks.rows import Rows
from deformreg.interop import from_torch
from train.errors import UserError
from train.ranges import Count

SIDE = 224


@dataclass(frozen=True, kw_only=True)
class Options(Timed):
    """Times forward passes and image gradients of an untrained EfficientNet-Lite0 on random images of 224x224."""

    batch_size: Several[BatchSize] = (4,)
    """Images per call."""
    threads: Count = 1
    """PyTorch's threads. Waiting threads count as processor time."""


def run(options: Options) -> Rows:
    """A row per batch size, pass and implementation; `ratio` relates it to plain PyTorch.

    Raises:
        UserError: the packages with PyTorch and the network are missing.
    """
    try:
        import torch
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise UserError(f"{error.name} is not installed: pip install -e .[imagenet]") from error
    torch.set_num_threads(options.threads)
    module = EfficientNet.from_name("efficientnet-lite0").eval().requires_grad_(False)
    return [row for size in options.batch_size for row in _measure(module, size, options)]


def _measure(module: Any, batch_size: int, options: Options) -> Rows:
    rows: Rows = []
    for name, passes in (("forward", _forward), ("gradient", _gradient)):
        samples = harness.interleave(
            {each: _processor_time(function) for each, function in passes(module, batch_size).items()},
            rounds=options.rounds,
            budget_seconds=120 if options.quick else None,
        )
        rows += [
            {"pass": name, "implementation": each, "batch_size": batch_size, "image_size": SIDE}
            | harness.compared(samples, each, "pytorch", "ratio")
            for each in samples
        ]
    return rows


def _processor_time(function: Callable[[], Any]) -> Callable[[], float]:
    def milliseconds() -> float:
        start = time.process_time()
        function()
        return 1e3 * (time.process_time() - start)

    return milliseconds


def _images(batch_size: int) -> jax.Array:
    return jax.random.uniform(jax.random.key(0), (batch_size, SIDE, SIDE, 3))


def _forward(module: Any, batch_size: int) -> dict[str, Callable[[], Any]]:
    import torch

    images, logits_fn = _images(batch_size), jax.jit(from_torch(module))
    inputs = torch.rand(batch_size, 3, SIDE, SIDE)

    def plain() -> None:
        with torch.no_grad():
            module(inputs)

    return {"pytorch": plain, "from_torch": lambda: jax.block_until_ready(logits_fn(images))}


def _gradient(module: Any, batch_size: int) -> dict[str, Callable[[], Any]]:
    import torch

    images, logits_fn = _images(batch_size), from_torch(module)
    gradient = jax.jit(jax.grad(lambda images: jnp.sum(logits_fn(images))))
    inputs = torch.rand(batch_size, 3, SIDE, SIDE, requires_grad=True)

    def plain() -> None:
        torch.autograd.grad(module(inputs).sum(), inputs)

    return {"pytorch": plain, "from_torch": lambda: jax.block_until_ready(gradient(images))}
