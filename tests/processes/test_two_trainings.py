"""Two trainings in one folder: one of them leaves at once, and the other neither notices it nor outlives a kill."""

import shutil
import signal
import time

from training import assert_same_to_the_bit, last_step, log, wait_for

from train import checkpoints
from train.commands import main
from train.runs import load_config


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
    assert main(["verify", str(run)]) == 0


def test_a_training_whose_folder_another_one_took_ends(trainer, whole, tmp_path):
    """Its lock is on a deleted file, so nothing else keeps the two apart."""
    run = tmp_path / "run"
    first = trainer.start(trainer.options(run, epochs=2000))
    assert wait_for(lambda: last_step(run) >= 10, first)
    first.send_signal(signal.SIGSTOP)
    shutil.rmtree(run)
    second = trainer.start(trainer.options(run))
    assert wait_for(lambda: last_step(run) >= 10, second)
    first.send_signal(signal.SIGCONT)
    out, err = first.communicate(timeout=120)
    assert first.returncode == 4, out + err
    assert err.startswith(f"error: {run} is no longer the folder of this training"), err
    assert err.count("\n") == 1
    out, err = second.communicate(timeout=120)
    assert second.returncode == 0, out + err
    assert_same_to_the_bit(run, whole())
    assert log(run) == log(whole())
    assert main(["verify", str(run)]) == 0


def test_verify_beside_a_training_finds_no_damage(trainer, tmp_path):
    """A checkpoint every step: while one is read, it is removed."""
    run = tmp_path / "run"
    training = trainer.start([*trainer.options(run, epochs=2000), "--checkpoint-every", "1"])
    assert wait_for(lambda: last_step(run) >= 3, training)
    config, found = load_config(run), []
    while len({step for step, _ in found}) <= 10 and training.poll() is None:
        found += checkpoints.verify(run / "checkpoints", config)
    assert training.poll() is None
    training.kill()
    training.communicate()
    assert {damage for _, damage in found} == {None}
