"""How fast a training goes: images and seconds per step, waiting for data, and the use of the devices' arithmetic.

References:
    Chowdhery et al., "PaLM: Scaling Language Modeling with Pathways", JMLR 2023, appendix B (model FLOPs utilization:
    the arithmetic of the model without recomputation, as a share of the peak).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from train.state import State, predict

TIMES = ("seconds", "step_seconds", "images_per_second", "waiting_share", "flops_utilization")
"""The values in a line of the metric log that two runs of the same training need not share."""

PEAKS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200 NVL": 835e12,
    "NVIDIA H200": 989e12,
}
"""Dense bfloat16 FLOP/s of a device by the start of its kind, from the makers' data sheets; the first that fits."""


def peak(device: jax.Device) -> float | None:
    """The device's peak in bfloat16, where it is known."""
    return next((value for kind, value in PEAKS.items() if device.device_kind.startswith(kind)), None)


def forward_flops(model: nn.Module, shapes: State, image_shape: tuple[int, ...]) -> float | None:
    """Operations of a forward pass on one image, as XLA counts them before it optimizes; None where it does not."""
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    with suppress(NotImplementedError, KeyError, TypeError, jax.errors.JaxRuntimeError):
        lowered = jax.jit(partial(predict, model)).lower(shapes.params, shapes.batch_stats, image)
        analysis: Any = lowered.cost_analysis()
        return float(analysis["flops"])
    return None


class Pace:
    """The pace of the steps between two lines of the log, without compiling, validation and checkpoints.

    Args:
        images: of a step.
        share_per_second: the share of the devices' peak that one step per second would use; None if unknown.
    """

    def __init__(self, images: int, share_per_second: float | None = None) -> None:
        self._images, self._share = images, share_per_second
        self.pause()

    def pause(self) -> None:
        """Ends the measured time; the next batch starts it again."""
        self._began: float | None = None
        self._waited, self._steps = 0.0, 0

    def restart(self) -> None:
        """Ends the measured time; the end of the next step, which is running, starts it again."""
        self._began, self._waited, self._steps = None, 0.0, -1

    def next_of(self, batches: Iterator[Any]) -> Any:
        """The next batch, with the time that it is waited for."""
        asked = time.perf_counter()
        if self._began is None:
            self._began = asked
        batch = next(batches)
        self._waited += time.perf_counter() - asked
        return batch

    def count(self) -> None:
        """A step has ended."""
        self._steps += 1
        if self._steps == 0:
            self._began, self._waited = time.perf_counter(), 0.0

    def values(self) -> dict[str, float]:
        """The pace since the last call; empty before a step has ended."""
        now = time.perf_counter()
        if self._began is None or self._steps < 1:
            return {}
        elapsed, steps = now - self._began, self._steps
        values = {
            "step_seconds": elapsed / steps,
            "images_per_second": self._images * steps / elapsed,
            "waiting_share": min(self._waited / elapsed, 1.0),
        }
        if self._share is not None:
            values["flops_utilization"] = self._share * steps / elapsed
        self._began, self._waited, self._steps = now, 0.0, 0
        return values
