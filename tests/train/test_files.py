"""Small files: whole or not at all, tried again, and bounded."""

from __future__ import annotations

import errno
import fcntl
import os
import tempfile

import pytest

from train import files


def test_writing_is_tried_again_where_that_may_help(tmp_path, monkeypatch):
    errors, pauses = [errno.ESTALE, errno.EIO, None], []

    def write(path, data):
        if code := errors.pop(0):
            raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files, "_write_whole", write)
    monkeypatch.setattr("time.sleep", pauses.append)
    files.write_text(tmp_path / "file", "text")
    assert pauses == sorted(pauses)
    assert len(pauses) == 2
    errors[:] = [errno.ENOSPC]
    with pytest.raises(OSError, match="No space left"):
        files.write_text(tmp_path / "file", "text")


def test_what_cannot_be_written_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "new" / "file.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        files.write_json(path, {"a": float("nan")})
    assert files.read_json(path, limit=100) == {"a": 1}
    assert [entry.name for entry in path.parent.iterdir()] == ["file.json"]


@pytest.mark.parametrize("text", ["[" * 100_000, "{", "\xff", "[" + 99 * "1," + "1]"])
def test_what_is_no_json_or_too_large_is_one_kind_of_error(tmp_path, text):
    path = tmp_path / "file.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=r"nested|Expecting|decode|larger than 200000 bytes|larger than 100 bytes"):
        files.read_json(path, limit=200_000 if "," not in text else 100)


@pytest.mark.parametrize("read", [files.read_json, files.read_bytes])
def test_only_regular_files_of_bounded_size_are_read(tmp_path, read):
    """Opening a pipe would wait for a writer, and a device has no end."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    for name in ("pipe", "device"):
        with pytest.raises(ValueError, match=f"{name} is not a regular file"):
            read(tmp_path / name, limit=100)
    (tmp_path / "huge").touch()
    os.truncate(tmp_path / "huge", 3 << 30)
    with pytest.raises(ValueError, match="huge is larger than 100 bytes"):
        read(tmp_path / "huge", limit=100)
    with pytest.raises(OSError, match="Is a directory"):
        read(tmp_path, limit=100)


def test_what_a_killed_writer_left_goes_with_the_next_write(tmp_path):
    """The temporary file of one that lives is locked, and stays."""
    (tmp_path / ".file.json.dead_123").write_text("half")
    (tmp_path / ".file.json.alive_12").write_text("half")
    others = [".other.json.dead_12", "file.json.dead_12", ".file.json.somebody-elses", ".file.json.folder12"]
    for name in others[:-1]:
        (tmp_path / name).write_text("not of this file")
    (tmp_path / others[-1]).mkdir()
    with (tmp_path / ".file.json.alive_12").open() as alive:
        fcntl.flock(alive, fcntl.LOCK_EX)
        files.write_text(tmp_path / "file.json", "whole")
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted([".file.json.alive_12", "file.json", *others])
    files.write_text(tmp_path / "file.json", "again")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["file.json", *others])


def test_a_temporary_file_that_another_process_removed_is_made_again(tmp_path, monkeypatch):
    """Between its creation and its lock it looks like a leftover."""
    original, made = tempfile.mkstemp, []

    def mkstemp(**options):
        handle, path = original(**options)
        made.append(path)
        if len(made) == 1:
            os.unlink(path)
        return handle, path

    monkeypatch.setattr(tempfile, "mkstemp", mkstemp)
    files.write_text(tmp_path / "file.json", "whole")
    assert (tmp_path / "file.json").read_text() == "whole"
    assert len(made) == 2
