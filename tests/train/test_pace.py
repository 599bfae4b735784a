"""The pace of a training: what is measured, and what is left out."""

from __future__ import annotations

from types import SimpleNamespace

import flax.linen as nn
import jax
import optax
import pytest

from train import pace
from train.pace import Pace, forward_flops, peak
from train.state import init_state


class Clock:
    """A clock that a test moves."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(pace.time, "perf_counter", lambda: self.now)

    def batches(self, *seconds):
        for each in seconds:
            self.now += each
            yield each


def test_the_pace_is_that_of_steps_and_of_waiting_between_lines(monkeypatch):
    clock = Clock(monkeypatch)
    measured, batches = Pace(32, share_per_second=0.1), clock.batches(*[1.0] * 6)
    assert measured.values() == {}
    for _ in range(2):
        measured.next_of(batches)
        clock.now += 3
        measured.count()
    expected = {"step_seconds": 4.0, "images_per_second": 8.0, "waiting_share": 0.25, "flops_utilization": 0.025}
    assert measured.values() == expected
    measured.next_of(batches)
    measured.count()
    measured.pause()  # validation and a checkpoint
    clock.now += 1000
    measured.next_of(batches)
    clock.now += 1
    measured.count()
    assert measured.values()["step_seconds"] == 2.0
    measured.pause()
    measured.next_of(batches)
    clock.now += 1000  # compiling
    measured.restart()
    measured.next_of(batches)
    clock.now += 7  # the first step runs on
    measured.count()
    assert measured.values() == {}
    clock.now += 4
    measured.count()
    assert measured.values()["step_seconds"] == 4.0


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA H200 NVL", 835e12),
        ("cpu", None),
    ],
)
def test_the_peak_of_known_devices(kind, expected):
    assert peak(SimpleNamespace(device_kind=kind)) == expected


def test_the_operations_of_a_forward_pass_are_those_of_its_products():
    class Linear(nn.Module):
        """One matrix on all pixels."""

        @nn.compact
        def __call__(self, images, train=False):
            return nn.Dense(10, use_bias=False)(images.reshape(len(images), -1))

    model = Linear()
    shapes = jax.eval_shape(lambda: init_state(model, optax.sgd(0.1), (8, 8, 3), 0))
    assert forward_flops(model, shapes, (8, 8, 3)) == 2 * 8 * 8 * 3 * 10
