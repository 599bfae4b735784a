"""A PyTorch program in a process of its own that answers lines with milliseconds, so that steps can alternate."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from train import allocator


class PeerError(ValueError):
    """The peer cannot be run; the message is one line with the remedy."""


class TorchPeer:
    """Calling it runs one unit of the peer's work and returns the milliseconds that it measured."""

    def __init__(self, process: subprocess.Popen[str], script: str) -> None:
        self.process = process
        self.script = script

    def __call__(self, request: str = "") -> float:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(request + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise PeerError(f"the PyTorch process ended before its time; run benchmarks/{self.script} alone to see why")
        time.sleep(0.005)  # Its threads spin for a while after their work: the next candidate shall have the cores.
        return float(line)


@contextlib.contextmanager
def torch_peer(python: str, script: str, words: Sequence[str]) -> Iterator[TorchPeer]:
    """Starts a script of this folder in an interpreter that has PyTorch, on all cores, and ends it.

    Raises:
        PeerError: that interpreter has no PyTorch.
    """
    path = Path(__file__).with_name(script)
    command = [python, str(path), *words, "--threads", str(os.cpu_count() or 1)]
    environment = os.environ if allocator.is_chosen() else {"GLIBC_TUNABLES": allocator.TUNABLES, **os.environ}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    try:
        process = subprocess.Popen(command, text=True, env=environment, **pipes)
    except OSError as error:
        raise PeerError(f"{python} cannot be run ({error.strerror}): --torch-python names an interpreter") from error
    try:
        assert process.stdout is not None
        if process.stdout.readline().strip() != "ready":
            _, errors = process.communicate()
            last = (errors.strip().splitlines() or ["no message"])[-1]
            raise PeerError(f"{python} cannot run {script} ({last}): --torch-python names one that has PyTorch")
        yield TorchPeer(process, script)
    finally:
        process.kill()
        process.communicate()
