"""SIGKILL at exact points of an evaluation and a certification: the same command continues, nothing is left behind."""

import json
import re
import signal

import pytest

PROGRAM = """
import os, re, signal, sys
from train import certification
from train.commands import main

certification.KEEP_SECONDS = 0
place, pattern, number, folder, *command = sys.argv[1:]
left, original = [int(number)], getattr(os, place)

def kill(*arguments, **options):
    name = arguments[-1]
    if isinstance(name, int):
        name = os.readlink(f"/proc/self/fd/{name}")
    left[0] -= bool(re.search(pattern, str(name)))
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments, **options)

setattr(os, place, kill)
if main([*command, "--output", folder]):
    sys.exit("failed")
left[0] = -1
sys.exit(main([*command, "--output", f"{folder}-reference"]))
"""
NEVER = ("fsync", "nothing", 1)

EVALUATION = [  # of seven attacks; how many an earlier start has kept
    (("fsync", r"-\w{8}\.partial", 2), 0),  # while the second is written
    (("replace", r"-\w{8}\.partial$", 3), 1),
    (("replace", r"curve\.png$", 1), 3),  # half of the report is written
    (("unlink", r"-\w{8}\.partial$", 1), 7),
    (NEVER, 7),
]
CERTIFICATION = [  # of six images
    (("fsync", r"\.partial", 3), 0),
    (("unlink", r"\.partial$", 1), 2),
    (NEVER, 6),
]


def plain(folder, name):
    """A report without times."""

    def without_times(value):
        if isinstance(value, dict):
            return {name: without_times(entry) for name, entry in value.items() if "seconds" not in name}
        return value

    return without_times(json.loads((folder / name).read_text()))


@pytest.mark.parametrize(
    ("command", "kills", "report"),
    [
        (["evaluate", "--examples", "60"], EVALUATION, "evaluation.json"),
        (["certify", "--examples", "6", "--num-samples", "200"], CERTIFICATION, "certified.json"),
    ],
)
def test_a_killed_command_continues_to_the_same_report(trainer, whole, tmp_path, command, kills, report):
    folder = tmp_path / "out"
    name, *options = command
    for (place, pattern, number), kept in kills:
        arguments = [place, pattern, str(number), str(folder), name, str(whole()), *options]
        process = trainer.start(arguments, program=("-c", PROGRAM))
        _, err = process.communicate(timeout=900)
        assert process.returncode == (0 if pattern == "nothing" else -signal.SIGKILL), err
        unit = r"attacks?.*" if name == "evaluate" else "images"  # attacks, and what was written of the next
        assert len(re.findall(f"continuing after {kept} {unit} of an earlier start", err)) == bool(kept), err
    assert plain(folder, report) == plain(tmp_path / "out-reference", report)
    assert {path.name for path in folder.iterdir()} == {path.name for path in (tmp_path / "out-reference").iterdir()}
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".") or path.suffix == ".partial"]
