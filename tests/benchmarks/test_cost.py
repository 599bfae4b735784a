"""The cost that a method states is the arithmetic of its step."""

from __future__ import annotations

import pytest

from benchmarks import cost
from benchmarks.options import Case
from train.errors import ConfigError

CASE = Case("small-cnn", batch_size=4, image_size=16, dtype="float32")


def test_passes_are_the_arithmetic():
    passes = {name: config.make().passes for name, config in cost.METHODS.items()}
    assert passes["standard"] == passes["random flows"] == 3
    assert passes["flow-gradient"] == passes["displacement"] == 6
    assert passes["flow-gradient, every 4th step"] == passes["flow-gradient, a quarter of the batch"] == 3.75
    assert passes["deformation, 7 steps"] == passes["adversarial, 7 steps"] == 3 + 7 * 2
    assert passes["flow-gradient + deformation, 7 steps"] == 6 + 7 * 2
    assert passes["worst of 10 rotations"] == 3 + 10
    assert passes["trades, 7 steps"] == passes["mart, 7 steps"] == 2 * 3 + 7 * 2
    assert passes["n-fgsm"] == 3 + 2
    assert passes["elle"] == 3 + 3 * 3 + 2
    assert passes["cure"] == 6 + 6
    assert passes["llr, 10 steps"] == 6 + 3 + 10 * 2


@pytest.fixture(scope="module")
def standard_flops():
    return cost.TrainingStep(cost.METHODS["standard"], CASE).flops()


REPEATED = ("adversarial, 1 step", "adversarial, 10 steps", "deformation, 1 step")  # other numbers of the same steps


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in cost.METHODS if name not in REPEATED])
def test_passes_agree_with_the_compilers_count(name, standard_flops):
    step = cost.TrainingStep(cost.METHODS[name], CASE)
    assert step.flops() / standard_flops == pytest.approx(step.method.passes / 3, rel=0.1)


def test_images_too_small_for_a_network_are_one_line():
    with pytest.raises(ConfigError, match=r"vgg-11 cannot take --image-size 8: .*32") as caught:
        cost.TrainingStep(cost.METHODS["standard"], CASE._replace(model="vgg-11", image_size=8))
    assert "\n" not in str(caught.value)
