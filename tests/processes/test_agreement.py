"""Processes that differ: in the places of their data they may; in what they evaluate, each one is told."""

import json

from training import free_address


def start_both(trainer, arguments, options=((), ()), environments=({}, {})):
    """Starts a command in two processes, each with options and variables of its own."""
    joined = [*arguments, "--distributed", "--coordinator", free_address(), "--num-processes", "2", "--process-id"]
    return [
        trainer.start([*joined, str(index), *options[index]], **environments[index]) for index in (0, 1)
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
