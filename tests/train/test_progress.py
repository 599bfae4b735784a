"""How far long work is: a bar on a terminal, lines elsewhere."""

import io
import sys

import pytest

from train import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (119.4, "119 s"), (120, "2 min"), (3569, "59 min"), (3599, "1 h 00 min"), (90061, "25 h 01 min")],
)
def test_durations_are_words(seconds, text):
    assert progress.duration(seconds) == text


def test_without_a_terminal_a_line_every_half_minute_says_rate_and_remaining_time(clock, capsys):
    with progress.progress("run", "image") as show:
        for second in range(0, 181):
            clock[0] = 1000.0 + second
            show(100 + 2 * second, 50_000, part="pgd", note="robust 12.5 %")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 6
    assert lines[0] == "run: 160 of 50,000 images; 2 images/s; 6 h 55 min left; pgd; robust 12.5 %"


def test_a_new_part_has_its_own_rate(clock, capsys):
    with progress.progress("run", "image") as show:
        show(0, 1000, part="fast")
        clock[0] += 25
        show(1000, 1000, part="fast")
        show(0, 1000, part="slow")
        clock[0] += 100
        show(10, 1000, part="slow")
    assert capsys.readouterr().err == "run: 10 of 1,000 images; 0.1 images/s; 2 h 45 min left; slow\n"


def test_short_work_and_hidden_work_say_nothing(clock, capsys):
    with progress.progress("run", "step") as show:
        show(0, 10)
        clock[0] += 29
        show(10, 10)
    with progress.progress("run", "step", visible=False) as show:
        show(0, 10)
        clock[0] += 600
        show(5, 10)
    assert capsys.readouterr().err == ""


def test_on_a_terminal_it_is_a_bar(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress.progress("a\x1b[31mrun", "image") as show:
        show(40, 50, part="pgd", note="robust 12.5 %")
        show(50, 50, part="pgd", note="robust 10.0 %")
    last = terminal.getvalue().rstrip().rpartition("\r")[2]
    assert last.startswith("a\\x1b[31mrun: 100%")
    assert "50/50" in last
    assert last.endswith("pgd, robust 10.0 %]")
