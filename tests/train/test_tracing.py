"""Traces of steps."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from train.tracing import traced


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
