"""Traces of steps."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from train.errors import ConfigError
from train.tracing import check_steps, traced


def test_steps_that_a_training_does_not_take_are_named():
    for steps in (range(0), range(99, 200), range(0, 11)):
        check_steps(steps, 100)
    with pytest.raises(ConfigError, match=r"100:110 traces nothing: .* 0 to step 100"):
        check_steps(range(100, 110), 100)


@pytest.mark.slow
def test_every_process_traces_into_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    for index in (0, 1):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        with traced(tmp_path, range(1, 2)) as follow:
            for taken in range(3):
                follow(taken, jnp.ones(3) + taken)
    traces = [path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("perfetto_trace.json.gz")]
    assert sorted(traces) == ["process-0", "process-1"]
