"""The meeting of processes before JAX connects them."""

from __future__ import annotations

import socket
import threading

import pytest

from train import rendezvous
from train.errors import ConfigError


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def in_thread(*arguments):
    failures = []

    def run():
        try:
            rendezvous.meet(*arguments)
        except ConfigError as error:
            failures.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    return thread, failures


IPV6 = pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this host has no IPv6")


@pytest.mark.parametrize(
    ("host", "late"),
    [("127.0.0.1", 0), ("127.0.0.1", 1), ("127.0.0.1", 2), pytest.param("::1", 1, marks=IPV6)],
)
def test_all_meet_whoever_comes_last(host, late):
    port = free_port()
    order = [index for index in range(3) if index != late] + [late]
    started = [in_thread(host, port, 3, index, 30.0) for index in order]
    for thread, failures in started:
        thread.join(timeout=30)
        assert not thread.is_alive()
        assert failures == []


def test_who_is_missing_is_named_by_then_at_the_latest(monkeypatch, capsys):
    monkeypatch.setattr(rendezvous, "REMINDER", 0.2)
    port = free_port()
    other, failures = in_thread("127.0.0.1", port, 4, 2, 1.5)
    with pytest.raises(ConfigError, match=r"2 of 4 processes have joined after \d s; missing: 1, 3. Start them"):
        rendezvous.meet("127.0.0.1", port, 4, 0, 1.5)
    assert "waiting: " in capsys.readouterr().err
    other.join(timeout=30)
    assert len(failures) == 1
    assert "is process 0 running there" in failures[0]


def test_a_stranger_who_calls_counts_for_nobody():
    port = free_port()
    lead, failures = in_thread("127.0.0.1", port, 2, 0, 20.0)
    for text in (b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 64, b"deformreg process 7"):
        for _ in range(100):
            try:
                with socket.create_connection(("127.0.0.1", port), timeout=5) as stranger:
                    stranger.sendall(text)
                break
            except OSError:
                threading.Event().wait(0.05)
    assert lead.is_alive()
    rendezvous.meet("127.0.0.1", port, 2, 1, 20.0)
    lead.join(timeout=20)
    assert failures == []


def test_a_port_that_is_taken_is_named():
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"process 0 cannot listen at port {port}"):
            rendezvous.meet("127.0.0.1", port, 2, 0, 1.0)
