"""Several processes: they compute what one computes, stop together, and fail together."""

import os
import re
import signal
from pathlib import Path

import pytest
from training import (
    assert_same_to_the_bit,
    children_of,
    free_address,
    largest_difference,
    last_step,
    launch,
    log,
    run_two,
    start_two,
    wait_for,
)

KINDS = ("pmap", "jit")


LATE = """
import sys, time
import numpy as np
from train import processes
processes.join(sys.argv[1], 2, int(sys.argv[2]), 60.0)
if not processes.is_lead(): time.sleep(33)
print(processes.from_lead(7 + processes.is_lead()))
print(processes.from_all(int(sys.argv[2])), processes.largest_of_all(np.array([int(sys.argv[2]), 0])))
"""


@pytest.fixture(scope="module")
def late(trainer):
    """Two processes, of which one idles for 33 seconds: other tests use the time."""
    address = free_address()
    return [trainer.start([address, str(index)], program=("-c", LATE)) for index in (0, 1)]


@pytest.fixture(scope="module")
def together(trainer, late, tmp_path_factory):
    """The same 30 steps on four devices of one process, and on two of each of two processes.

    Sums in another order differ in their last bits, and one in some million activations lies so near its kink that
    this decides its side. At the preset's learning rate such a step apart grows to 1e-3 in fifteen more, on one
    processor and not on the next; at a tenth of it the parameters still move 0.007 in those fifteen steps, seventy
    times the bound.
    """
    runs = {}
    for kind in KINDS:
        for processes, devices in ((1, 4), (2, 2)):
            run = runs[kind, processes, devices] = tmp_path_factory.mktemp("together") / "run"
            arguments = trainer.options(
                run, "--parallel", kind, "--log-every", "1", "--optimizer.learning-rate", "0.01", epochs=2
            )
            if processes == 1:
                out, _ = trainer.run(arguments, devices=devices)
            else:
                (out, _), _ = run_two(trainer, arguments, devices)
            assert "training on 4 cpu devices" in out
    return runs


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_agree_with_one(together, kind):
    """Of as many devices; tests/train/test_step.py compares these with one."""
    one, two = together[kind, 1, 4], together[kind, 2, 2]
    first, start = log(one)[0], log(two)[0]
    differences = [abs(first["loss"] - start["loss"]), abs(first["penalty"] - start["penalty"])]
    print(f"{kind}: loss {differences[0]:.1e}, penalty {differences[1]:.1e} ({first['penalty']:.1e}), ", end="")
    print(f"parameters after step {last_step(two)} {largest_difference(one, two):.1e}")
    assert last_step(two) == 30
    assert max(differences) <= 1e-5
    assert differences[1] <= 1e-5 * first["penalty"]
    assert largest_difference(one, two) <= 1e-4
    assert log(one)[-1] == log(two)[-1]  # the validation accuracy


def test_pmap_and_jit_agree_over_processes(together):
    assert largest_difference(together["pmap", 2, 2], together["jit", 2, 2]) <= 1e-4


def test_processes_wait_for_one_that_is_late(late):
    """On CPUs, a first computation over all processes that one begins 30 seconds late fails."""
    outputs = [process.communicate(timeout=300) for process in late]
    assert [out.splitlines()[-2:] for out, _ in outputs] == [["8", "[0, 1] [1 0]"]] * 2, outputs


def test_a_sharded_state_is_written_in_parts_and_continues_on_other_devices(trainer, tmp_path):
    """Fifteen steps on two devices of each of two processes, fifteen on four of one; against thirty on four, whole."""
    run, whole = tmp_path / "run", tmp_path / "whole"
    same = ("--parallel", "jit", "--optimizer.learning-rate", "0.01", "--schedule", "constant", "--model.width", "1.0")
    same = (*same, "--model.activation", "softplus")  # no kinks, at which rounding decides the side
    (out, _), _ = run_two(trainer, trainer.options(run, *same, "--shard-state", epochs=1), devices=2)
    assert "by jit, each with its part of the state" in out
    written = [run / "checkpoints" / "15" / "state" / f"ocdbt.process_{index}" / "d" for index in (0, 1)]
    sizes = [sum(path.stat().st_size for path in folder.iterdir()) for folder in written]
    assert min(sizes) > 0.5 * max(sizes)
    more = trainer.options(run, *same, "--shard-state", "--resume", epochs=2)
    out, err = trainer.run(more, devices=4)
    assert "continuing after step 15" in out
    assert "processes: 2, 1" in err
    trainer.run(trainer.options(whole, *same, epochs=2), devices=4)
    assert last_step(run) == last_step(whole) == 30
    assert largest_difference(run, whole) <= 1e-4


@pytest.mark.parametrize(("victim", "kind"), [(0, "pmap"), (1, "jit")])
def test_sigterm_to_either_process_saves_one_step_and_resumes_exactly(trainer, tmp_path, victim, kind):
    run, reference = tmp_path / "run", tmp_path / "whole"
    run_two(trainer, trainer.options(reference, "--parallel", kind, epochs=4))
    processes = start_two(trainer, trainer.options(run, "--parallel", kind, epochs=4))
    assert wait_for(lambda: last_step(run) >= 10, processes[victim])
    processes[victim].send_signal(signal.SIGTERM)
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [143, 143], outputs
    saved = [int(re.search(r"saved step (\d+) of 60", err)[1]) for _, err in outputs]
    assert saved == [last_step(run)] * 2
    outputs = run_two(trainer, trainer.options(run, "--parallel", kind, "--resume", epochs=4))
    assert f"continuing after step {saved[0]}" in outputs[0][0]
    assert not any("changed since" in err for _, err in outputs)
    assert_same_to_the_bit(run, reference)


def test_the_launcher_passes_signals_on(trainer, tmp_path):
    run = tmp_path / "run"
    process = trainer.start(launch(trainer.options(run, epochs=4)))
    assert wait_for(lambda: last_step(run) >= 10, process)
    children = children_of(process)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 143, err
    assert not any(Path(f"/proc/{child}").exists() for child in children)
    saved = last_step(run)
    assert {line[:3] for line in out.splitlines() + err.splitlines()} == {"[0]", "[1]"}
    # On one process and one device now: the same position, and it says what differs.
    out, err = trainer.run(trainer.options(run, "--resume", epochs=4))
    assert f"continuing after step {saved}" in out
    assert "processes: 2, 1" in err
    assert [line["step"] for line in log(run) if "loss" in line] == sorted({saved, *range(5, 61, 5)})


def test_when_one_process_dies_the_others_end(trainer, tmp_path):
    run = tmp_path / "run"
    process = trainer.start(launch(trainer.options(run, epochs=4)))
    assert wait_for(lambda: last_step(run) >= 10, process)
    children = children_of(process)
    os.kill(int(children[1]), signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGKILL
    assert not any(Path(f"/proc/{child}").exists() for child in children)


def test_what_cannot_be_used_ends_every_process_with_one_line(trainer, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    _, err = trainer.run(launch(trainer.options(tmp_path)), code=2)
    assert "Traceback" not in err
    assert all(f"[{index}] error: {tmp_path} already holds a run" in err for index in (0, 1))


def test_processes_skip_the_same_batches_and_end_together(trainer, tmp_path):
    diverging = trainer.options(tmp_path / "run", "--optimizer.learning-rate", "1e9", "--max-skipped", "3")
    errors = [err for _, err in run_two(trainer, diverging, code=3)]
    skipped = re.findall(r"skipped batch (\d+) \((\d) of at most 3\): step (\d+): loss", errors[0])
    assert [int(count) for _, count, _ in skipped] == [1, 2, 3]
    ends = [re.search(r"error: (step \d+: loss .*)", err)[1] for err in errors]
    assert ends[0] == ends[1]
    assert ends[0].startswith(f"step {skipped[-1][2]}:")
