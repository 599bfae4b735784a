"""The launcher: it passes signals on and leaves no process behind."""

from __future__ import annotations

import errno
import os
import signal
import subprocess

import pytest

from train.commands import launch


def sleeper(started, seconds=60):
    child = subprocess.Popen(["sleep", str(seconds)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    started.append(child)
    return child


def test_no_process_outlives_a_launch_that_fails():
    started = []

    def fail():
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    with pytest.raises(OSError, match="Cannot allocate"):
        launch._supervise([lambda: sleeper(started), fail])
    assert [child.returncode for child in started] == [-signal.SIGKILL]


@pytest.mark.parametrize("number", launch.SIGNALS)
def test_signals_reach_processes_that_are_being_started(number):
    started = []

    def hang_up():
        os.kill(os.getpid(), number)
        return sleeper(started)

    before = signal.signal(number, lambda *_: pytest.fail("not the launcher's"))
    try:
        assert launch._supervise([lambda: sleeper(started), hang_up, lambda: sleeper(started)]) == 128 + number
    finally:
        signal.signal(number, before)
    assert [child.returncode for child in started] == [-number] * 3


def test_an_ignored_signal_stays_ignored():
    """Under nohup a launch goes on when its session ends."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert launch._supervise([lambda: os.kill(os.getpid(), signal.SIGHUP) or sleeper([], seconds=0)]) == 0
    finally:
        signal.signal(signal.SIGHUP, before)
