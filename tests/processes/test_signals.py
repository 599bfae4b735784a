"""SIGTERM to a single process: once saves and leaves, twice leaves."""

import signal

from training import assert_same_to_the_bit, last_step, log, wait_for


def test_sigterm_saves_the_step_and_resuming_is_exact(trainer, whole, tmp_path):
    run = tmp_path / "run"
    process = trainer.start(trainer.options(run))
    assert wait_for(lambda: last_step(run) >= 20, process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143
    stopped = last_step(run)
    assert f"stopped: saved step {stopped} of 120; --resume continues from there" in err
    trainer.run(trainer.options(run, "--resume"))
    assert_same_to_the_bit(run, whole())
    steps = [line["step"] for line in log(run) if "loss" in line]
    assert steps == sorted({stopped, *range(5, 121, 5)})


def test_a_second_sigterm_leaves_at_once(trainer, tmp_path):
    """While the step is being compiled, for seconds: nothing could be saved yet."""
    run = tmp_path / "run"
    arguments = trainer.options(run, "--model.name", "vgg-11", "--augmentation.resize", "32")
    process = trainer.start(arguments, JAX_ENABLE_COMPILATION_CACHE="0")
    assert process.stdout.readline().startswith("training on")
    assert process.stdout.readline().startswith("validating on")
    process.send_signal(signal.SIGTERM)
    assert process.stderr.readline() == "SIGTERM: saving a checkpoint; a second one leaves at once\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143
    assert process.communicate() == ("", "")
    assert last_step(run) == 0
