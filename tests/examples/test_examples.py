"""The examples run, train and attack."""

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["linen", "nnx", "nnx_batch_norm", "equinox_model", "haiku_model", "plain_jax"])
def test_examples_train_a_model_and_attack_it(name, capsys):
    found = runpy.run_path(str(EXAMPLES / f"{name}.py"))
    assert "objective" in capsys.readouterr().out
    assert found["values"][-1] < 0.8 * found["values"][0]
    assert found["accuracy"] >= 0.9
    assert 0 < found["robust"] <= found["accuracy"]
    assert [outcome.name for outcome in found["evaluation"].attacks] == ["greedy"]
    if name == "nnx_batch_norm":
        assert found["net"].norm.mean[...].any()
        assert found["net"].dropout.rngs.count[...] == 60


@pytest.mark.slow
def test_any_model_is_evaluated(capsys):
    runpy.run_path(str(EXAMPLES / "evaluate_any_model.py"))
    assert "robust" in capsys.readouterr().out


@pytest.mark.slow
def test_a_segmentation_network_is_trained_attacked_and_evaluated(capsys):
    found = runpy.run_path(str(EXAMPLES / "segmentation.py"))
    assert "at least 0.9 of the pixels, labels warped" in capsys.readouterr().out
    assert found["values"][-1] < 0.2 * found["values"][0]
    assert 0 < found["moved"] < 0.2
    assert found["accuracy"] > 0.9
    assert found["robust"] < 0.5 < found["attacked"].success.mean()


@pytest.mark.slow
def test_a_method_of_ones_own_trains_a_run(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", ["own_method.py", str(tmp_path / "run")])
    monkeypatch.setenv("DEFORMREG_DATA", str(tmp_path / "data"))
    found = runpy.run_path(str(EXAMPLES / "own_method.py"))
    assert "rigid-gradient: 4.5 forward passes a step" in capsys.readouterr().out
    assert found["evaluation"].clean_accuracy > 0.9
    assert 0 < found["evaluation"].robust_accuracy < found["evaluation"].clean_accuracy
