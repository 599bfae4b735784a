"""The command line of a config trains that config."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from settings import METHODS, TINY

from train.commands.fit import parse
from train.config import Config, Data, Model
from train.methods.given import Given
from train.methods.gradient import FlowGradient, FlowGradientDeformation
from train.methods.penalties import FiniteDifference
from train.optimizers import AdamW, Sgd
from train.options import check
from train.presets import PRESETS
from train.recipes import differing, evaluate_command, fit_command
from train.schedules import Linear

ODD = Config(
    data=Data(name="digits", data_dir="a b", image_size=8, train_split="train[:50%]"),
    model=Model(mean=(0.5,), std=(0.25,), norm="group", remat=True, dropout=0.1),
    optimizer=Sgd(nesterov=False, momentum=0.0),
    init="runs/x", epochs=3, max_skipped=2, select="best",
)  # fmt: skip


def parsed(config):
    *program, command, preset = shlex.split(fit_command(config, Path("runs/it's")))[:5]
    assert (program, command) == (["python", "-m", "train"], "fit")
    options = parse(preset, shlex.split(fit_command(config, Path("runs/it's")))[5:])
    assert options.run_dir == Path("runs/it's")
    return check(options.config)


def test_a_command_trains_the_config_it_was_made_from():
    assert parsed(ODD) == ODD
    assert fit_command(PRESETS["digits-flow"].config, Path("a")) == "python -m train fit digits-flow --run-dir a"


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"method": FlowGradientDeformation(weight=12.0)},  # the weight of the preset `mnist5k-flow`, another default
        {"method": FlowGradient(weight=12.0, rule=FiniteDifference())},
        {"optimizer": AdamW(weight_decay=5e-4)},
        {"schedule": Linear(warmup_epochs=1)},
    ],
    ids=["method", "rule", "optimizer", "schedule"],
)
@pytest.mark.parametrize("preset", ["mnist5k-flow", "mnist5k-standard", "cifar10-preact18-gelu-standard"])
def test_another_kind_begins_with_its_own_defaults(preset, changes):
    config = replace(PRESETS[preset].config, **changes)
    assert parsed(config) == config


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_command(name):
    config = replace(TINY, method=METHODS[name])
    assert parsed(config) == config


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_its_own_command(name):
    config = PRESETS[name].config
    assert parsed(config) == config
    assert len(fit_command(config, Path("run")).split()) == 7


def test_what_a_script_passed_has_no_command():
    assert fit_command(replace(TINY, method=Given("mine")), Path("run")) is None


def test_an_evaluation_has_a_command():
    row = {"suite": "quick", "radius_pixels": 0.675, "examples": 500, "independent": True, "seed": 3}
    row |= {"sample_seed": 0, "quantize": True}
    assert evaluate_command(Path("a b"), row, [0.25, 0.5]) == (
        "python -m train evaluate 'a b' --suite quick --radius 0.675 --examples 500 --independent --seed 3 "
        "--sample-seed 0 --quantize --radii 0.25 0.5"
    )
    again = evaluate_command(Path("a"), {**row, "seed": 0, "independent": False}, [], network="nets:Net")
    assert again.endswith(" --sample-seed 0 --quantize --model.name nets:Net")


def test_configs_are_told_apart_by_their_options():
    other = replace(TINY, method=METHODS["flow-gradient"], epochs=7)
    found = differing({"a": TINY, "b": other})
    assert found["epochs"] == ["1", "7"]
    assert found["method"] == ["standard", "flow-gradient"]
    assert found["method.weight"] == ["", "1.0"]
    assert "model.width" not in found
