"""Trainings that start from weights, and networks that are exported for other programs."""

from __future__ import annotations

import json
import shutil
import struct
from dataclasses import replace
from pathlib import Path

import jax.export
import numpy as np
import pytest
from data_files import write_arrays
from running import command, refused
from settings import TINY

from train import exports, loop, manifests, options
from train.config import Data, Model
from train.errors import ConfigError
from train.restored import open_network, open_run
from train.weights.source import read

pytestmark = pytest.mark.slow
safetensors = pytest.importorskip("safetensors.numpy")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of one epoch, exported."""
    folder = tmp_path_factory.mktemp("trained")
    config = replace(
        TINY, data=Data(name=str(write_arrays(folder / "set.npz"))), model=Model(width=0.1, dropout=0.2), devices=1
    )
    loop.fit(config, folder / "run")
    assert command("export", folder / "run") == 0
    return folder, config


def leaves_of(state):
    return {path: np.asarray(leaf) for path, leaf in manifests.flat(state).items()}


def test_what_was_exported_gives_the_same_logits(trained):
    folder, _ = trained
    run, export = open_run(folder / "run"), folder / "run" / "export"
    weights = safetensors.load_file(export / exports.WEIGHTS)
    program = jax.export.deserialize(bytearray((export / exports.PROGRAM).read_bytes()))
    for count in (5, 1):
        logits = program.call(weights, run.images[:count])
        np.testing.assert_allclose(logits, run.logits_fn(run.images[:count]), atol=1e-6)


def test_the_card_says_what_it_is_and_not_where_it_was(trained):
    folder, _ = trained
    card = (folder / "run" / "export" / exports.CARD).read_text()
    assert card.startswith("# small-cnn, standard, set.npz\n")
    assert "images `[n, 8, 8, 1]` in [0, 1]. Output: logits of 2 classes: 0, 1." in card
    assert "Not evaluated" in card
    assert str(folder) not in card


@pytest.mark.parametrize("source", ["run", "run/export/model.safetensors"])
def test_a_training_starts_from_weights(trained, tmp_path, capsys, source):
    """Of a run or a file: parameters and statistics are those; nothing else of the run is taken."""
    folder, config = trained
    started = loop._initial(replace(config, init=str(folder / source)), prepared(config))
    found, expected = leaves_of(started), leaves_of(open_network(folder / "run").variables)
    assert len(expected) > 10
    for path, leaf in expected.items():
        np.testing.assert_array_equal(found[path], leaf)
    assert int(started.step) == 0
    assert f"started from {folder / source}: {len(expected)} arrays" in capsys.readouterr().out


def prepared(config):
    from train.task import prepare

    return prepare(config)


def test_a_head_for_other_classes_is_new(trained, tmp_path, capsys):
    folder, config = trained
    data = Data(name=str(write_arrays(tmp_path / "three.npz", classes=3)))
    other = replace(config, data=data, init=str(folder / "run"))
    loop.fit(other, tmp_path / "run")
    captured = capsys.readouterr()
    assert "  of another shape, so newly initialized: params/head/bias [3], stored [2]\n" in captured.err
    assert "continuing" not in captured.out
    loop.fit(replace(other, epochs=2), tmp_path / "run", resume=True)  # the checkpoint counts, not the weights
    assert "continuing after step 2" in capsys.readouterr().out


def test_narrow_types_are_read_and_unknown_ones_refused(tmp_path):
    def write(kind, data):
        header = json.dumps({"a": {"dtype": kind, "shape": [2], "data_offsets": [0, len(data)]}}).encode()
        path = tmp_path / f"{kind}.safetensors"
        path.write_bytes(struct.pack("<Q", len(header)) + header + data)
        return path

    np.testing.assert_array_equal(read(write("BF16", b"\x80\x3f\x00\x40"))["a"].astype(np.float32), [1, 2])
    np.testing.assert_array_equal(read(write("F16", b"\x00\x3c\x00\x40"))["a"], [1, 2])
    with pytest.raises(ConfigError, match="not a run folder or a safetensors file"):
        read(write("F8_E4M3", b"\x00\x00"))


def test_weights_that_cannot_be_used_are_named(trained, tmp_path, capsys):
    folder, _ = trained
    empty, text, pickle = tmp_path / "other.safetensors", tmp_path / "text.safetensors", tmp_path / "weights.pth"
    safetensors.save_file({"encoder.weight": np.zeros((2, 2), np.float32)}, empty)
    text.write_text("no weights")
    pickle.write_bytes(b"\x80\x04.")
    (tmp_path / "folder").mkdir()
    for place, said in (
        (empty, "none of its 1 arrays fits small-cnn by name and shape"),
        (text, "not a run folder or a safetensors file"),
        (tmp_path / "nowhere.safetensors", "not a run folder or a safetensors file"),
        (Path("/dev/zero"), "not a run folder or a safetensors file"),
        (pickle, "reading a pickle may run code that is in it"),
        (tmp_path / "folder", "holds no run"),
    ):
        arguments = ("fit", "digits-standard", "--data.name", folder / "set.npz", "--batch-size", "8", "--init", place)
        assert said in refused(capsys, *arguments, "--run-dir", tmp_path / "run", "--no-evaluate")
        assert not (tmp_path / "run").exists()
    assert command("export") == 2
    assert command("export", tmp_path / "folder") == 2


def test_a_damaged_checkpoint_of_the_run_is_named_and_another_taken(trained, tmp_path, capsys, monkeypatch):
    folder = shutil.copytree(trained[0] / "run", tmp_path / "copy")
    (step,) = manifests.steps(folder / "checkpoints")
    expected = read(folder)
    shutil.copytree(folder / "checkpoints" / str(step), folder / "checkpoints" / str(step + 1))
    removed = []

    def first_removed(stored, read=manifests.Stored.read):  # by a training that goes on
        if not removed:
            removed.append(stored)
            raise manifests.Removed("gone")
        return read(stored)

    monkeypatch.setattr(manifests.Stored, "read", first_removed)
    manifest = next((folder / "checkpoints" / str(step + 1) / "manifest").rglob("*"))
    manifest.write_bytes(b"{") if manifest.is_file() else shutil.rmtree(manifest)
    found = read(folder)
    assert removed
    assert f"skipped step {step + 1}" in capsys.readouterr().err
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


def test_where_weights_are_is_stored_absolute(trained, tmp_path, monkeypatch):
    folder, config = trained
    monkeypatch.chdir(folder)
    loop.fit(replace(config, init="run"), tmp_path / "run")
    stored = options.from_file(tmp_path / "run" / "config.json")
    assert stored.init == str(folder / "run")
