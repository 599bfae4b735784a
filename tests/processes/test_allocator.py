"""Memory that was freed stays with the process, so that XLA's next step does not fault it in again."""

import os
import platform
import runpy
import subprocess
import sys

import pytest

from train import allocator

PROGRAM = """
import resource, threading
from train import allocator
done = allocator.keep_freed()
def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def take_and_free(): bytearray(200_000_000)
def measured():
    global spent
    take_and_free()
    before = faults()
    take_and_free()
    spent = faults() - before
thread = threading.Thread(target=measured)  # as XLA's, which has no heap for large blocks of its own
thread.start()
thread.join()
print(done, spent)
"""


def run(**environment):
    # As on a host without an accelerator, whatever is installed here.
    clean = {"JAX_PLATFORMS": "cpu"} | {
        name: value for name, value in os.environ.items() if not name.startswith(("GLIBC_", "MALLOC_"))
    }
    command = [sys.executable, "-c", PROGRAM]
    done, faults = subprocess.check_output(command, text=True, env={**clean, **environment}).split()
    return done == "True", int(faults)


pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")


def test_freed_memory_is_used_again():
    done, faults = run()
    assert done
    assert faults < 100  # of 48,829 pages


@pytest.mark.parametrize("variable", ["GLIBC_TUNABLES", "MALLOC_ARENA_MAX"])
def test_somebody_elses_settings_stay(variable):
    done, _ = run(**{variable: "glibc.malloc.check=0" if variable == "GLIBC_TUNABLES" else "1"})
    assert not done


def test_the_same_settings_for_another_program():
    done, faults = run(GLIBC_TUNABLES=allocator.TUNABLES)
    assert not done
    assert faults < 100


@pytest.mark.parametrize(
    ("module", "arguments", "expected"),
    [("train", ["fit", "--help"], 1), ("train", ["presets"], 0), ("benchmarks", ["--help"], 1)],
)
def test_the_programs_that_repeat_steps_do_it(monkeypatch, module, arguments, expected):
    called = []
    monkeypatch.setattr(allocator, "keep_freed", lambda: called.append(True))
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    with pytest.raises(SystemExit):
        runpy.run_module(module, run_name="__main__")
    assert len(called) == expected
