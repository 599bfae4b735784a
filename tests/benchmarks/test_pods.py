"""Steps compiled for a TPU topology send what they must and no more; skipped where the libtpu wheel is missing."""

from __future__ import annotations

import importlib.util
import json

import jax
import pytest
from running import python

from benchmarks import pods
from benchmarks.collectives import COLLECTIVES, collectives
from train.errors import ConfigError

PROGRAM = """
import json, jax
jax.config.update("jax_platforms", "cpu")
from benchmarks import cost, pods
from benchmarks.collectives import collectives
from benchmarks.options import Case

for name, norm, method, split in ROWS:
    case, width = Case("small-cnn", 8, 32, "float32"), 1.0 if split else 0.125
    target = pods.Target("v5e:2x2", norm, case, effort=-1.0, width=width, shard_state=split)
    compiled = pods.compile_step(cost.METHODS[method], target)
    print(json.dumps({
        "name": name,
        "parameters": compiled.parameters,
        "sent": collectives(compiled.executable.as_text()),
        "row": pods.describe(compiled, target.chip),
    }))
"""


NEEDS_LIBTPU = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs the libtpu wheel: the extra `pods`"
)
METRICS = 3 * 4
"""Bytes of loss, penalty and accuracy, which are means over the whole batch."""


def compiled(*rows):
    """What the program prints of each of the rows, by their names."""
    lines = python(PROGRAM.replace("ROWS", repr(rows)), timeout=540).splitlines()
    return {row["name"]: row for row in map(json.loads, lines)}


@pytest.mark.slow
@NEEDS_LIBTPU
def test_the_smallest_topology_sends_the_gradients_once():
    found = compiled(("group", "group", "flow-gradient", False), ("batch", "batch", "flow-gradient", False))
    group, batch = found["group"], found["batch"]
    assert {name for name, _ in group["sent"] + batch["sent"]} == {"all-reduce"}
    assert sum(size for _, size in group["sent"]) == group["parameters"] + METRICS
    # Batch statistics on top: two numbers a channel and layer, forward, backward, and in the reverse of each. The
    # compiler knows from them some of the sums that would be gradients.
    *statistics, gradients = sorted(size for _, size in batch["sent"])
    assert statistics == sorted(4 * [2 * 4 * channels for channels in (8, 8, 8, 16)])
    assert batch["parameters"] - 2 * 4 * (8 + 8 + 8 + 16) <= gradients <= batch["parameters"] + METRICS
    for row in (group["row"], batch["row"]):
        assert row["chips"] == 4
        assert row["gathers_and_scatters"] == 0
        assert 0 < row["weak_scaling"] < 1


@pytest.mark.slow
@NEEDS_LIBTPU
def test_a_sharded_state_gathers_the_parameters_and_scatters_the_gradients():
    split = compiled(("split", "group", "standard", True))["split"]
    sent = {kind: sum(size for name, size in split["sent"] if name == kind) for kind in COLLECTIVES}
    divided = 4 * 9 * (32 * 64 + 64 * 64 + 64 * 128)
    assert sent["all-gather"] == sent["reduce-scatter"] == divided
    whole = split["parameters"] - divided
    assert 0 <= sent["all-reduce"] - (whole + METRICS) <= 64  # and the sums of two norms
    assert 2 * (whole + divided / 4) < split["row"]["argument_bytes"] < 2 * split["parameters"]


def test_collectives_are_read_from_a_program():
    program = """
%body.3 (p: f32[2]) -> f32[2] {
  %in_the_loop = f32[2]{0} all-reduce(%p), to_apply=%add
}
%all-reduce-scatter.1 (p: f32[8]) -> f32[2] {
  %whole = f32[8]{0} all-reduce(%p), to_apply=%add
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
    in_loop, others = [("all-reduce", size) for size in reduced[:2]], [("all-reduce", size) for size in reduced[2:]]
    assert collectives(program, trips=2) == [*in_loop, ("reduce-scatter", 32), *others, ("all-gather", 4)]


def test_an_unknown_topology_is_one_line_with_the_remedy():
    with pytest.raises(ConfigError, match=r"v9:1x1.*libtpu") as caught:
        pods.topology_devices("v9:1x1")
    assert "\n" not in str(caught.value)


def test_a_refused_step_is_one_line_and_keeps_the_other_rows(monkeypatch, capsys):
    def measure(target, name, method, fit, standard):
        if name == "flow-gradient":
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: it needs 17 GB\nand a trace")
        return {**pods.case_of(target, name), "after_standard": standard is not None}

    monkeypatch.setattr(pods, "_measure", measure)
    methods = ("standard", "flow-gradient", "flow-gradient, finite difference")
    rows = pods.run(pods.Options(topology=("v5e:2x2",), model=("vgg-16",), methods=methods))
    assert [(row["method"], row["after_standard"]) for row in rows] == [(methods[0], False), (methods[2], True)]
    said = "not compiled: vgg-16 for v5e:2x2, flow-gradient: RESOURCE_EXHAUSTED: it needs 17 GB\n"
    assert capsys.readouterr().err == said
    with pytest.raises(ConfigError, match="no step was compiled"):
        pods.run(pods.Options(topology=("v5e:2x2",), model=("vgg-16",), methods=("flow-gradient",)))
