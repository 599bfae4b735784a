"""Several runs evaluated together: under one protocol."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from settings import TINY

from train import parts, reports
from train.commands import evaluate
from train.config import Evaluation


@pytest.mark.parametrize(("radius", "expected"), [(None, 0.25), (0.5, 0.5)])
def test_radius_and_steps_are_those_of_the_first_run(tmp_path, monkeypatch, radius, expected):
    trained = [
        SimpleNamespace(config=replace(TINY, evaluation=each), images=np.zeros((0, 8, 8, 1)), labels=[], class_names=())
        for each in (Evaluation(radius=0.25, steps=7), Evaluation(radius=0.75, steps=3))
    ]
    protocols = []
    monkeypatch.setattr(evaluate, "load_networks", lambda *_: {})
    monkeypatch.setattr(evaluate, "open_runs", lambda *_, **__: trained)
    monkeypatch.setattr(evaluate, "partial_of", lambda *_: SimpleNamespace(check=None, remove=lambda: None))
    monkeypatch.setattr(parts, "check_alike", lambda kept: None)
    monkeypatch.setattr(parts, "stop_together", lambda *_: None)
    monkeypatch.setattr(evaluate, "evaluate_run", lambda name, one, protocol, *_, **__: protocols.append(protocol))
    for name in ("check_writable", "guard", "write_run_report", "write_comparison"):
        monkeypatch.setattr(reports, name, lambda *_: None)
    evaluate.compare(evaluate.Evaluate((tmp_path / "a", tmp_path / "b"), radius=radius))
    assert [(protocol.radius, protocol.steps) for protocol in protocols] == [(expected, 7)] * 2
