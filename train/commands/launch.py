"""`launch`: several processes of one training or evaluation on this host, for its GPUs and for tests.

Each process gets its share of the devices; lines of output carry the process's number; signals go to all of them;
when one fails the others end, and its exit code is the launcher's.
"""

from __future__ import annotations

import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TextIO

import tyro

from train.commands.names import COMMANDS
from train.commands.placement import placed
from train.errors import ConfigError, StorageError
from train.options import validate
from train.ranges import Count

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Passed on; SIGHUP is what the end of an ssh session sends."""

DIVIDED = ("fit", "evaluate")
"""The commands that several processes share."""

GRACE = 10.0
"""Seconds that the others have to leave by themselves, once one process has failed."""


@dataclass(frozen=True)
class Launch:
    """Runs `fit PRESET ...` or `evaluate RUN ...`, which follows these options, in several processes of this host."""

    processes: Count = 2
    """How many processes."""
    devices_per_process: Count = 1
    """GPUs of each: process i gets those from i * devices_per_process on.
    Without accelerators, how many CPU devices each process simulates."""


def run(arguments: list[str]) -> int:
    """Runs the launcher and returns the exit code: 0, or that of the first process that failed."""
    split = next((at for at, argument in enumerate(arguments) if argument in COMMANDS), len(arguments))
    options = validate(tyro.cli(Launch, prog="python -m train launch", args=arguments[:split]))
    if split >= len(arguments) - 1:
        raise ConfigError("launch needs a command: python -m train launch --processes 2 fit PRESET [options]")
    if arguments[split] not in DIVIDED:
        raise ConfigError(
            f"launch starts {' or '.join(DIVIDED)}: {arguments[split]} runs in one process, without launch"
        )
    if given := placed(arguments[split:]):
        raise ConfigError(f"launch tells each process its place: leave out {' '.join(given)}")
    port = _free_port()
    return _supervise([partial(_start, arguments[split:], index, port, options) for index in range(options.processes)])


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _start(command: list[str], index: int, port: int, options: Launch) -> subprocess.Popen[str]:
    share = options.devices_per_process
    environment = {
        **os.environ,
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": str(options.processes),
        "JAX_PROCESS_ID": str(index),
        "JAX_LOCAL_DEVICE_IDS": ",".join(str(index * share + offset) for offset in range(share)),
        "JAX_NUM_CPU_DEVICES": str(share),
        "PYTHONUNBUFFERED": "1",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "train", *command, "--distributed"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,  # Ctrl-C reaches the launcher only, which passes it on
    )


def _copy(stream: TextIO, target: TextIO, prefix: str) -> None:
    """Passes lines on, each whole, so that those of several processes do not mix.

    Once the reader has left, the process gets a closed pipe too, and ends by it.
    """
    with stream, suppress(BrokenPipeError):
        for line in stream:
            target.write(prefix + line)
            target.flush()


def _cause(codes: list[int | None]) -> int:
    """The exit code to report: the first that is not 4, which may only say that another process failed."""
    failed = [code for code in codes if code]
    return next((code for code in failed if code != StorageError.exit_code), failed[0] if failed else 0)


def _supervise(starts: Sequence[Callable[[], subprocess.Popen[str]]]) -> int:
    """Starts all and waits for them; returns the exit code of the first that failed, and leaves none behind."""
    children: list[subprocess.Popen[str]] = []
    copies: list[threading.Thread] = []
    received: list[int] = []  # passed on once all have started, so that none misses one
    before: dict[int, Any] = {}
    code, deadline = 0, math.inf
    try:
        for number in map(int, SIGNALS):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
                before[number] = signal.signal(number, lambda number, _: received.append(number))
        for index, start in enumerate(starts):
            child = start()
            children.append(child)
            for stream, target in ((child.stdout, sys.stdout), (child.stderr, sys.stderr)):
                copies.append(threading.Thread(target=_copy, args=(stream, target, f"[{index}] "), daemon=True))
                copies[-1].start()
        while None in (codes := [child.poll() for child in children]) and time.monotonic() < deadline:
            while received:
                number = received.pop(0)
                for child in children:
                    child.send_signal(number)
            code = code or _cause(codes)
            if code:
                deadline = min(deadline, time.monotonic() + GRACE)
            time.sleep(0.05)
        code = code or _cause(codes)
    finally:
        for child in children:
            if child.poll() is None:
                child.kill()  # a checkpoint survives this at any moment
            child.wait()
        for copy in copies:
            copy.join(timeout=GRACE)  # a grandchild may hold the other end of the pipe
        for number, handler in before.items():
            signal.signal(number, handler)
    return 128 - code if code < 0 else code
