"""Options: ranges, strict reading, differences, and the choice of kinds on the command line."""

from __future__ import annotations

import dataclasses
import json
import typing
from dataclasses import replace

import pytest
from settings import METHODS, TINY

from train.commands.fit import parse
from train.config import Config, Data, Model
from train.data import Augmentation
from train.errors import ConfigError
from train.methods import METHODS as KINDS
from train.methods.adversarial import Adversarial, Deformation
from train.methods.elle import Elle
from train.methods.gradient import FlowGradient
from train.methods.penalties import FiniteDifference
from train.methods.standard import Standard
from train.optimizers import OPTIMIZERS, AdamW, Sgd
from train.options import Differences, check, check_recipe, differences, from_json, to_json
from train.presets import PRESETS
from train.schedules import SCHEDULES, Constant, Step


def test_every_config_comes_back_from_its_json():
    for config in (TINY, *(replace(TINY, method=method) for method in METHODS.values())):
        assert from_json(to_json(config)) == config
    for preset in PRESETS.values():
        assert from_json(to_json(preset.config)) == check(preset.config) == preset.config


def test_differences_say_what_may_change():
    assert differences(TINY, TINY) == Differences([], [])
    assert differences(TINY, replace(TINY, seed=3)) == Differences(["seed: 0, 3"], [])
    wider = replace(TINY, model=Model(width=2.0, norm="group", remat=True), devices=4)
    free = ["model.remat: False, True", "devices: 0, 4"]
    assert differences(TINY, wider) == Differences(["model.width: 0.25, 2.0"], free)
    assert differences(TINY, replace(TINY, schedule=Step())).fixed == ["schedule: constant, step"]
    one = replace(TINY, method=FlowGradient(rule=FiniteDifference()))
    assert differences(one, replace(one, method=FlowGradient())).fixed == ["method.rule: finite-difference, exact"]


def test_every_number_has_a_range():
    kinds = [Config, *KINDS.values(), *OPTIMIZERS.values(), *SCHEDULES.values()]
    kinds += [type(value) for value in vars(Config()).values() if dataclasses.is_dataclass(value)]
    for kind in kinds:
        for name, hint in typing.get_type_hints(kind, include_extras=True).items():
            if name.startswith("__") or dataclasses.is_dataclass(hint):
                continue
            assert hint not in (int, float), f"{kind.__name__}.{name} has no range"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tree: tree.update(epochs="many"), "--epochs: input should be a valid integer, got 'many'"),
        (lambda tree: tree.update(epohcs=3), r"no field 'epohcs': did you mean epochs\?"),
        (lambda tree: tree["model"].update(name="vgg"), "--model.name must be one of small-cnn, "),
        (lambda tree: tree.update(method=[]), "--method: input should be an object"),
        (lambda tree: tree.update(method={"name": "magic"}), "--method must be one of 'standard'"),
        (lambda tree: tree.update(method={"name": "flow-gradient", "weight": -1.0}), "--method.weight must be above 0"),
        (lambda tree: tree["method"].update(weight=1.0), "no field 'method.weight'"),
        (lambda tree: tree["model"].update(given=3), "--model.given: input should be a valid string, got 3"),
        (lambda tree: tree.update(batch_size=True), "--batch-size: input should be a valid integer"),
        (lambda tree: tree.update(seed=10**40), "--seed must be at most|the config is not JSON"),
        (
            lambda tree: tree["optimizer"].update(learning_rate=float("nan")),
            "--optimizer.learning-rate must be a finite",
        ),
    ],
)
def test_bad_config_files_are_named(change, message):
    tree = json.loads(to_json(TINY))
    change(tree)
    with pytest.raises(ConfigError, match=message):
        from_json(json.dumps(tree))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": FlowGradient(weight=0.0)}, "--method.weight must be above 0, got 0.0"),
        ({"method": FlowGradient(every=0)}, "--method.every must be at least 1, got 0"),
        ({"method": FlowGradient(share=1.5)}, "--method.share must be at most 1, got 1.5"),
        ({"method": FlowGradient(rule=FiniteDifference(-1.0))}, "--method.rule.step-size must be above 0"),
        ({"method": Deformation(radius=0.0)}, "--method.radius must be above 0"),
        ({"method": Adversarial(steps=0)}, "--method.steps must be at least 1"),
        ({"method": Standard(random_start=-1.0)}, "--method.random-start must be at least 0"),
        ({"schedule": Step(decay_epochs=(3, 0))}, "--schedule.decay-epochs must be at least 1, got 0"),
        ({"schedule": Constant(warmup_epochs=2.0)}, "--schedule.warmup-epochs must be at most --epochs 1, got 2.0"),
        ({"optimizer": Sgd(momentum=0.0, nesterov=True)}, "--optimizer.nesterov needs --optimizer.momentum"),
        (
            {"method": FlowGradient(statistics="held", rule=FiniteDifference())},
            "--method.statistics held needs --rule exact, got finite-difference",
        ),
        ({"model": Model(norm="device-batch"), "parallel": "jit"}, "device-batch needs --parallel pmap"),
        (
            {"model": Model(dtype="bfloat16"), "method": FlowGradient(rule=FiniteDifference())},
            "--rule finite-difference needs --model.dtype float32",
        ),
        (
            {"model": Model(dtype="bfloat16"), "method": Elle()},
            "--method elle needs --model.dtype float32, got bfloat16",
        ),
        ({"accumulate": 3}, "--accumulate must divide --batch-size 16, got 3"),
    ],
)
def test_options_that_make_no_sense_are_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        check(replace(TINY, **changes))


def test_the_command_line_chooses_kinds_and_gives_each_its_own_options():
    preset = PRESETS["digits-flow"].config
    assert parse("digits-flow", []).config == preset
    chosen = parse("digits-flow", ["--epochs", "3", "--method.weight", "2"]).config
    assert chosen == replace(preset, epochs=3, method=replace(preset.method, weight=2.0))
    assert parse("digits-flow", ["--method", "flow-gradient"]).config == preset  # its own weight stays
    chosen = parse("digits-flow", ["--method", "deformation", "--method.radius", "0.3", "--schedule", "step"]).config
    assert (chosen.method, chosen.schedule) == (Deformation(radius=0.3), Step())
    chosen = parse("digits-standard", ["--optimizer", "adamw", "--optimizer.beta1", "0.8"]).config
    assert chosen.optimizer == AdamW(beta1=0.8)
    chosen = parse("digits-flow", ["--rule", "finite-difference", "--method.rule.step-size", "0.1"]).config
    assert chosen.method == replace(preset.method, rule=FiniteDifference(0.1))
    with pytest.raises(ConfigError, match="--rule needs a method with a gradient penalty, got standard"):
        parse("digits-standard", ["--rule", "exact"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": Step(decay_epochs=(40, 40))}, "--schedule.decay-epochs must increase from above .* got 40 40"),
        ({"schedule": Step(decay_epochs=(60, 40))}, "--schedule.decay-epochs must increase"),
        (
            {"schedule": Step(decay_epochs=(2, 40), warmup_epochs=3.0), "epochs": 5},
            "--schedule.decay-epochs must increase from above --schedule.warmup-epochs 3, got 2 40",
        ),
        (
            {"data": Data(random_crop=0.08), "augmentation": Augmentation(min_area=0.5)},
            "--data.random-crop and --augmentation.min-area both cut .* got 0.08 and 0.5: leave one of them at 1",
        ),
    ],
)
def test_recipes_that_no_new_training_should_have_are_named(changes, message):
    config = check(replace(TINY, **changes))  # an earlier run stays readable
    with pytest.raises(ConfigError, match=message):
        check_recipe(config)
