"""What the start of a training says."""

from __future__ import annotations

import re
import time

from train import starting
from train.starting import Start


def test_the_first_step_says_what_was_waited_for(capsys, monkeypatch):
    monkeypatch.setattr(starting, "_PATIENCE", 0.01)
    start, after = Start(), []
    with start.waiting_for("data"):
        deadline = time.monotonic() + 10
        while "waiting for data" not in (said := capsys.readouterr().err) and time.monotonic() < deadline:
            time.sleep(0.01)
    assert said == "waiting for data\n"
    step = start.first_call(lambda state, batch: state + batch, lambda: after.append(True))
    assert [step(1, 2), step(3, 4)] == [3, 7]
    assert after == [True]
    (line,) = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"first step after \d+\.\d s: data \d+\.\d s, compilation \d+\.\d s", line)
