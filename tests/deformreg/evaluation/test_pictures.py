"""Pictures outside the trainer, and deformed images in a file."""

import numpy as np
import pytest

from deformreg.evaluation import pictures
from deformreg.evaluation.curves import Curve


def test_a_gallery_and_curves_are_drawn(tmp_path):
    rng = np.random.default_rng(0)
    images, flows = rng.random((2, 8, 8, 1)), rng.normal(size=(2, 8, 8, 2))
    figure = pictures.gallery(images, flows, images[::-1], captions=[("3", "3"), ("3", "8")])
    assert [axis.get_title() for axis in figure.axes[:3]][0::2] == ["clean", "deformed"]
    figure.savefig(tmp_path / "gallery.png", dpi=40)
    curve = Curve(10, (0.0, 0.5), (0.9, 0.4), ((0.6, 1.0), (0.2, 0.7)), 0.3, np.zeros(10), (), 100, 1.0)
    pictures.curves({"mine": curve}).savefig(tmp_path / "curves.png", dpi=40)


def test_directions_and_lengths_have_their_colors():
    right, nothing, longer = pictures.flow_colors(np.array([[[0.0, 2.0], [0.0, 0.0], [0.0, 9.0]]]), 2.0)[0]
    np.testing.assert_allclose([right, nothing, longer], [[1, 0, 0], [1, 1, 1], [1, 0, 0]])


def test_images_are_saved_with_their_flows(tmp_path):
    images, flows = np.ones((2, 4, 4, 1), np.float32), np.zeros((2, 4, 4, 2), np.float32)
    pictures.save_npz(tmp_path / "found.npz", images=images, flows=flows)
    with np.load(tmp_path / "found.npz") as found:
        np.testing.assert_array_equal(found["images"], images)
        np.testing.assert_array_equal(found["flows"], flows)
    with pytest.raises(ValueError, match="one entry per example"):
        pictures.save_npz(tmp_path / "found.npz", images=images, flows=flows[:1])
