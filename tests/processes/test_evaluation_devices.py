"""An evaluation on several devices and in several processes: stopped, it ends with the same report."""

import json
import signal

import pytest
from training import run_two, start_two, wait_for

KEEPING = """
import sys
from train import finished
from train.commands import main
finished.KEEP_SECONDS = 0
sys.exit(main(sys.argv[1:]))
"""


def report(folder):
    """A report without what depends on devices: times, and the rows that idle."""

    def plain(value):
        if isinstance(value, dict):
            left_out = ("model_calls", "environment")
            return {k: plain(v) for k, v in value.items() if "seconds" not in k and k not in left_out}
        return [plain(entry) for entry in value] if isinstance(value, list) else value

    return plain(json.loads((folder / "evaluation.json").read_text()))


@pytest.fixture(scope="module")
def command(whole, tmp_path_factory):
    return ["evaluate", str(whole()), "--examples", "60", "--output"]


@pytest.fixture(scope="module")
def alone(trainer, command, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone") / "out"
    trainer.run([*command, str(folder)])
    return report(folder)


def test_four_devices_and_two_processes_find_the_same(trainer, command, alone, tmp_path):
    trainer.run([*command, str(tmp_path / "devices")], devices=4)
    assert report(tmp_path / "devices") == alone
    run_two(trainer, [*command, str(tmp_path / "processes")], devices=2)
    assert report(tmp_path / "processes") == alone
    assert not list((tmp_path / "processes").glob("*.partial"))


def test_stopped_in_an_attack_it_continues_on_other_devices(trainer, command, alone, tmp_path):
    folder = tmp_path / "out"
    process = trainer.start([*command, str(folder)], devices=4, program=("-c", KEEPING))
    assert wait_for(lambda: list(folder.glob("evaluation-*.0.?.partial")), process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=900)
    assert process.returncode == 143, err
    assert "SIGTERM: keeping what was found" in err
    assert "; the same command continues from there; missing: " in err
    _, err = trainer.run([*command, str(folder)])
    assert " of an earlier start" in err
    assert report(folder) == alone
    assert not list(folder.glob("*.partial"))


def test_sigterm_to_one_of_two_processes_stops_both(trainer, command, alone, tmp_path):
    """To the second: the first one gets it in the next test."""
    folder = tmp_path / "out"
    processes = start_two(trainer, [*command, str(folder)], program=("-c", KEEPING))
    # A part of the second attack is there, so there is something to keep.
    assert wait_for(lambda: list(folder.glob("evaluation-*.1.1.partial")), processes[1])
    processes[1].send_signal(signal.SIGTERM)
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [143, 143], outputs
    assert [err.count("SIGTERM: keeping what was found") for _, err in outputs] == [0, 1]
    assert all("stopped: SIGTERM" in err for _, err in outputs)
    assert "; the same command continues from there; missing: " in outputs[1][1]
    _, err = trainer.run([*command, str(folder)])
    assert " of an earlier start" in err
    assert report(folder) == alone
    assert not [*folder.glob("*.partial"), *folder.glob("*.stop")]


HELD = """
import sys, time
from pathlib import Path
from train import finished, parts
from train.commands import evaluate, main

place, index, folder, *command = sys.argv[1:]
finished.KEEP_SECONDS = 0
ours = command[-1]

def hold():
    Path(folder, f"at-{place}-{ours}").touch()
    while ours == index and not Path(folder, "free").exists():
        time.sleep(0.01)

def held_write(file, team, part, write=parts.write):
    if part.complete:
        hold()
    write(file, team, part)

def held_run(*arguments, run=evaluate.evaluate_run, **options):
    study = run(*arguments, **options)
    hold()
    return study

if place == "share":
    parts.write = held_write
else:
    evaluate.evaluate_run = held_run
sys.exit(main(command))
"""
"""An evaluation that process `index` leaves alone, before it writes what it found (share) or the report (report)."""


def test_sigterm_to_a_process_that_has_finished_its_share_stops_both(trainer, command, alone, tmp_path):
    folder = tmp_path / "out"
    processes = start_two(trainer, [*command, str(folder)], program=("-c", HELD, "share", "1", str(tmp_path)))

    def has_finished():
        return any(b'"complete": true' in path.read_bytes() for path in folder.glob("evaluation-*.0.0.partial"))

    assert wait_for(has_finished, processes[0])
    processes[0].send_signal(signal.SIGTERM)
    assert wait_for(lambda: list(folder.glob("*.stop")), processes[0])
    (tmp_path / "free").touch()
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [143, 143], outputs
    _, err = trainer.run([*command, str(folder)])
    assert " of an earlier start" in err
    assert report(folder) == alone
    assert not [*folder.glob("*.partial"), *folder.glob("*.stop")]


def test_sigterm_to_a_process_that_waits_for_the_report_changes_nothing(trainer, command, alone, tmp_path):
    folder = tmp_path / "out"
    processes = start_two(trainer, [*command, str(folder)], program=("-c", HELD, "report", "0", str(tmp_path)))
    assert wait_for(lambda: (tmp_path / "at-report-0").exists() and (tmp_path / "at-report-1").exists(), processes[1])
    processes[1].send_signal(signal.SIGTERM)
    (tmp_path / "free").touch()
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert report(folder) == alone
    assert not list(folder.glob("*.partial"))
