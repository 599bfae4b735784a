"""Reading photographs: what is generated, what a host's accelerators take, and that every loader runs."""

import numpy as np
import pytest
from PIL import Image

from benchmarks import loaders


def test_photographs_have_the_sizes_of_imagenet_and_are_always_the_same(tmp_path):
    first, again = (loaders.write_photographs(tmp_path / name, 4) for name in ("first", "again"))
    for one, other in zip(first, again, strict=True):
        assert one.read_bytes() == other.read_bytes()
        with Image.open(one) as image:
            assert all(400 <= side <= 600 for side in image.size)
    assert len({path.parent.name for path in first}) == 4


def test_a_host_takes_what_arithmetic_or_memory_allow():
    host = loaders.Host(8, 100e12, 1e12)
    flops, traffic = loaders.STEPS["standard"]
    assert loaders.images_per_second(host, "standard") == pytest.approx(8 * min(100e12 / flops, 1e12 / traffic))
    assert loaders.images_per_second(host._replace(memory_bandwidth=np.inf), "standard") == pytest.approx(
        800e12 / flops
    )


@pytest.mark.slow
def test_every_loader_reads_every_photograph():
    rows = loaders.measure(loaders.BATCH, 1, None, None, None)
    assert [row["loader"] for row in rows][:2] == ["folder", "folder, random crops"]
    for row in rows:
        assert row["milliseconds"] * row["images_per_second_and_core"] == pytest.approx(1000)
        assert row["cores_for_v5e-8_flow-gradient"] < row["cores_for_v5e-8_standard"]
