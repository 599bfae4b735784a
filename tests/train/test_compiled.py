"""Compiled programs on disk: where they are kept, and what is removed."""

from __future__ import annotations

import jax
import pytest

from train import compiled
from train.errors import ConfigError


@pytest.fixture
def kept(monkeypatch):
    """Where JAX would be told to keep programs; nothing is told to JAX."""
    told = []
    monkeypatch.setattr(compiled, "_use", told.append)
    return told


def add(folder, name, content=b"program"):
    (folder / f"{name}-cache").write_bytes(content)
    return folder / f"{name}-cache"


def test_a_folder_is_used_for_this_kind_of_machine_only(tmp_path, kept):
    folder = compiled.keep(str(tmp_path / "new"))
    assert kept == [folder]
    assert folder.parent == tmp_path / "new"
    assert compiled.keep(str(tmp_path / "new")) == folder
    assert folder.stat().st_mode & 0o077 == 0


def test_by_default_the_variables_of_jax_decide(tmp_path, kept, monkeypatch):
    monkeypatch.setenv("DEFORMREG_DATA", str(tmp_path))
    assert compiled.keep(None) is None  # the tests turn it off
    jax.config.update("jax_enable_compilation_cache", True)
    try:
        assert compiled.keep(None).parent == tmp_path / "compiled"
        monkeypatch.setenv("DEFORMREG_DATA", "/dev/null/data")
        assert compiled.keep(None) is None  # said, and the training goes on
    finally:
        jax.config.update("jax_enable_compilation_cache", False)
    assert len(kept) == 1


def test_entries_without_their_checksum_are_removed_and_the_oldest_of_too_many(tmp_path, kept, monkeypatch):
    folder = compiled.keep(str(tmp_path))
    damaged = add(folder, "damaged")
    compiled._seal(folder)
    damaged.write_bytes(b"Program")
    foreign = add(folder, "foreign")
    compiled.keep(str(tmp_path))
    assert not list(folder.iterdir())
    entries = [add(folder, str(number), b"x" * 10) for number in range(3)]
    compiled._seal(folder)
    compiled.keep(str(tmp_path))
    assert all(entry.exists() for entry in entries)
    assert not damaged.exists()
    assert not foreign.exists()
    monkeypatch.setattr(compiled, "_LARGEST", 25)
    compiled.keep(str(tmp_path))
    assert sum(entry.exists() for entry in entries) == 2
    assert len(list(folder.iterdir())) == 4


def test_entries_that_another_training_removes_meanwhile_are_no_error(tmp_path, kept, monkeypatch):
    folder = compiled.keep(str(tmp_path))
    entries = [add(folder, str(number)) for number in range(3)]
    compiled._seal(folder)
    digest = compiled._digest

    def removed_while_read(entry):
        found = digest(entry)
        if entry == entries[1]:
            compiled._remove(entry)
        return found

    monkeypatch.setattr(compiled, "_digest", removed_while_read)
    compiled.keep(str(tmp_path))
    assert [entry.exists() for entry in entries] == [True, False, True]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("gs://bucket/cache", r"must be a local folder, got gs://bucket/cache: remote ones go to \$JAX"),
        ("/dev/null/cache", "--compilation-cache /dev/null/cache cannot be used"),
        (__file__, r"cannot be used \(it is a file\): name a folder of your own, or off"),
    ],
)
def test_a_folder_that_cannot_be_used_is_named(option, message, kept):
    with pytest.raises(ConfigError, match=message):
        compiled.keep(option)
    assert not kept


def test_programs_that_others_may_have_written_are_not_run(tmp_path, kept):
    compiled.keep(str(tmp_path)).chmod(0o777)
    with pytest.raises(ConfigError, match="can be written by, another user, whose programs would run here"):
        compiled.keep(str(tmp_path))
    assert len(kept) == 1
