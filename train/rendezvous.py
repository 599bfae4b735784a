"""The meeting of all processes before JAX connects them.

Where a process never starts, JAX is silent for five minutes and then aborts with a stack trace of C++. So the processes
meet first: process 0 listens at the coordinator's address until all others have called, says every half minute who is
missing, and then hands the address over to JAX.
"""

from __future__ import annotations

import socket
import sys
import time
from contextlib import ExitStack, suppress

from train.errors import ConfigError

REMINDER = 30.0
"""Seconds between lines about who is missing."""

_GO = b"go\n"
_WORD = b"deformreg process "


def meet(host: str, port: int, num_processes: int, process_id: int, seconds: float) -> None:
    """Returns once all processes are at the meeting.

    Args:
        host, port: where process 0 listens.
        num_processes: all of them.
        process_id: of this one.
        seconds: how long to wait.

    Raises:
        ConfigError: a process is missing after that time; the message says which.
    """
    deadline = time.monotonic() + seconds
    if process_id == 0:
        _call_together(port, num_processes, deadline, seconds)
    else:
        _call_in(host, port, process_id, deadline, seconds)


def _call_together(port: int, num_processes: int, deadline: float, seconds: float) -> None:
    missing = set(range(1, num_processes))
    reminder = time.monotonic() + REMINDER
    with ExitStack() as closing:
        callers = []
        listener = closing.enter_context(_listen(port))
        listener.settimeout(0.5)
        while missing:
            with suppress(TimeoutError):
                caller = closing.enter_context(listener.accept()[0])
                caller.settimeout(5)
                with suppress(OSError, ValueError):  # anybody can call: what says no number is not one of ours
                    missing.discard(int(caller.recv(64).removeprefix(_WORD)))
                    callers.append(caller)
            waited = seconds - (deadline - time.monotonic())
            state = (
                f"{num_processes - len(missing)} of {num_processes} processes have joined after {waited:.0f} s; "
                f"missing: {', '.join(map(str, sorted(missing)))}"
            )
            if missing and time.monotonic() > deadline:
                raise ConfigError(f"--distributed: {state}. Start them, or wait longer with --join-seconds")
            if missing and time.monotonic() > reminder:
                print(f"waiting: {state}", file=sys.stderr, flush=True)
                reminder += REMINDER
        for caller in callers:
            with suppress(OSError):
                caller.sendall(_GO)


def _listen(port: int) -> socket.socket:
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        return socket.create_server(("", port))
    except OSError as error:
        raise ConfigError(
            f"--coordinator: process 0 cannot listen at port {port} ({error}): choose a free one"
        ) from error


def _call_in(host: str, port: int, process_id: int, deadline: float, seconds: float) -> None:
    while True:
        reason = "it waited for others in vain"
        try:
            with socket.create_connection((host, port), timeout=5) as connection:
                connection.sendall(_WORD + str(process_id).encode())
                connection.settimeout(max(deadline - time.monotonic(), 1) + 5)  # process 0 gives up first, and says why
                if connection.recv(len(_GO)) == _GO:
                    return
        except OSError as error:
            reason = str(error)
        if time.monotonic() > deadline:
            raise ConfigError(
                f"--coordinator {host}:{port} has not answered for {seconds:.0f} s ({reason}): is process 0 running "
                "there, and can this host reach it?"
            )
        time.sleep(0.2)
