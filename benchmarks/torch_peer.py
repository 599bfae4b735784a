"""A PyTorch program in its own process that answers each line with milliseconds, so that steps can alternate."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from train import allocator
from train.errors import UserError


class TorchPeer:
    """Calling it runs one unit of the peer's work and returns the milliseconds that the peer measured."""

    def __init__(self, process: subprocess.Popen[str], script: str, library: str = "PyTorch") -> None:
        self.process = process
        self.script = script
        self.library = library

    def __call__(self, request: str = "") -> float:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        line = ""
        with contextlib.suppress(BrokenPipeError):  # it has ended: there is no answer
            self.process.stdin.write(request + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        if not line:
            raise UserError(f"the {self.library} process ended early; run benchmarks/{self.script} alone to see why")
        time.sleep(0.005)  # PyTorch's threads spin for a while after their work; the next candidate needs the cores.
        return float(line)


def optional_peer(
    python: str | None, script: str, words: Sequence[str]
) -> contextlib.AbstractContextManager[TorchPeer | None]:
    """`torch_peer`, or None without an interpreter."""
    return contextlib.nullcontext() if python is None else torch_peer(python, script, words)


@contextlib.contextmanager
def torch_peer(python: str, script: str, words: Sequence[str], library: str = "PyTorch") -> Iterator[TorchPeer]:
    """Starts a script of this folder, on all cores, and ends it.

    Args:
        python: an interpreter that has the library.
        script: the file's name.
        words: its options.
        library: what it needs.

    Raises:
        UserError: the interpreter cannot run the script.
    """
    path, option = (
        Path(__file__).with_name(script),
        "--tensorflow-python" if library == "TensorFlow" else "--torch-python",
    )
    command = [python, str(path), *words, "--threads", str(os.cpu_count() or 1)]
    environment = os.environ if allocator.is_chosen() else {"GLIBC_TUNABLES": allocator.TUNABLES, **os.environ}
    pipe = subprocess.PIPE
    try:
        process = subprocess.Popen(command, text=True, env=environment, stdin=pipe, stdout=pipe, stderr=pipe)
    except OSError as error:
        raise UserError(f"{python} cannot be run ({error.strerror}): {option} names an interpreter") from error
    try:
        assert process.stdout is not None
        if process.stdout.readline().strip() != "ready":
            _, errors = process.communicate()
            last = (errors.strip().splitlines() or ["no message"])[-1]
            raise UserError(f"{python} cannot run {script} ({last}): {option} names one that has {library}")
        yield TorchPeer(process, script, library)
    finally:
        process.kill()
        process.communicate()
