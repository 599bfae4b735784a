"""What tests run from outside: commands of ``python -m train``, and Python with code of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from train.commands import main

ROOT = Path(__file__).parents[1]


def command(*arguments):
    """The exit code of a command of ``python -m train`` in this process."""
    return main([str(argument) for argument in arguments])


def run(capsys, *arguments):
    """Exit code, standard output and standard error of a command, which may leave by `SystemExit`."""
    try:
        code = command(*arguments)
    except SystemExit as exit_:
        code = exit_.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def refused(capsys, *arguments):
    """The one line with which a command is refused."""
    code, out, err = run(capsys, *arguments)
    errors = [line for line in err.splitlines() if not line.startswith("skipped an unreadable example")]
    assert (code, len(errors), out) == (2, 1, ""), (code, out, err)
    assert errors[0].startswith("error: ")
    return errors[0]


def python(code, *, environment=None, timeout=120):
    """The standard output of a Python process that runs some code to its end, in this one's environment or another."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
