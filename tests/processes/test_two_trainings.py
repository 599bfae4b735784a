"""Two trainings in one folder: the second leaves at once, and the first neither notices it nor outlives a kill."""

import pytest
from training import assert_same_to_the_bit, log, wait_for

from train import runs


def test_a_second_training_leaves_the_first_one_alone(trainer, whole, tmp_path):
    run = tmp_path / "run"
    first = trainer.start(trainer.options(run))
    assert wait_for((run / ".lock").exists, first)
    with pytest.raises(runs.RunError, match=f"{run} is in use by another training: "):
        runs.hold(runs.Run(run), resume=False)
    _, err = trainer.run(trainer.options(run, "--seed", "1"), code=2)
    assert err.startswith((f"error: {run} is in use by another training: ", f"error: {run} already holds a run"))
    assert err.count("\n") == 1
    first.kill()
    first.communicate()
    trainer.run(trainer.options(run, "--resume"))
    assert_same_to_the_bit(run, whole())
    assert log(run) == log(whole())
    trainer.run(["verify", str(run)])
