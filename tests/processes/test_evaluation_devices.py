"""An evaluation on several devices and in several processes: stopped and killed, it ends with the same report."""

import json
import signal

import pytest
from training import start_two, wait_for

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
    trainer.run(["launch", "--processes", "2", "--devices-per-process", "2", *command, str(tmp_path / "processes")])
    assert report(tmp_path / "processes") == alone
    assert not list((tmp_path / "processes").glob("*.partial"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_stopped_in_an_attack_it_continues_on_other_devices(trainer, command, alone, tmp_path, number):
    folder = tmp_path / "out"
    process = trainer.start([*command, str(folder)], devices=4, program=("-c", KEEPING))
    assert wait_for(lambda: list(folder.glob("evaluation-*.0.?.partial")), process)
    process.send_signal(number)
    _, err = process.communicate(timeout=900)
    if number == signal.SIGTERM:
        assert process.returncode == 143, err
        assert "SIGTERM: keeping what was found" in err
        assert "; the same command continues from there; missing: " in err
    _, err = trainer.run([*command, str(folder)])
    assert " of an earlier start" in err
    assert report(folder) == alone
    assert not list(folder.glob("*.partial"))


@pytest.mark.parametrize("victim", [0, 1])
def test_sigterm_to_one_of_two_processes_stops_both(trainer, command, alone, tmp_path, victim):
    folder = tmp_path / "out"
    processes = start_two(trainer, [*command, str(folder)], program=("-c", KEEPING))
    # A part of the second attack is there, so there is something to keep.
    assert wait_for(lambda: list(folder.glob(f"evaluation-*.{victim}.1.partial")), processes[victim])
    processes[victim].send_signal(signal.SIGTERM)
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [143, 143], outputs
    assert [err.count("SIGTERM: keeping what was found") for _, err in outputs] == [1 - victim, victim]
    assert all("stopped: SIGTERM" in err for _, err in outputs)
    assert "; the same command continues from there; missing: " in outputs[victim][1]
    _, err = trainer.run([*command, str(folder)])
    assert " of an earlier start" in err
    assert report(folder) == alone
    assert not [*folder.glob("*.partial"), *folder.glob("*.stop")]
