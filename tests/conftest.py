"""Eight CPU devices and the strictness every core test runs under."""

import gc
import os
import tempfile

import jax
import pytest

jax.config.update("jax_platforms", "cpu")  # also where there is an accelerator
os.environ["JAX_PLATFORMS"] = "cpu"
jax.config.update("jax_num_cpu_devices", 8)
# The tests compile much and compute little: optimizing would double their time. Results are the same mathematics.
jax.config.update("jax_disable_most_optimizations", True)
# The program writes nothing into the home of whoever runs its tests; processes that they start inherit the variables.
jax.config.update("jax_enable_compilation_cache", False)
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "0"
DATA = tempfile.TemporaryDirectory(prefix="deformreg-tests-")  # removed when the tests end
os.environ.setdefault("DEFORMREG_DATA", DATA.name)  # unless they name a folder; pytest-xdist's workers share it
if jax.__version_info__ < (0, 11):
    # XLA's newer emitters for CPUs take twice the time of the older ones, which later versions have no more.
    FLAGS = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}"


def pytest_collection_finish(session):
    """Takes the collected tests and the imported modules out of what the garbage collector looks at again and again."""
    gc.collect()
    gc.freeze()


def pytest_addoption(parser):
    parser.addoption("--bad-inputs", type=int, default=30, help="bad inputs of each kind that slow tests give")
    parser.addoption("--bad-commands", type=int, default=4, help="bad inputs that slow tests give to commands")
    parser.addoption(
        "--pairs", type=int, default=0, help="methods with networks that tests/train/test_grid.py traces; 0: a quarter"
    )
    parser.addoption("--kills", type=int, default=5, help="SIGKILLs in tests/processes/test_kills.py")
    parser.addoption(
        "--imagenet-images",
        type=int,
        default=200,
        help="images that tests/processes/test_imagenet.py generates; from 1000 on, it trains the preset's own network",
    )
    parser.addoption("--flips", type=int, default=20, help="flipped bits in checkpoints, and in decoded copies")


@pytest.fixture
def strict_promotion():
    """Arrays of different ranks may not mix by accident."""
    with jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture
def float64():
    """Double precision, for comparisons that single precision would blur."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def cpus():
    return jax.devices("cpu")
