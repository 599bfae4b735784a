"""Images of any content: what cannot be decoded is named, and nothing takes memory or runs a program."""

import os
import struct
import zlib

import numpy as np
import pytest
from data_files import refused, whole, write_folder, write_images
from PIL import Image, ImageOps

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


@pytest.mark.parametrize(("colour", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_sixteen_bits_are_refused_in_every_kind_of_png(tmp_path, colour, channels):
    write_folder(tmp_path)
    (tmp_path / "train" / "dog" / "0.png").write_bytes(png_of(5, 4, depth=16, colour=colour, channels=channels))
    refused(["0.png", "not 8 bits"], str(tmp_path), data_dir=tmp_path)


def saved(root, *images, suffix=".png", **options):
    """Loads images that were saved as a folder's training images."""
    (root / "train" / "cat").mkdir(parents=True)
    for number, image in enumerate(images):
        image.save(root / "train" / "cat" / f"{number}{suffix}", **options)
    return whole(data.load(str(root), data_dir=root / "cache"))[0]


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_what_is_transparent_is_white(tmp_path, suffix):
    pixels = np.zeros((4, 5, 4), np.uint8)
    pixels[1:3, 1:3, 3] = 255
    pixels[3, 4] = (200, 100, 0, 128)
    (image,) = saved(tmp_path, Image.fromarray(pixels), suffix=suffix, lossless=True)
    assert image[1:3, 1:3].max() == 0
    assert image[0].min() == 255
    np.testing.assert_allclose(image[3, 4], [227, 177, 127], atol=1)


@pytest.mark.parametrize("mode", ["LA", "L", "P", "RGB"])
def test_transparency_of_every_mode_is_white(tmp_path, mode):
    shape = Image.fromarray(np.arange(20, dtype=np.uint8).reshape(4, 5))
    if mode == "LA":
        shape.putalpha(Image.fromarray(np.where(np.arange(20) == 7, 0, 255).astype(np.uint8).reshape(4, 5)))
        options = {}
    else:
        shape = shape.convert(mode)
        options = {"transparency": (7, 7, 7) if mode == "RGB" else 7}
    (image,) = saved(tmp_path, shape, **options)
    expected = np.arange(20)
    expected[7] = 255
    np.testing.assert_array_equal(image, np.broadcast_to(expected.reshape(4, 5, 1), image.shape))


def test_a_white_shape_on_a_transparent_ground_is_named(tmp_path):
    pixels = np.full((4, 5, 4), 255, np.uint8)
    pixels[0, :, 3] = 0
    with pytest.raises(DataError, match=r"0\.png: a white shape on a transparent ground"):
        saved(tmp_path, Image.fromarray(pixels))
    pixels[..., 3] = 0
    assert saved(tmp_path / "blank", Image.fromarray(pixels)).min() == 255  # nothing is lost


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
@pytest.mark.parametrize("orientation", range(10))
def test_images_are_turned_as_their_exif_orientation_says(tmp_path, orientation, suffix):
    pixels = np.repeat(np.arange(6, dtype=np.uint8).reshape(2, 3) * 40, 16).reshape(2, 3, 16).repeat(16, axis=0)
    image = Image.fromarray(pixels.reshape(32, 48))
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless = {".jpg": {"quality": 100}, ".png": {}, ".webp": {"lossless": True}}[suffix]
    found = saved(tmp_path, image, suffix=suffix, exif=exif, **lossless)[0][..., 0]
    turned = image.copy()
    turned.getexif()[0x0112] = orientation
    expected = np.asarray(ImageOps.exif_transpose(turned)).astype(int)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=2)


def test_a_damaged_exif_block_says_nothing(tmp_path):
    images = saved(tmp_path, Image.new("RGB", (5, 4), (9, 9, 9)), suffix=".jpg", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert images.shape == (1, 4, 5, 3)


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


def png_of(width, height, depth=8, colour=0, channels=1):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    scanline = zlib.compress(bytes((width * channels * depth // 8 + 1) * 64), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">2I5B", width, height, depth, colour, 0, 0, 0)) + chunk(
        b"IDAT", scanline
    ) + chunk(b"IEND", b"")  # fmt: skip


def test_a_batch_of_large_images_is_refused_before_it_is_decoded(tmp_path, small_memory):
    write_folder(tmp_path, sizes=[(4, 5)] * 2)
    for path in tmp_path.rglob("*.png"):
        path.write_bytes(png_of(5000, 6000))
    source = data.load(str(tmp_path), data_dir=tmp_path / "cache", memory_limit=1 << 20)
    with pytest.raises(DataError, match=r"128 images of 6000 x 5000 at once take .*--data\.image-size"):
        source.read(np.zeros(128, np.int64))
