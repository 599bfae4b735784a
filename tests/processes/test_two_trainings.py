"""Two trainings in one folder: one of them leaves at once, and the other neither notices it nor outlives a kill."""

import time

from training import assert_same_to_the_bit, last_step, log, wait_for


def test_of_two_trainings_at_once_one_goes_on_alone(trainer, whole, tmp_path):
    run = tmp_path / "run"
    both = [trainer.start(trainer.options(run)) for _ in range(2)]
    while all(process.poll() is None for process in both):
        time.sleep(0.01)
    loser, winner = sorted(both, key=lambda process: process.poll() is None)
    out, err = loser.communicate()
    assert loser.returncode == 2, out + err
    assert err.startswith(f"error: {run} ")
    assert "is in use by another training" in err or "already holds a run" in err
    assert err.count("\n") == 1
    assert wait_for(lambda: last_step(run) >= 10, winner)
    winner.kill()
    winner.communicate()
    trainer.run(trainer.options(run, "--resume"))
    assert_same_to_the_bit(run, whole())
    assert log(run) == log(whole())
    trainer.run(["verify", str(run)])
