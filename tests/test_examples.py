"""The examples run, train and attack."""

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.parametrize("name", ["linen", "nnx", "equinox_model", "haiku_model", "plain_jax"])
def test_examples_train_a_model_and_attack_it(name, capsys):
    found = runpy.run_path(str(EXAMPLES / f"{name}.py"))
    assert "objective" in capsys.readouterr().out
    assert found["values"][-1] < 0.8 * found["values"][0]
    assert found["accuracy"] >= 0.9
    assert 0 < found["robust"] <= found["accuracy"]
    assert (found["attacked"].losses > 0).all()
