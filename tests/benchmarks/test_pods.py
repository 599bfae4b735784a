"""Steps compiled for a TPU topology send what they must and no more; skipped where the libtpu wheel is missing."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import pods
from train.errors import ConfigError

PROGRAM = """
import json, jax
jax.config.update("jax_platforms", "cpu")
from benchmarks import cost, pods
from benchmarks.options import Case

for norm in ("group", "batch"):
    target = pods.Target("v5e:2x2", norm, Case("small-cnn", 8, 32, "float32"), effort=-1.0, width=0.125)
    compiled = pods.compile_step(cost.METHODS["flow-gradient"], target)
    print(json.dumps({
        "norm": norm,
        "parameters": compiled.parameters,
        "sent": pods.collectives(compiled.executable.as_text()),
        "row": pods.describe(compiled, target.chip),
    }))
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs the libtpu wheel: the extra `pods`")
def test_the_smallest_topology_sends_the_gradients_once():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=540,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = {row["norm"]: row for row in map(json.loads, done.stdout.splitlines()) if "norm" in row}
    metrics = 3 * 4  # loss, penalty and accuracy are means over the whole batch
    group, batch = found["group"], found["batch"]
    assert {name for name, _ in group["sent"] + batch["sent"]} == {"all-reduce"}
    assert sum(size for _, size in group["sent"]) == group["parameters"] + metrics
    # Batch statistics on top: two numbers a channel and layer, forward, backward, and in the reverse of each. The
    # compiler knows from them some of the sums that would be gradients.
    *statistics, gradients = sorted(size for _, size in batch["sent"])
    assert statistics == sorted(4 * [2 * 4 * channels for channels in (8, 8, 8, 16)])
    assert batch["parameters"] - 2 * 4 * (8 + 8 + 8 + 16) <= gradients <= batch["parameters"] + metrics
    for row in (group["row"], batch["row"]):
        assert row["chips"] == 4
        assert row["gathers_and_scatters"] == 0
        assert 0 < row["weak_scaling"] < 1


def test_collectives_are_read_from_a_program():
    program = """
%body.3 (p: f32[2]) -> f32[2] {
  %in_the_loop = f32[2]{0} all-reduce(%p), to_apply=%add
}
ENTRY %main.1 (a: f32[2]) -> f32[2] {
  %loop = f32[2]{0} while(%a), condition=%cond, body=%body.3
  %all-reduce.1 = (f32[3,3,8]{2,1,0:T(8,128)}, bf16[16]{0}) all-reduce(%a, %b), replica_groups={{0,1}}, to_apply=%add
  %start = f32[4]{0} all-reduce-start(%c), to_apply=%add
  %done = f32[4]{0} all-reduce-done(%start)
  %fusion = f32[8]{0} fusion(%all-reduce.1), kind=kLoop
  %gathered = pred[2,2]{1,0} all-gather(%d), dimensions={0}
}
"""
    reduced = [8, 8, 3 * 3 * 8 * 4 + 16 * 2, 16]  # the first one twice: its loop turns twice
    assert pods.collectives(program, trips=2) == [*(("all-reduce", size) for size in reduced), ("all-gather", 4)]


def test_an_unknown_topology_is_one_line_with_the_remedy():
    with pytest.raises(ConfigError, match=r"v9:1x1.*libtpu") as caught:
        pods.topology_devices("v9:1x1")
    assert "\n" not in str(caught.value)
