"""SIGKILL while a data set is prepared or its decoded copy is written: the next start finishes and cleans up."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from train import data

ROOT = Path(__file__).parents[2]
CODE = """
import os, signal, sys
from train.data import load

place, left = sys.argv[2], [int(sys.argv[3])]
original = getattr(os, place)

def kill(*arguments, **options):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments, **options)

setattr(os, place, kill)
load("digits", data_dir=sys.argv[1])
"""


def leftovers(folder):
    return [path for pattern in (".preparing-*", ".writing-*") for path in folder.rglob(pattern)]


@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize(("place", "number"), [("rename", 1), ("fsync", 1), ("fsync", 2), ("fsync", 3)])
def test_what_a_killed_process_leaves_is_removed_by_the_next(tmp_path, place, number, prepared):
    folder, reference = tmp_path / "data", tmp_path / "reference"
    expected = data.load("digits", data_dir=reference).read(np.arange(1500))
    if prepared:
        data.load("digits", split="test", data_dir=folder)
    for _ in range(2):
        command = [sys.executable, "-c", CODE, str(folder), place, str(number)]
        done = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
        assert done.returncode == -9, done.stderr
        assert len(leftovers(folder)) == 1
    for _ in range(2):  # prepared or copied by the first, read by the second
        found = data.load("digits", data_dir=folder).read(np.arange(1500))
        for array, wanted in zip(found, expected, strict=True):
            np.testing.assert_array_equal(array, wanted)
        assert not leftovers(folder)
