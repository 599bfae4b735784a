"""The two engines: what they hand over, and what they refuse."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from settings import batches

from train import parallel
from train.errors import ConfigError


@pytest.mark.parametrize("kind", ["pmap", "jit"])
@pytest.mark.parametrize("devices", [1, 4])
def test_what_a_step_is_fed_equals_what_would_be_moved(kind, devices):
    def step(state, batch, *, axis=None):
        total = jnp.sum(batch["image"] * (1.0 + batch["position"])[:, None, None, None])
        return state, total if axis is None else jax.lax.psum(total, axis)

    engine = parallel.make_engine(kind, devices=devices, batch_size=16)
    (batch,) = batches(1)
    totals = [
        engine.compile(step)(engine.put_state(jnp.zeros(())), give(batch))[1]
        for give in (engine.feed, engine.put_batch)
    ]
    np.testing.assert_array_equal(*totals)
    np.testing.assert_allclose(totals[0], np.vdot(batch["image"].sum((1, 2, 3)), 1.0 + batch["position"]), rtol=1e-5)


def test_engine_refuses_what_does_not_divide():
    with pytest.raises(ConfigError, match="--batch-size must divide among 8 devices, got 12"):
        parallel.make_engine("pmap", batch_size=12)
    with pytest.raises(ConfigError, match="--devices must be at most 8"):
        parallel.make_engine("jit", devices=9, batch_size=18)
