"""Output that nobody reads to its end (`| head`), or that a full disk refuses: nothing is left for Python's exit."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress

import pytest

import benchmarks.cli
import train.commands
from train.commands import FAILED, launch
from train.streams import CLOSED

COMMANDS = {
    "usage": (train.commands.main, ["--help"]),
    "a command": (train.commands.main, ["presets"]),
    "options": (train.commands.main, ["verify", "--help"]),
    "usage of the benchmarks": (benchmarks.cli.main, ["--help"]),
    "a benchmark's options": (benchmarks.cli.main, ["report", "--help"]),
}


@pytest.fixture(params=["buffered", "written at once"])
def unread(request):
    """A stream into a pipe whose reader has left."""
    reader, writer = os.pipe()
    os.close(reader)
    stream = io.TextIOWrapper(open(writer, "wb"), "utf-8", line_buffering=request.param != "buffered")  # noqa: SIM115
    yield stream
    with suppress(BrokenPipeError):
        stream.close()


@pytest.mark.parametrize("row", COMMANDS)
@pytest.mark.parametrize("streams", [("stdout",), ("stdout", "stderr")])
def test_a_command_ends_quietly_when_its_reader_has_left(row, streams, unread, monkeypatch, capsys):
    main, arguments = COMMANDS[row]
    for stream in streams:
        monkeypatch.setattr(sys, stream, unread)
    assert main(arguments) == CLOSED
    unread.flush()  # as Python does at exit
    assert capsys.readouterr().err == ""


def test_output_on_a_full_disk_is_an_error(monkeypatch, capsys):
    with open("/dev/full", "w", encoding="utf-8") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert train.commands.main(["presets"]) == FAILED
    assert capsys.readouterr().err == "error: [Errno 28] No space left on device\n"


def test_the_copies_of_a_launch_end_with_their_reader(unread):
    lines = io.StringIO("first\nsecond\n")
    launch._copy(lines, unread, "[0] ")
    assert lines.closed  # which ends the process that writes them
