"""Pictures: names of any letters are drawn without a warning, which the tests make an error."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from matplotlib.figure import Figure

from train import pictures
from train.exhibits import Sample

CURVE = [{"radius_pixels": radius, "accuracy": 0.5, "low": 0.4, "high": 0.6} for radius in (0.0, 0.5)]


def test_a_legend_has_every_run():
    axis = Figure().add_subplot()
    pictures._draw_curves(axis, {name: {"suite": "quick", "curve": CURVE} for name in ("_run", "$x$", "run")})
    assert [text.get_text().strip() for text in axis.get_legend().get_texts()] == ["_run", "$x$", "run"]


def test_letters_that_the_font_lacks_are_no_warning(tmp_path):
    zeros = np.zeros((2, 4, 4, 1), np.float32)
    sample = Sample(
        zeros, np.array([0, 1]), np.zeros((2, 4, 4, 2), np.float32), zeros, np.array([0, 1]), np.array([1, 1])
    )
    pictures.save_examples(tmp_path / "examples.png", SimpleNamespace(sample=sample), ["\u732b", "caf\udce9"])
    assert (tmp_path / "examples.png").read_bytes().startswith(b"\x89PNG")
