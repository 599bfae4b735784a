"""The code of docs/library.md runs, in order, and does what the page says."""

import re
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.slow

TEXT = (Path(__file__).parents[2] / "docs" / "library.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def names():
    found = {}
    for block in re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL):
        exec(block, found)
    return found


def test_signals_and_volumes_have_penalties_and_an_evaluation(names):
    assert names["penalties"].shape == names["volume_penalties"].shape == (4,)
    assert (np.asarray(names["penalties"]) > 0).all()
    assert names["evaluation"].clean_accuracy == 1


def test_a_regularized_loss_has_its_parts(names):
    metrics = names["metrics"]
    expected = metrics.losses + metrics.penalties["flow"] + 0.1 * metrics.penalties["values"]
    np.testing.assert_allclose(names["regularized_losses"], expected, rtol=1e-5)
    np.testing.assert_allclose(names["both"]["flow"], names["penalties"], rtol=1e-5)


def test_a_diffeomorphic_attack_counts_its_folds(names):
    assert names["result"].norms.folds.tolist() == [0, 0, 0, 0]
    assert (np.asarray(names["result"].norms.max_displacement) > 0.5).all()
