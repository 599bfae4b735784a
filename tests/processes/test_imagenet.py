"""A preset for ImageNet on a stand-in: from the data to the report, as a prepared set and as a folder."""

import json
import os
import signal

import pytest
import standin
from training import assert_same_to_the_bit, children_of, last_step, launch, log, wait_for


@pytest.fixture(scope="module")
def count(pytestconfig):
    return pytestconfig.getoption("imagenet_images")


@pytest.fixture(scope="module")
def steps(count):
    """Of the preset's own network, the running statistics of normalization take more steps to be of use."""
    return 4 if count < 1000 else 16


def options(run, data_dir, count, steps, *more):
    """Steps of eight images and a sixteenth of the width, on the recipe of the preset.

    Of few generated images, a smaller network learns from views of 96 pixels: most of the time goes into tracing.
    """
    small = (
        *("--model.name", "small-cnn", "--model.norm", "batch", "--model.dtype", "float32"),
        *("--data.image-size", "96"),
    )
    return [
        *("fit", "imagenet-resnet50-flow", "--run-dir", str(run), "--data-dir", str(data_dir)),
        *(*(small if count < 1000 else ()), "--model.width", "0.0625", "--batch-size", "8", "--epochs", "1"),
        *("--data.train-split", f"train[:{8 * steps}]", "--method.weight-ramp-steps", "2"),
        *("--optimizer.learning-rate", "0.1", "--schedule.warmup-epochs", "0", "--log-every", "1"),
        *("--checkpoint-every", "1"),
        *("--evaluation.examples", "8", "--evaluation.steps", "2", "--evaluation.batch-size", "1"),
        *more,
    ]


def assert_reported(run, images):
    """An evaluation on these images, some of which were there to attack, with pictures."""
    report = json.loads((run / "evaluation.json").read_text())
    assert report["images"] == images
    assert 0 <= report["robust_accuracy"] <= report["clean_accuracy"]
    assert 0 < report["clean_accuracy"] < 1
    assert report["radius_pixels"] == 0.05
    assert all((run / name).stat().st_size for name in ("evaluation.md", "curve.png", "examples.png"))


def test_a_prepared_set_in_two_processes_by_pmap_killed_and_resumed_to_the_bit(trainer, count, steps, tmp_path):
    run, whole, sets = (tmp_path / name for name in ("run", "whole", "sets"))
    standin.write_records(sets, count)

    def command(folder, option):
        return launch(options(folder, sets, count, steps, option), processes=2, devices=2)

    trainer.run(command(whole, "--no-evaluate"))
    process = trainer.start(command(run, "--no-evaluate"))
    assert wait_for(lambda: last_step(run) >= steps // 2, process)
    for child in children_of(process):
        os.kill(int(child), signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGKILL
    stopped = last_step(run)
    assert stopped < steps
    out, err = trainer.run(command(run, "--resume"))
    assert f"continuing after step {stopped}" in out
    assert "split test: its examples have no labels (-1)" in err
    assert_same_to_the_bit(run, whole)
    assert log(run) == log(whole)
    assert_reported(run, "imagenet2012, split validation")


def test_a_folder_on_four_devices_by_jit(trainer, count, steps, tmp_path):
    run, folder = tmp_path / "run", tmp_path / "imagenet"
    standin.write_folder(folder, count)
    named = ("--data.name", f"folder:{folder}", "--parallel", "jit")
    command = options(run, tmp_path / "data", count, steps, *named)
    out, _ = trainer.run(command, devices=4)
    assert "training on 4 cpu devices by jit" in out
    assert f"split validation: {count // 8} images" in out
    assert last_step(run) == steps
    assert_reported(run, f"{folder}, split validation")
