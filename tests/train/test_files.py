"""Small files: whole or not at all, tried again, and bounded."""

from __future__ import annotations

import errno
import os

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
