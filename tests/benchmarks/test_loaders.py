"""Reading photographs: what is generated, what a host's accelerators take, and that every loader runs."""

import numpy as np
import pytest
from PIL import Image

from benchmarks import loaders
from train.data import Source


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


def test_a_row_says_what_a_core_reads_and_how_many_cores_feed_a_host():
    samples = {"folder": [100.0, 128.0, 200.0], "other": [50.0, 64.0, 100.0]}  # milliseconds for 64 photographs
    row = loaders._row("other", samples, 64)
    assert (row["milliseconds"], row["images_per_second_and_core"], row["ratio_to_ours"]) == (1.0, 1000.0, 0.5)
    assert row["cores_for_v5e-8_standard"] == pytest.approx(8 * 819e9 / 0.27e9 / 1000)


COUNT = loaders.BATCH + 3


def test_every_loader_of_ours_reads_every_photograph():
    read = []

    def pixels(rows, draws=None):
        read.append(rows.tolist())
        return np.zeros((len(rows), 2, 2, 1), np.uint8), np.zeros(len(rows), np.int32)

    source = Source("photographs", COUNT, (2, 2, 1), ("a",), pixels, lambda at: np.zeros(len(at), bool), in_memory=True)
    for make in (loaders._through, loaders._cropped):
        read.clear()
        make(source)()
        assert {row for rows in read for row in rows} == set(range(COUNT))  # the last batch is filled up


@pytest.mark.slow
def test_every_other_loader_decodes_every_photograph_once(tmp_path, monkeypatch):
    paths, read = [tmp_path / f"{number:03}" for number in range(COUNT)], []
    for path in paths:
        path.write_text(path.name)

    def decode(data):
        read.append(data.decode())
        return np.zeros((2, 2, 3), np.uint8)

    monkeypatch.setattr(loaders, "_decode_pil", decode)
    for work in (loaders._bare(paths, decode), loaders._grain(paths)):
        read.clear()
        work()
        assert sorted(read) == [path.name for path in paths]


@pytest.mark.slow
def test_every_loader_has_a_row():
    rows = loaders.measure(8, 1, None, None, None)
    assert [row["loader"] for row in rows] == [
        "folder", "folder, random crops", "ArrayRecord", "bare: simplejpeg and OpenCV",
        "bare: simplejpeg, not resized", "bare: PIL", "Grain with PIL",
    ]  # fmt: skip
    assert {(row["photographs"], row["repeats"]) for row in rows} == {(8, 1)}
