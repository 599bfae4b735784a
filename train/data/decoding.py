"""Encoded images to ``uint8`` arrays: one image, a whole split, or a batch in threads."""

from __future__ import annotations

import functools
import io
import math
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from train.data import jpeg
from train.data.kind import Arrays, Decode, Shape, not_now, require
from train.data.resizing import resize
from train.data.view import Box, View
from train.errors import DataError, UserError, one_line
from train.files import may_be_intact, open_regular, patiently

MAX_PIXELS = 2**25
"""Larger images are refused before they are decompressed: a few bytes can claim gigabytes."""

MAX_BYTES = 2**28
"""Larger files are refused unread: no image of `MAX_PIXELS` needs so many."""

FORMATS = ("PNG", "JPEG", "BMP", "WEBP")
"""By content, whatever a file is called. PIL's other decoders stay off: one of them runs Ghostscript."""

DECODER = "simplejpeg and OpenCV's resize"
"""What makes images smaller: decoded copies that another one made are decoded again."""

WHOLE = View()

CHANNEL_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_GRAYSCALE_MODES = {"1", "L", "LA"}
_EIGHT_BIT_MODES = _GRAYSCALE_MODES | {"P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"}
# What undoes each EXIF orientation: PIL.Image.Transpose by number, as PIL.ImageOps.exif_transpose has it.
_TURNS = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}
_SWAPPING = (2, 4, 5, 6)  # of these, those that exchange height and width
_CHUNK = 64  # examples of a split a thread decodes at a time: enough to hide the cost of handing them out
_PARTS = 4  # of a batch for every thread: several, so that no thread waits long for the last one


def decode_image(
    data: bytes | Path,
    where: str,
    *,
    shape: Shape,
    view: View = WHOLE,
    draws: Sequence[float] | None = None,
    upright: bool = False,
) -> np.ndarray:
    """Decodes one image. Without an alpha channel in `shape`, transparent images are laid on white, as viewers do.

    A JPEG that is resized is decoded by `train.data.jpeg` if nothing is odd with it. PIL decodes all other files.

    Args:
        data: the encoded bytes, or the path of the file.
        where: names the image in errors.
        shape: the expected ``(h, w, c)``, ``c`` = 1, 3 or 4. A grayscale image is repeated into colour channels; a
            colour image is never reduced to one channel.
        view: the part that is shown and its size; resized bilinearly, and antialiased where it gets smaller.
        draws: the random numbers of a random crop; None for none.
        upright: whether to turn the image as its EXIF orientation says.

    Returns:
        ``uint8[h, w, c]``.

    Raises:
        DataError: damaged, too large, of more than 8 bits, of another size, in colour where ``c`` is 1, or of one
            colour but for an alpha channel that is not kept.
        StorageError: it cannot be read now, and may be intact.
    """
    height, width, channels = shape
    encoded = data if isinstance(data, bytes) else _read(data, where)
    shrunk = _shrunk_jpeg(encoded, shape, view, draws, upright)
    if shrunk is not None:
        return shrunk
    with _opened(encoded, where) as (image, file):
        if channels == 1 and image.mode not in _GRAYSCALE_MODES:
            raise DataError(f"{where}: a colour image (mode {image.mode}) in a grayscale set; convert one or the other")
        turn = _turn(image) if upright else None
        whole: tuple[int, int] = image.size[::-1] if turn in _SWAPPING else image.size
        box = view.box(*whole, draws)
        resized = view.size is not None and not _is_shown(whole, box, view)
        if resized and image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L") and channels != 4:
            least = _least(whole, box, view)
            file.seek(0)
            scaled = jpeg.decode(file.read(), image.mode, least[::-1] if turn in _SWAPPING else least)
            image = image if scaled is None else require("PIL.Image", "pillow", "decoding images").fromarray(scaled)
        image = image if channels == 4 else _on_white(image, where)
        if image.mode != CHANNEL_MODES[channels]:
            image = image.convert(CHANNEL_MODES[channels])
        if turn is not None:
            image = image.transpose(turn)
        if not resized and image.size != (width, height):
            raise DataError(
                f"{where}: {image.height} x {image.width} pixels (height x width), the first image has {height} x "
                f"{width}; --data.image-size resizes them all"
            )
        pixels = np.asarray(image)
    return (_shown(pixels, whole, box, view) if resized else pixels).reshape(shape)


def _shrunk_jpeg(
    encoded: bytes, shape: Shape, view: View, draws: Sequence[float] | None, upright: bool
) -> np.ndarray | None:
    """`decode_image` for a JPEG that nothing is wrong or odd with, without PIL's parser; None for any other file."""
    if view.size is None or shape[2] == 4:
        return None
    header = jpeg.header(encoded) if len(encoded) <= MAX_BYTES else None
    if header is None or (upright and jpeg.may_be_turned(encoded)):
        return None
    whole, mode = header
    if math.prod(whole) > MAX_PIXELS or (mode == "RGB" and shape[2] == 1):
        return None
    box = view.box(*whole, draws)
    if _is_shown(whole, box, view):
        return None
    pixels = jpeg.decode(encoded, mode, _least(whole, box, view))
    if pixels is None:
        return None
    shown = _shown(pixels, whole, box, view)
    return np.repeat(shown[..., None], shape[2], axis=-1) if mode == "L" else shown


def _read(path: Path, where: str) -> bytes:
    """The content of a file, read `patiently`; raises what `_failure` makes of an error."""

    def read() -> bytes:
        with open_regular(path, limit=MAX_BYTES) as file:
            # Not up to the limit, for which Python would allocate as much.
            return file.read(os.fstat(file.fileno()).st_size)

    try:
        return patiently(read)
    except Exception as error:
        raise _failure(error, where) from error


def _least(whole: tuple[int, int], box: Box, view: View) -> tuple[int, int]:
    """The width and height that an image needs so that its box is no smaller than it is shown."""
    width, height = (math.ceil((view.size or 0) * whole[i] / (box[i + 2] - box[i])) for i in (0, 1))
    return width, height


def _is_shown(whole: tuple[int, int], box: Box, view: View) -> bool:
    """Whether a whole image has the size of the view."""
    return whole == (view.size, view.size) and box == (0, 0, *whole)


def _shown(pixels: np.ndarray, whole: tuple[int, int], box: Box, view: View) -> np.ndarray:
    """The box of an image, in pixels of its whole size, at the size of the view.

    The box begins and ends at whole pixels of the image as it was decoded: OpenCV resizes these 2.6 times as fast as it
    samples in between.
    """
    across, down = pixels.shape[1] / whole[0], pixels.shape[0] / whole[1]
    left, top = min(round(box[0] * across), pixels.shape[1] - 1), min(round(box[1] * down), pixels.shape[0] - 1)
    right, bottom = max(round(box[2] * across), left + 1), max(round(box[3] * down), top + 1)
    return resize(pixels[top:bottom, left:right], view.size or 0)


def image_header(data: bytes | Path, where: str, *, upright: bool = False) -> tuple[tuple[int, int], bool]:
    """Reads ``(height, width)`` and whether the image is grayscale, without decoding it; `upright` as above."""
    with _opened(data, where) as (image, _):
        height, width = image.height, image.width
        if upright and _turn(image) in _SWAPPING:
            height, width = width, height
        return (height, width), image.mode in _GRAYSCALE_MODES


def decode_split(decode: Decode, size: int, shape: Shape, title: str) -> Arrays:
    """Decodes a whole split into memory in threads, with a progress bar on a terminal.

    Raises:
        DataError: of the first example that fails.
    """
    from tqdm import tqdm

    images, labels = np.empty((size, *shape), np.uint8), np.empty(size, np.int32)

    def fill(start: int) -> int:
        stop = min(start + _CHUNK, size)
        labels[start:stop] = decode(np.arange(start, stop), images[start:stop])
        return stop - start

    bar = tqdm(total=size, desc=title, unit="img", disable=not sys.stderr.isatty(), leave=False)
    with bar:
        for done in _pool().map(fill, range(0, size, _CHUNK)):
            bar.update(done)
    return images, labels


def decode_batch(
    decode: Decode, indices: np.ndarray, draws: np.ndarray | None, shape: Shape, memory_limit: int, where: str
) -> Arrays:
    """Decodes the examples at ``indices`` in threads, if they fit in memory.

    Raises:
        DataError: they take more than ``memory_limit`` bytes, or one cannot be decoded.
    """
    if (taken := len(indices) * math.prod(shape)) > memory_limit:
        raise DataError(
            f"{where}: {len(indices)} images of {shape[0]} x {shape[1]} at once take {taken} bytes, over the limit "
            f"of {memory_limit}; read fewer at once (--batch-size, --evaluation.examples) or smaller ones "
            "(--data.image-size)"
        )
    images, labels = np.empty((len(indices), *shape), np.uint8), np.empty(len(indices), np.int32)

    def fill(part: slice) -> None:
        labels[part] = decode(indices[part], images[part], None if draws is None else draws[part])

    length = max(len(indices) // (_PARTS * _num_threads()), 1)
    parts = [slice(start, start + length) for start in range(0, len(indices), length)]
    for _ in _pool().map(fill, parts):
        pass
    return images, labels


@contextmanager
def quiet_decoding() -> Iterator[None]:
    """Silences PIL's warnings on odd files: those that matter are errors here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


@contextmanager
def _opened(data: bytes | Path, where: str) -> Iterator[tuple[Any, BinaryIO]]:
    """Opens an image and its file, and turns whatever a damaged file raises into a ``DataError``.

    Of a path it reads no more than is asked for.
    """
    pil = require("PIL.Image", "pillow", "decoding images")
    try:
        if isinstance(data, bytes) and len(data) > MAX_BYTES:
            raise ValueError(f"larger than {MAX_BYTES} bytes")
        # A file that was listed may have been replaced since, for example by a pipe, which would block.
        encoded = io.BytesIO(data) if isinstance(data, bytes) else open_regular(data, limit=MAX_BYTES)
        with encoded, pil.open(encoded, formats=FORMATS) as image:
            if image.format == "PNG" and (depth := _png_depth(encoded)) > 8:  # PIL drops half of the bits of colours
                raise DataError(f"{where}: {depth} bits, not 8 bits a channel; convert the image")
            if image.width * image.height > MAX_PIXELS:
                raise DataError(
                    f"{where}: {image.width} x {image.height} pixels are over the limit of "
                    f"{MAX_PIXELS}; remove the image or reduce it first"
                )
            if image.mode not in _EIGHT_BIT_MODES:
                raise DataError(f"{where}: mode {image.mode} is not 8 bits a channel; convert the image")
            yield image, encoded
    except DataError:
        raise
    except pil.UnidentifiedImageError as error:
        raise DataError(
            f"{where}: the image cannot be decoded (it is none of {', '.join(FORMATS)}); replace or remove it"
        ) from error
    except pil.DecompressionBombError as error:
        raise DataError(
            f"{where}: over the limit of {MAX_PIXELS} pixels ({one_line(error)}); remove the image or reduce it first"
        ) from error
    except Exception as error:  # PIL's plugins raise nearly anything on damaged bytes
        raise _failure(error, where) from error


def _failure(error: Exception, where: str) -> UserError:
    """What an error means for an image: damage, unless the image may be intact."""
    if may_be_intact(error):
        return not_now(f"{where}: the image", error)
    return DataError(f"{where}: the image cannot be decoded ({one_line(error)}); replace or remove it")


def _png_depth(file: BinaryIO) -> int:
    """Bits of a channel, from the header at the start of a PNG file."""
    place = file.tell()
    file.seek(24)
    depth = file.read(1)[0]
    file.seek(place)
    return depth


def _turn(image: Any) -> int | None:
    """What makes an image upright, before it is decoded; a damaged EXIF block says nothing."""
    if image.format == "PNG" and "exif" not in image.info:  # PIL would decode the image to look behind it
        return None
    try:
        return _TURNS.get(image.getexif().get(0x0112))
    except Exception:  # PIL raises nearly anything on damaged bytes
        return None


def _on_white(image: Any, where: str) -> Any:
    """Lays a transparent image on white: what its transparent pixels hide may be any colour, mostly black.

    Raises:
        DataError: then it is of one colour, although its transparency has a shape.
    """
    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    low, high = image.getchannel("A").getextrema()
    if low == 255:
        return image
    pil = require("PIL.Image", "pillow", "decoding images")
    flat = pil.alpha_composite(pil.new("RGBA", image.size, "white"), image)
    if low != high and all(least == most for least, most in flat.getextrema()):
        raise DataError(f"{where}: a white shape on a transparent ground; save it on a ground of another colour")
    return flat


def _num_threads() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_num_threads(), thread_name_prefix="decode")
