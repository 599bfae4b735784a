"""Images of any content: what cannot be decoded is named, and nothing takes memory or runs a program."""

import os
import struct
import zlib

import numpy as np
import pytest
from data_files import refused, write_folder, write_images
from PIL import Image

from train import data
from train.data import DataError


@pytest.mark.parametrize("keep", [0, 20, 60])
def test_a_damaged_image_is_named(tmp_path, keep):
    write_folder(tmp_path, sizes=[(9, 9)] * 3)
    path = tmp_path / "train" / "dog" / "1.png"
    path.write_bytes(path.read_bytes()[:keep])
    refused([str(path), "cannot be decoded", "remove"], str(tmp_path), data_dir=tmp_path)


@pytest.mark.parametrize("edge", [8_000, 12_000, 20_000])
def test_a_decompression_bomb_is_refused(tmp_path, edge):
    write_folder(tmp_path)
    path = tmp_path / "train" / "cat" / "0.png"
    header = bytearray(path.read_bytes())
    header[16:24] = edge.to_bytes(4, "big") * 2
    header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
    path.write_bytes(header)
    refused([str(path), "over the limit"], str(tmp_path), data_dir=tmp_path)


def test_more_than_eight_bits_is_refused(tmp_path):
    write_folder(tmp_path, mode="L")
    deep = Image.fromarray(np.full((4, 5), 40_000, np.uint16))
    deep.save(tmp_path / "train" / "dog" / "0.png")
    refused(["0.png", "not 8 bits"], str(tmp_path), data_dir=tmp_path)


def test_an_image_is_what_its_bytes_say_not_its_name(tmp_path):
    # PIL hands PostScript to Ghostscript, and has dozens of decoders that nobody needs here.
    write_folder(tmp_path)
    path = tmp_path / "train" / "cat" / "0.png"
    for format_ in ("EPS", "TIFF", "PDF", "ICO", "GIF", "PPM", "TGA"):
        Image.new("RGB", (5, 4)).save(path.with_suffix(".tmp"), format=format_)
        path.with_suffix(".tmp").rename(path)
        refused([str(path), "none of PNG, JPEG, BMP, WEBP"], tmp_path, data_dir=tmp_path / "cache")


def test_a_huge_file_is_not_read(tmp_path, small_memory):
    write_folder(tmp_path)
    path = tmp_path / "train" / "cat" / "0.png"
    with path.open("r+b") as file:
        file.truncate(1 << 40)  # sparse
    refused([str(path), "is larger than 268435456 bytes"], tmp_path, data_dir=tmp_path / "cache")


def test_a_pipe_in_the_place_of_a_listed_image_is_not_read(tmp_path):
    write_images(tmp_path, count=4)
    source = data.load(str(tmp_path), data_dir=tmp_path / "cache", memory_limit=1)
    path = tmp_path / "train" / "cat" / "001.png"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DataError, match=r"001\.png.*not a regular file"):
        source.read(np.arange(4))


def png_of(width, height):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    scanline = zlib.compress(bytes((width + 1) * 64), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0)) + chunk(
        b"IDAT", scanline
    ) + chunk(b"IEND", b"")  # fmt: skip


def test_a_batch_of_large_images_is_refused_before_it_is_decoded(tmp_path, small_memory):
    write_folder(tmp_path, sizes=[(4, 5)] * 2)
    for path in tmp_path.rglob("*.png"):
        path.write_bytes(png_of(5000, 6000))
    source = data.load(str(tmp_path), data_dir=tmp_path / "cache", memory_limit=1 << 20)
    with pytest.raises(DataError, match=r"128 images of 6000 x 5000 at once take .*--data\.image-size"):
        source.read(np.zeros(128, np.int64))
