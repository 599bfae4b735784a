"""Prepared sets, a source whose labels tell the index, and traps for untrusted files."""

import os
import pickle
import shutil
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from train import data

BOMB = 64 << 20
"""Bytes in a member that a file of a hundredth of that size holds."""


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """A data folder with the embedded sets in it."""
    folder = tmp_path_factory.mktemp("prepared")
    for name in ("mnist5k", "digits"):
        data.load(name, data_dir=folder)
    return folder


@pytest.fixture(params=[True, False], ids=["in memory", "ahead"])
def numbered(tmp_path, request):
    """Ten 2x3 colour images whose pixels and labels tell their index; read when asked, or ahead in a thread."""
    indices = np.arange(10)
    images = np.broadcast_to(indices[:, None, None, None], (10, 2, 3, 3)).astype(np.uint8)
    np.savez(tmp_path / "numbered.npz", images=images, labels=indices)
    return replace(data.load(str(tmp_path / "numbered.npz")), in_memory=request.param)


@pytest.fixture
def small_memory():
    """Fails a test in which Python and NumPy together take as much as a bomb holds."""
    tracemalloc.start()
    yield
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < BOMB // 2


class Payload:
    def __reduce__(self):
        return os.mkdir, (os.environ["PAYLOAD"],)


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """A folder that appears if anything unpickles."""
    monkeypatch.setenv("PAYLOAD", str(tmp_path / "ran"))
    yield pickle.dumps(Payload())
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def copied(prepared, tmp_path):
    """The folder of a prepared set, which the test may change; its `parents[1]` is the data folder."""
    shutil.copytree(prepared / "digits", tmp_path / "sets" / "digits")
    return tmp_path / "sets" / "digits" / "1.0.0"
