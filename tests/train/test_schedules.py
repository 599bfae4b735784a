"""The learning rate of every step, in closed form."""

from __future__ import annotations

import numpy as np
import pytest

from train.schedules import Constant, Cosine, Linear, Step

COUNT = np.arange(12)  # three epochs of four steps


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Constant(warmup_epochs=0.5), np.minimum(COUNT / 2, 1)),
        (Cosine(), (1 + np.cos(np.pi * COUNT / 12)) / 2),
        (Cosine(warmup_epochs=1.0), np.where(COUNT < 4, COUNT / 4, (1 + np.cos(np.pi * (COUNT - 4) / 8)) / 2)),
        (Linear(warmup_epochs=1.0), np.where(COUNT < 4, COUNT / 4, 1 - (COUNT - 4) / 8)),
        (
            Step(decay_epochs=(1, 2), warmup_epochs=0.5),
            np.where(COUNT < 2, COUNT / 2, np.where(COUNT < 4, 1, np.where(COUNT < 8, 0.1, 0.01))),
        ),
    ],
    ids=["constant, warm-up", "cosine", "cosine, warm-up", "linear, warm-up", "step, warm-up"],
)
def test_the_rate_of_every_step(schedule, expected):
    rate = schedule.make(0.2, 3, 4)
    np.testing.assert_allclose([rate(step) for step in range(12)], 0.2 * expected, rtol=1e-5, atol=1e-8)
