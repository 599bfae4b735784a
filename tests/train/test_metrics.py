"""The metric log: what a resumed run keeps of it, and what it does not believe."""

from __future__ import annotations

import os
import struct
import tracemalloc

import pytest

from train import metrics, runs
from train.config import Config
from train.errors import RunError


@pytest.mark.parametrize(
    "line",
    [
        '{"step": 9, "seconds": "x"}', '{"step": 9, "seconds": NaN}', '{"step": 9, "seconds": 1e999}',
        '{"step": 9, "seconds": -1}', '{"step": 9, "seconds": 1' + "0" * 400 + "}", '{"step": 9, "seconds": null}',
        '{"step": "9"}', '{"step": 9, "loss": ' + "[" * 100_000, "[9]", '{"step": 9,',
    ],
)  # fmt: skip
def test_lines_that_no_log_has_are_left_out(tmp_path, line):
    run = runs.Run(tmp_path)
    run.metrics.write_text(f'{{"step": 5, "seconds": 2.5}}\n{line}\n{{"step": 7}}\n')
    assert list(metrics.read_metrics(run)) == [{"step": 5, "seconds": 2.5}, {"step": 7}]


def test_tensorboard_gets_the_values_and_forgets_repeated_steps(tmp_path):
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    run = runs.Run(tmp_path)
    runs.create(run, Config(), 1500)
    log = metrics.MetricLog(run, after_step=10)
    log.write(15, {"loss": 0.5})
    log.close()
    (path,) = tmp_path.glob("events.out.tfevents.*")
    data, at, events = path.read_bytes(), 0, []
    while at < len(data):  # length, its checksum, the event, its checksum
        (length,) = struct.unpack_from("<Q", data, at)
        events.append(event_pb2.Event.FromString(data[at + 12 : at + 12 + length]))
        at += 16 + length
    assert [each.step for each in events if each.session_log.status == event_pb2.SessionLog.START] == [11]
    assert [(each.step, value.tag, value.simple_value) for each in events for value in each.summary.value] == [
        (15, "loss", 0.5)
    ]


def test_a_resumed_log_keeps_the_lines_up_to_its_step(tmp_path):
    run = runs.Run(tmp_path)
    runs.create(run, Config(), 1500)
    log = metrics.MetricLog(run)
    for step in (5, 10, 15):
        log.write(step, {"loss": 1 / step, "seconds": float(step)})
    log.close()
    log = metrics.MetricLog(run, after_step=10)
    assert log.seconds == 10
    log.write(15, {"loss": 0.5, "seconds": 12.0})
    log.close()
    lines = list(metrics.read_metrics(run))
    assert [(line["step"], line["seconds"]) for line in lines] == [(5, 5), (10, 10), (15, 12)]
    assert metrics.train_seconds(lines) == 12


def test_a_log_may_be_larger_than_memory(tmp_path):
    """Zeros that take no room on the disk stand for what a disk that failed has left."""
    run = runs.Run(tmp_path)
    runs.create(run, Config(), 1500)
    run.metrics.write_text('{"step": 5, "seconds": 2.5}\n')
    os.truncate(run.metrics, 100 << 20)
    tracemalloc.start()
    log = metrics.MetricLog(run, after_step=10)
    assert tracemalloc.get_traced_memory()[1] < 10 << 20
    tracemalloc.stop()
    assert log.seconds == 2.5
    log.close()
    assert run.metrics.read_text() == '{"step": 5, "seconds": 2.5}\n'


def test_what_is_no_log_is_refused(tmp_path):
    run = runs.Run(tmp_path)
    run.metrics.touch()
    os.truncate(run.metrics, 3 << 30)
    with pytest.raises(RunError, match=r"metrics\.jsonl is larger than \d+ bytes; it is no metric log: move it away"):
        list(metrics.read_metrics(run))
    run.metrics.unlink()
    os.mkfifo(run.metrics)
    with pytest.raises(RunError, match=r"metrics\.jsonl is not a regular file"):
        list(metrics.read_metrics(run))
