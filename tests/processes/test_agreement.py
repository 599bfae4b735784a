"""Processes that differ: in the places of their data they may; in what they evaluate, each one is told."""

import json

from training import free_address


def start_both(trainer, arguments, options=((), ()), environments=({}, {}), **more):
    """Starts a command in two processes, each with options and variables of its own."""
    joined = [*arguments, "--distributed", "--coordinator", free_address(), "--num-processes", "2", "--process-id"]
    return [
        trainer.start([*joined, str(index), *options[index]], **environments[index], **more) for index in (0, 1)
    ]  # fmt: skip


def test_processes_with_data_of_their_own_train_and_evaluate_on_all_devices(trainer, tmp_path):
    """`--devices` counts those of both in the training; each evaluates on its own. The validation has four batches."""
    run = tmp_path / "run"
    arguments = [
        *("fit", "digits-standard", "--run-dir", str(run), "--devices", "2", "--batch-size", "500", "--epochs", "1"),
        *("--accumulate", "2", "--model.width", "0.25", "--method", "n-fgsm", "--method.radius", "0.1"),
        *("--evaluation.steps", "2", "--evaluation.examples", "20"),
    ]
    places = [("--data-dir", str(tmp_path / f"host-{index}")) for index in (0, 1)]
    processes = start_both(trainer, arguments, places)
    outputs = [process.communicate(timeout=900) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert json.loads((run / "config.json").read_text())["data"]["data_dir"] == places[0][1]
    assert json.loads((run / "evaluation.json").read_text())["examples"] == 20


def test_what_differs_between_processes_is_named_by_both(trainer, whole, tmp_path):
    arguments = ["evaluate", str(whole()), "--examples", "20", "--output", str(tmp_path)]
    for options, environments, what in (
        ((("--seed", "0"), ("--seed", "1")), ({}, {}), "options"),
        (((), ()), ({}, {"XLA_FLAGS": "--xla_cpu_enable_fast_math=true"}), "settings of JAX and XLA"),
    ):
        processes = start_both(trainer, arguments, options, environments)
        outputs = [process.communicate(timeout=300) for process in processes]
        assert [process.returncode for process in processes] == [2, 2], outputs
        assert all(f"error: process 1 has other {what}" in err for _, err in outputs)


def test_a_training_that_processes_were_asked_to_do_differently_is_named_by_both(trainer, tmp_path):
    """Else one would end and wait for the other, which waits for it in the evaluation; or each start elsewhere."""
    arguments = trainer.options(tmp_path / "run", epochs=1)
    for options, environments, what in (
        (((), ("--evaluate",)), ({}, {}), "options"),
        (((), ("--resume",)), ({}, {}), "options"),
        (((), ()), ({}, {"JAX_RANDOM_SEED_OFFSET": "1"}), "settings of JAX and XLA"),
    ):
        processes = start_both(trainer, arguments, options, environments)
        outputs = [process.communicate(timeout=300) for process in processes]
        assert [process.returncode for process in processes] == [2, 2], outputs
        assert all(f"error: process 1 has other {what}" in err for _, err in outputs)
    assert not (tmp_path / "run").exists()


IMPATIENT = """
import sys
from train import runs
from train.commands import main
runs.PATIENCE = 2
sys.exit(main(sys.argv[1:]))
"""


def test_an_output_that_processes_do_not_share_is_named_by_both(trainer, whole, tmp_path):
    """As on hosts whose disks have a folder of that name each."""
    outputs = [tmp_path / f"host-{index}" for index in (0, 1)]
    processes = start_both(
        trainer,
        ["evaluate", str(whole()), "--examples", "20"],
        [("--output", str(output)) for output in outputs],
        program=("-c", IMPATIENT),
    )
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [2, 2], errors
    for output, err in zip(outputs, errors, strict=True):
        (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
        assert f"process 1 does not see {output}/evaluation-" in line
        assert "all processes need an --output (by default the run folder) on the same file system" in line
    assert not [path for output in outputs for path in output.glob("*")]
