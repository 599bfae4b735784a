"""What starts training processes: marked slow, all of it."""

from pathlib import Path

import pytest
from training import Trainer


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def trainer(tmp_path_factory):
    trainer = Trainer(tmp_path_factory.mktemp("trainer"), [])
    yield trainer
    for process in trainer.started:  # no matter how the tests ended
        if process.poll() is None:
            process.terminate()  # a launcher passes it on
            process.wait(timeout=60)


@pytest.fixture(scope="session")
def whole(trainer, tmp_path_factory):
    """Runs that nothing interrupted, by their number of epochs, each made when first asked for."""
    runs = {}

    def train(epochs=8):
        if epochs not in runs:
            runs[epochs] = tmp_path_factory.mktemp("whole") / "run"
            trainer.run(trainer.options(runs[epochs], epochs=epochs))
        return runs[epochs]

    return train
