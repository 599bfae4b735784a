"""SIGKILL, again and again, at random moments and while a checkpoint is being written: nothing is lost."""

import random
import time

from training import assert_same_to_the_bit, last_step, log, wait_for

from train.commands import main


def being_saved(folder):
    """The step of the checkpoint that is being written; 0 for none."""
    return max((int(path.name.split(".")[0]) for path in folder.glob("*.orbax-checkpoint-tmp")), default=0)


def test_a_run_killed_again_and_again_ends_to_the_bit_like_one_left_alone(pytestconfig, trainer, whole, tmp_path):
    kills = pytestconfig.getoption("kills")
    rng, epochs = random.Random(kills), 10 + 2 * kills
    run, arguments = tmp_path / "run", trainer.options(tmp_path / "run", "--resume", epochs=epochs)
    folder = run / "checkpoints"
    while_saving, steps = 0, []
    for kill in range(kills):
        process, before = trainer.start(arguments), last_step(run)
        if kill % 2:  # a moment after the first steps, or before
            if kill % 4 == 1:
                wait_for(lambda before=before: last_step(run) > before, process)
            time.sleep(rng.uniform(0, 1))
        else:  # while one of the next checkpoints is being written
            later = before + rng.randint(1, 20)
            assert wait_for(lambda later=later: being_saved(folder) > later, process)
            time.sleep(rng.uniform(0, 0.02))
        assert process.poll() is None, process.communicate()
        process.kill()
        process.communicate()
        while_saving += being_saved(folder) > 0
        steps.append(last_step(run))
        assert steps[-1] >= before
    assert while_saving >= kills // 4
    trainer.run(arguments)
    print(f"{kills} kills, {while_saving} while saving, after the checkpoints of steps {steps}")
    reference = whole(epochs)
    assert_same_to_the_bit(run, reference)
    assert log(run) == log(reference)
    assert main(["verify", str(run)]) == 0
