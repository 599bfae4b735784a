"""Crops and sizes at decode time: where they lie, that they are antialiased, and what they leave as it was."""

import io
import itertools

import numpy as np
import pytest
from data_files import refused, whole, write_folder, write_npz
from PIL import Image
from sklearn.datasets import load_sample_images

from train import data
from train.data import DataError
from train.data import jpeg as jpeg_file
from train.data.decoding import decode_image
from train.data.order import batch_draws
from train.data.resizing import resize
from train.data.view import NUM_DRAWS, View

VIEWS = [View(24), View(24, center=0.5), View(24, min_area=0.08)]
DRAWS = (0.4, 0.7, 0.3, 0.6)


def jpeg(pixels, **options):
    stream = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(stream, "JPEG", **options)
    return stream.getvalue()


def ramp(height, width):
    """A grey value that rises by two thirds per row and by a third per column: linear filters keep it."""
    return (2 * np.arange(height)[:, None] + np.arange(width)) / 3


@pytest.mark.parametrize(("width", "height"), [(500, 375), (375, 500), (1, 7), (64, 64)])
def test_boxes_lie_in_the_image_and_have_the_drawn_area(width, height):
    assert View(9).box(width, height, None) == (0, 0, width, height)
    side = 0.875 * min(width, height)
    left, top, right, bottom = View(9, center=0.875).box(width, height, None)
    assert (right - left, bottom - top) == pytest.approx((side, side))
    assert (left + right, top + bottom) == pytest.approx((width, height))
    view = View(9, min_area=0.08)
    for draws in itertools.product((0.0, 0.3, 1 - 2**-53), repeat=NUM_DRAWS):
        left, top, right, bottom = view.box(width, height, draws)
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        wide, high = right - left, bottom - top
        if wide < width and high < height:
            assert wide * high == pytest.approx((0.08 + 0.92 * draws[0]) * width * height)
            assert wide / high == pytest.approx((4 / 3) ** (2 * draws[1] - 1))


@pytest.mark.parametrize("orientation", [1, 3, 6, 7])
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_box_is_shown_where_it_lies(kind, view, orientation):
    exif, stream = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    height, width = (90, 140) if orientation < 5 else (140, 90)
    upright = ramp(height, width)
    # What each orientation's turn makes of the stored image, undone.
    stored = {1: upright, 3: upright[::-1, ::-1], 6: np.rot90(upright), 7: upright[::-1, ::-1].T}[orientation]
    options = {"quality": 100} if kind == "JPEG" else {}
    Image.fromarray(np.round(stored).astype(np.uint8)).save(stream, kind, exif=exif, **options)
    draws = DRAWS if view.random else None
    found = decode_image(stream.getvalue(), "it", shape=(24, 24, 3), view=view, draws=draws, upright=True)
    left, top, right, bottom = view.box(width, height, draws)
    middles = (np.arange(24) + 0.5) / 24
    rows, columns = top + middles * (bottom - top) - 0.5, left + middles * (right - left) - 0.5
    expected = (2 * rows[:, None] + columns) / 3
    inner = (slice(2, -2), slice(2, -2))  # a filter is cut off at the border
    np.testing.assert_allclose(found[..., 0][inner], expected[inner], atol=2)


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("size", [100, 150, 400])
def test_stripes_of_one_pixel_become_grey(size, view):
    stripes = np.broadcast_to(np.arange(size) % 2 * 200, (size, size)).astype(np.uint8)
    draws = (0.5, *DRAWS[1:]) if view.random else None
    found = decode_image(jpeg(stripes, quality=95), "it", shape=(24, 24, 1), view=view, draws=draws)
    np.testing.assert_allclose(found[2:-2, 2:-2], 100, atol=30)  # single pixels are 0 or 200


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_of_the_asked_size_has_its_own_pixels(mode):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)).convert(mode)
    found = decode_image(jpeg(image), "it", shape=(24, 24, 3), view=View(24))
    np.testing.assert_array_equal(found, np.asarray(Image.open(io.BytesIO(jpeg(image))).convert("RGB")))


@pytest.mark.parametrize(("kind", "mode"), [("PNG", "RGB"), ("PNG", "RGBA"), ("BMP", "RGB"), ("JPEG", "CMYK")])
def test_files_of_every_kind_are_resized_alike(kind, mode):
    pixels = np.random.default_rng(0).integers(0, 256, (50, 40, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, kind)
    expected = resize(np.asarray(Image.open(stream).convert("RGB")), 24)
    found = decode_image(stream.getvalue(), "it", shape=(24, 24, 3), view=View(24))
    np.testing.assert_array_equal(found, expected)


def axis_weights(length, size):
    """``[size, length]``: how much each pixel of an axis counts for each new one, by the definitions."""
    factor = length / size
    places = (np.arange(size) + 0.5) * factor - 0.5
    linear = np.maximum(0, 1 - abs(places[:, None] - np.arange(-40, length + 40)))
    if factor > 1:
        reach = np.arange(-int(np.ceil(2 * np.sqrt((factor**2 - 1) / 6) - 0.5)), 0)
        taps = np.exp(-3 * np.concatenate([reach, [0], -reach[::-1]]) ** 2 / (factor**2 - 1))
        linear = np.apply_along_axis(lambda row: np.convolve(row, taps / taps.sum(), "same"), 1, linear)
    inner = linear[:, 40:-40].copy()  # pixels beyond the border are as those at it
    inner[:, 0] += linear[:, :40].sum(1)
    inner[:, -1] += linear[:, -40:].sum(1)
    return inner


@pytest.mark.parametrize(("height", "width"), [(50, 40), (7, 27), (24, 24), (50, 8), (1, 3)])
@pytest.mark.parametrize("size", [8, 24, 60])
def test_resizing_blurs_by_the_factor_and_interpolates(height, width, size):
    around = np.random.default_rng(0).integers(0, 256, (60, 50, 3), np.uint8)
    pixels = around[5 : 5 + height, 3 : 3 + width]  # a part: what lies around it must not count
    expected = np.einsum(
        "ih,jw,hwc->ijc", axis_weights(height, size), axis_weights(width, size), pixels.astype(np.float64)
    )
    np.testing.assert_allclose(resize(pixels, size), expected, atol=2)  # rounded after the blur, and again at the end
    np.testing.assert_allclose(resize(pixels, size).mean(), expected.mean(), atol=0.5)


def test_photographs_are_resized_nearly_as_by_pil():
    for pixels in load_sample_images().images:
        part = pixels[:410, 7:420]
        expected = Image.fromarray(part).resize((128, 128), Image.Resampling.BILINEAR)
        difference = abs(resize(part, 128).astype(int) - np.asarray(expected))
        assert difference.mean() < 1


def test_the_smallest_random_crop_shows_a_pixel():
    """Of a crop that lies within one pixel, wherever it is."""
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    for draws in itertools.product((0.0, 0.4, 1 - 2**-53), repeat=NUM_DRAWS):
        view = View(2, min_area=0.001)
        found = decode_image(stream.getvalue(), "it", shape=(2, 2, 1), view=view, draws=(0.0, *draws[1:]))
        assert found.min() == found.max()
        assert found.min() in pixels


@pytest.mark.parametrize(
    ("least", "size"),
    [(1, (13, 10)), (14, (25, 20)), (21, (50, 40)), (40, (50, 40)), (41, (100, 80)), (900, (100, 80))],
)
def test_jpegs_are_decoded_at_the_smallest_fast_size(least, size):
    pixels = np.random.default_rng(0).integers(0, 256, (100, 80), np.uint8)
    assert jpeg_file.decode(jpeg(pixels), "L", (least, least)).shape == size


@pytest.mark.parametrize(
    "segments", [{}, {"exif": b"Exif\0\0MM\0*"}, {"comment": b"it"}, {"icc_profile": b"0" * 70_000}]
)
def test_what_else_a_jpeg_holds_changes_no_pixel(segments):
    pixels = np.random.default_rng(0).integers(0, 256, (50, 40, 3), np.uint8)
    expected = decode_image(jpeg(pixels), "it", shape=(24, 24, 3), view=View(24))
    found = decode_image(jpeg(pixels, **segments), "it", shape=(24, 24, 3), view=View(24), upright=True)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("keep", [30, 300, -400])
def test_a_damaged_jpeg_is_named_where_it_is_resized(keep):
    encoded = jpeg(np.random.default_rng(0).integers(0, 256, (50, 40, 3), np.uint8))[:keep]
    with pytest.raises(DataError, match=r"it: the image cannot be decoded .*replace or remove it"):
        decode_image(encoded, "it", shape=(24, 24, 3), view=View(24))


@pytest.fixture
def photographs(tmp_path):
    """Eight JPEGs of differing sizes."""
    rng = np.random.default_rng(1)
    for number, split in itertools.product(range(8), ("train", "test")):
        path = tmp_path / "set" / split / ("cat", "dog")[number // 4] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(rng.integers(0, 256, (20 + number, 30 - number, 3), np.uint8)))
    return lambda **options: data.load(
        str(tmp_path / "set"), data_dir=tmp_path / "cache", **{"image_size": 8, "random_crop": 0.2, **options}
    )


def taken(source, count, **options):
    batches = data.train_batches(source, batch_size=4, seed=5, **options)
    return [next(batches)["image"] for _ in range(count)]


def test_random_crops_are_a_function_of_seed_and_batch(photographs):
    source = photographs()
    assert source.random
    assert not source.in_memory
    run = taken(source, 6)
    np.testing.assert_array_equal(run, taken(photographs(), 6))
    np.testing.assert_array_equal(run[3:], taken(source, 3, first=3))
    parts = [taken(source, 6, process_index=index, process_count=2) for index in (0, 1)]
    np.testing.assert_array_equal(run, np.concatenate(parts, axis=1))
    first, second, third = (np.concatenate(run[epoch : epoch + 2]) for epoch in (0, 2, 4))
    seen = [{image.tobytes() for image in images} for images in (first, second, third)]
    assert [len(images) for images in seen] == [8] * 3
    assert not set.intersection(*seen)


def test_evaluation_takes_no_random_crops(photographs):
    np.testing.assert_array_equal(whole(photographs())[0], whole(photographs(random_crop=1.0))[0])
    held = photographs(split="validation", holdout=0.25, center_crop=0.8)
    np.testing.assert_array_equal(
        whole(held)[0], whole(photographs(split="validation", holdout=0.25, center_crop=0.8))[0]
    )
    assert (whole(held)[0] != whole(photographs(split="validation", holdout=0.25))[0]).any()


def test_the_substitute_of_an_unreadable_example_is_cropped_too(photographs, tmp_path):
    path = tmp_path / "set" / "train" / "cat" / "1.jpg"
    path.write_bytes(path.read_bytes()[:50])
    source = photographs(max_unreadable=1)
    draws = np.array([DRAWS, DRAWS])
    found, _ = source.read(np.array([1, 2]), draws)
    np.testing.assert_array_equal(found[0], found[1])


def test_draws_differ_between_batches_and_lie_in_the_unit_interval():
    draws = [batch_draws(number, batch_size=64, count=4, seed=0) for number in (0, 1)]
    assert all(((part >= 0) & (part < 1)).all() for part in draws)
    assert len(np.unique(draws)) == 512
    assert abs(np.mean(draws) - 0.5) < 0.05


def test_views_that_mean_nothing_are_refused(tmp_path):
    write_folder(tmp_path / "set")
    for options, words in (
        ({"center_crop": 0.9}, ["center_crop", "--data.image-size"]),
        ({"random_crop": 0.9}, ["random_crop", "--data.image-size"]),
        ({"image_size": 4, "center_crop": 1.5}, ["center_crop 1.5", "(0, 1]"]),
        ({"image_size": 4, "random_crop": 0.0}, ["random_crop 0.0", "(0, 1]"]),
    ):
        refused(words, tmp_path / "set", data_dir=tmp_path, **options)
    arrays = {"images": np.zeros((3, 4, 4, 3), np.uint8), "labels": np.arange(3)}
    path = write_npz(tmp_path / "set.npz", {f"{name}.npy": array for name, array in arrays.items()})
    refused(["arrays are not cropped", "min_area"], path, image_size=4, random_crop=0.5)
