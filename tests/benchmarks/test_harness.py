"""The harness measures: paired ratios, candidates that measure themselves, XLA's counts, PyTorch's process."""

from __future__ import annotations

import jax.numpy as jnp
import pytest

from benchmarks import harness
from benchmarks.torch_peer import torch_peer
from train.errors import UserError


def test_a_planted_factor_of_two_shows_through_drift():
    speed = iter(range(1, 1000))

    def step(factor):
        return lambda: factor * float(speed_now[0])

    speed_now = [1]

    def drift():
        speed_now[0] = next(speed)  # every round slower than the one before
        return 1.0

    samples = harness.interleave({"drift": drift, "once": step(1.0), "twice": step(2.0)}, rounds=9)
    assert [len(values) for values in samples.values()] == [9, 9, 9]
    assert harness.ratio(samples, "twice", "once") == {"ratio": 2.0, "ratio_quartiles": [2.0, 2.0]}
    assert harness.summary([3.0, 1.0, 2.0]) == {"milliseconds": 2.0, "quartiles": [1.5, 2.5], "repeats": 3}


def test_the_first_rounds_are_not_counted():
    calls = []
    samples = harness.interleave({"a": lambda: calls.append(0) or float(len(calls))}, rounds=2)
    assert samples == {"a": [3.0, 4.0]}


def test_counts_are_xlas_own():
    product = harness.compiled(lambda a, b: a @ b, jnp.ones((64, 32)), jnp.ones((32, 16)))[0]
    assert harness.flops(product) == pytest.approx(2 * 64 * 32 * 16, rel=0.05)
    between = harness.compiled(lambda a: jnp.sum(jnp.sin(a @ a) @ a), jnp.ones((64, 64)))[0]
    assert harness.temporary_bytes(product) < 64 * 64 * 4 <= harness.temporary_bytes(between)


def test_a_peer_that_cannot_run_is_named(tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'no such framework' >&2\nexit 1\n")
    python.chmod(0o755)
    with (
        pytest.raises(UserError, match=r"no such framework.*--torch-python"),
        torch_peer(str(python), "torch_fgr.py", []),
    ):
        pass
