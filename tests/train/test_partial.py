"""Files that keep what unfinished commands have found: only what belongs to the command and is whole is read."""

from __future__ import annotations

import errno
import json
import re
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from train import certification, environment, evaluation, files, partial, parts, processes
from train.config import Config
from train.errors import RunError

FACTS = {"text": "\n\u2028", "number": 0.1 + 0.2, "nothing": None}
ARRAYS = {
    "bits": np.array([True, False, True]),
    "none": np.zeros((0, 3), np.float32),
    "some": np.random.default_rng(0).random((4, 2, 3)).astype(np.float32),
}


def shifted(weight, images):
    return images.sum((1, 2)) + weight


def run(weight=0.5, step=3, shade=0.25, network=shifted):
    return SimpleNamespace(
        config=Config(), step=step, logits_fn=jax.tree_util.Partial(network, np.full(3, weight)),
        images=np.full((2, 4, 4, 1), shade), labels=np.array([0, 1]), contents=str(shade),
    )  # fmt: skip


def assert_equal(kept):
    assert kept.facts == FACTS
    assert kept.arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert kept.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(kept.arrays[name], array)


def test_what_is_written_is_read_by_the_same_command_alone(tmp_path, capsys, monkeypatch):
    file = partial.of(tmp_path / "new", "evaluation", run(), {"radius": 0.5})
    assert file.read(lambda kept: kept) is None
    file.write(FACTS, ARRAYS)
    assert_equal(partial.of(tmp_path / "new", "evaluation", run(), {"radius": 0.5}).read(lambda kept: kept))
    others = [
        *(partial.of(tmp_path / "new", "evaluation", other, {"radius": 0.5})
          for other in (run(weight=0.6), run(step=4), run(shade=0.3))),
        partial.of(tmp_path / "new", "evaluation", run(), {"radius": 0.6}),
    ]  # fmt: skip
    monkeypatch.setattr(environment, "_version", lambda name: "0.0.1")
    others.append(partial.of(tmp_path / "new", "evaluation", run(), {"radius": 0.5}))
    monkeypatch.undo()
    for other in others:
        assert other.path != file.path
        file.path.rename(other.path)  # where names agree by chance
        assert other.read(lambda kept: kept) is None
        assert "it belongs to another command, network or version): starting anew" in capsys.readouterr().err
        other.path.rename(file.path)


def test_other_code_of_a_network_is_another_network(tmp_path):
    """Of the same name and weights, as of a module of one's own that was edited; a source of transfers too."""

    def scaled(weight, images):
        return jax.nn.relu(images.sum((1, 2))) * weight

    def places(network):
        trained = run(network=network)
        protocol = evaluation.Protocol("fast", 0.5, (0.5,), sources=(("source", trained.logits_fn),))
        return partial.of(tmp_path, "evaluation", trained, {}), evaluation.partial_of(tmp_path, run(), protocol)

    ours, again, others = places(scaled), places(scaled), places(shifted)
    for file, same, other in zip(ours, again, others, strict=True):
        assert file.identity == same.identity
        assert file.identity != other.identity
        assert file.path != other.path


def test_another_machine_is_said(tmp_path, capsys, monkeypatch):
    file = partial.of(tmp_path, "evaluation", run(), {})
    file.write(FACTS, ARRAYS)
    monkeypatch.setattr(environment, "_processor", lambda: "an abacus")
    assert_equal(partial.of(tmp_path, "evaluation", run(), {}).read(lambda kept: kept))
    error = capsys.readouterr().err
    assert error.startswith("continuing what was begun on another machine (stored, current); the last bits may differ:")
    assert error.endswith(", an abacus\n")


def test_no_damage_is_read(tmp_path, capsys):
    file = partial.of(tmp_path, "evaluation", run(), {})
    file.write(FACTS, ARRAYS)
    data = file.path.read_bytes()
    rng = np.random.default_rng(0)
    for at in rng.integers(0, len(data), 60).tolist():
        flipped = bytearray(data)
        flipped[at] ^= 1 << rng.integers(8)
        for damaged in (bytes(flipped), data[:at]):
            file.path.write_bytes(damaged)
            assert file.read(lambda kept: kept) is None
            assert capsys.readouterr().err.count("starting anew\n") == 1


@pytest.mark.parametrize(
    "forged",
    [
        {"environment": ["processor"]},
        {"environment": 3},
        {"arrays": []},
        {"arrays": {"some": ["<f4", [10**30]]}},
        {"arrays": {"some": ["(2,", [1]]}},
        {"arrays": {"some": ["O", [1]]}},
        {"facts": {"seconds": 10**400}},
        {"facts": []},
    ],
)
def test_what_a_stranger_forges_ends_no_command(tmp_path, capsys, forged):
    """The checksum is right: it is against damage, not against strangers."""
    file = partial.of(tmp_path, "evaluation", run(), {})
    content = {
        "identity": file.identity, "environment": {}, "facts": {"seconds": 1.0}, "arrays": {"some": ["<f4", [1]]},
        **forged,
    }  # fmt: skip
    head, body, parsed = json.dumps(content).encode(), bytes(4), []
    file.path.write_bytes(b"%d %s\n%s" % (partial._checksum([head, body]), head, body))
    assert file.read(lambda kept: parsed.append(float(kept.facts["seconds"]))) is None
    assert capsys.readouterr().err.count("starting anew\n") == 1
    assert parsed == []


def test_what_cannot_be_of_the_command_is_not_used(tmp_path, capsys):
    file = certification.partial_of(tmp_path, run(), certification.Smoothing())
    for arrays in ({}, {"votes": np.zeros(3)}, {"votes": np.zeros((3, 3), np.int64)}):
        file.write({"seconds": 1.0}, arrays)
        assert certification._Finished(file).votes == []
        assert "starting anew" in capsys.readouterr().err
    file.path.unlink()
    file.path.mkdir()
    assert file.read(lambda kept: kept) is None
    assert "cannot be used" in capsys.readouterr().err


def test_a_report_removes_its_file_and_those_of_networks_that_are_no_more(tmp_path):
    ours, other, former, certificate = (
        partial.of(tmp_path, "evaluation", run(), {"radius": 0.5}),
        partial.of(tmp_path, "evaluation", run(), {"radius": 0.6}),
        partial.of(tmp_path, "evaluation", run(step=1), {"radius": 0.6}),
        partial.of(tmp_path, "certification", run(step=1), {}),
    )
    for file in (ours, other, former, certificate):
        file.write(FACTS, ARRAYS)
    ours.remove()
    assert set(tmp_path.iterdir()) == {other.path, certificate.path}


def test_nothing_is_written_where_it_may_not(tmp_path):
    def refuse():
        raise RunError("no")

    with pytest.raises(RunError):
        partial.of(tmp_path, "evaluation", run(), {}, refuse).write(FACTS, ARRAYS)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("unreadable", ["", ".0.0"])
def test_processes_that_read_other_results_of_an_earlier_start_are_named(tmp_path, monkeypatch, unreadable):
    """As where the disk fails one of them: at another attack, or on other images, it would wait without end."""
    file, team, asked = partial.of(tmp_path, "evaluation", run(), {}), parts.Team(0, 2, start=7), []
    file.write(FACTS, ARRAYS)
    file._replace(path=file.path.with_suffix(".0.0.partial")).write(FACTS, ARRAYS)
    monkeypatch.setattr(processes, "from_all", lambda number: asked.append(number) or [number, number])
    parts.check_shared([file], team)
    others, read = iter(asked), files.read_bytes

    def failing(path, **options):
        if path.name == f"{file.path.stem}{unreadable}.partial":
            raise OSError(errno.EIO, "Input/output error", str(path))
        return read(path, **options)

    monkeypatch.setattr(files, "read_bytes", failing)
    monkeypatch.setattr(processes, "from_all", lambda number: [next(others), number])
    with pytest.raises(RunError, match="process 1 has other results of an earlier start than process 0: give the com"):
        parts.check_shared([file], team)
    assert not list(tmp_path.glob("*.start"))


@pytest.mark.parametrize(
    ("changed", "options", "what"),
    [
        ({}, {"radius": 0.6}, "options"),
        ({"shade": 0.3}, {"radius": 0.5}, "test images"),
        ({"weight": 0.6}, {"radius": 0.5}, "networks"),
        ({"step": 4}, {"radius": 0.5}, "networks"),
        ("code", {"radius": 0.5}, "code of this program"),
        ("version", {"radius": 0.5}, "versions of Python and packages"),
        ("flags", {"radius": 0.5}, "settings of JAX and XLA (JAX_*, XLA_FLAGS)"),
    ],
)
def test_processes_that_would_wait_for_each_other_without_end_are_named(tmp_path, monkeypatch, changed, options, what):
    """Each looks for files whose names tell what they belong to; the other process's digests come from a first call."""

    def kept(changes, given):
        return [partial.of(tmp_path, "evaluation", run(**each), given) for each in ({}, changes)]  # of two runs

    asked = []
    monkeypatch.setattr(processes, "from_all", lambda number: asked.append(number) or [number, number])
    parts.check_alike(kept({}, {"radius": 0.5}))
    others = iter(asked)
    monkeypatch.setattr(processes, "from_all", lambda number: [next(others), number])
    parts.check_alike(kept({}, {"radius": 0.5}))
    if changed == "code":
        monkeypatch.setattr(environment, "code", lambda: "other")
    elif changed == "version":
        monkeypatch.setattr(environment, "_version", lambda name: "0.0.1")
    elif changed == "flags":
        monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
    others = iter(asked)
    with pytest.raises(RunError, match=re.escape(f"process 1 has other {what} than process 0: start all")):
        parts.check_alike(kept(changed if isinstance(changed, dict) else {}, options))
