"""SIGKILL while a data set is prepared or its decoded copy is written: the next start finishes and cleans up."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from train import data

ROOT = Path(__file__).parents[2]
CODE = """
import os, signal, sys
import cv2, sklearn.datasets, tensorflow_datasets
from train.data import load

def load_and_die(place, number, folder):
    left, original = [number], getattr(os, place)

    def kill(*arguments, **options):
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **options)

    setattr(os, place, kill)
    load("digits", data_dir=folder)

for line in sys.stdin:
    place, number, folder = line.rstrip().split(" ", 2)
    child = os.fork()
    if not child:
        load_and_die(place, int(number), folder)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""Kills a child for every line that it reads, so that what loading imports is imported once."""


@pytest.fixture(scope="module")
def killer():
    """Loads the data set into a folder until the given call of a function of `os`; the exit code."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", CODE], text=True, env=environment, **pipes) as process:

        def kill(place, number, folder):
            print(place, number, folder, file=process.stdin, flush=True)
            return int(process.stdout.readline())

        yield kill


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    return data.load("digits", data_dir=tmp_path_factory.mktemp("expected")).read(np.arange(1500))


def leftovers(folder):
    return [path for pattern in (".preparing-*", ".writing-*") for path in folder.rglob(pattern)]


@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize(("place", "number"), [("rename", 1), ("fsync", 1), ("fsync", 2), ("fsync", 3)])
def test_what_a_killed_process_leaves_is_removed_by_the_next(tmp_path, killer, expected, place, number, prepared):
    folder = tmp_path / "data"
    if prepared:
        data.load("digits", split="test", data_dir=folder)
    for _ in range(2):
        assert killer(place, number, folder) == -signal.SIGKILL
        assert len(leftovers(folder)) == 1
    for _ in range(2):  # prepared or copied by the first, read by the second
        found = data.load("digits", data_dir=folder).read(np.arange(1500))
        for array, wanted in zip(found, expected, strict=True):
            np.testing.assert_array_equal(array, wanted)
        assert not leftovers(folder)
