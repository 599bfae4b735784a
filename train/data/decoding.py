"""Encoded images to ``uint8`` arrays: one image, a whole split, or a batch in threads."""

from __future__ import annotations

import functools
import io
import math
import os
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from train.data.kind import Arrays, Read, Shape, require
from train.errors import DataError, one_line
from train.files import open_regular

MAX_PIXELS = 2**25
"""Larger images are refused before they are decompressed: a few bytes can claim gigabytes."""

MAX_BYTES = 2**28
"""Larger files are refused unread: no image of `MAX_PIXELS` needs so many."""

FORMATS = ("PNG", "JPEG", "BMP", "WEBP")
"""By content, whatever a file is called. PIL's other decoders stay off: one of them runs Ghostscript."""

CHANNEL_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_GRAYSCALE_MODES = {"1", "L", "LA"}
_EIGHT_BIT_MODES = _GRAYSCALE_MODES | {"P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"}
_CHUNK = 64  # examples a thread decodes at a time: enough to hide the cost of handing them out


def decode_image(data: bytes | Path, where: str, *, shape: Shape, image_size: int | None = None) -> np.ndarray:
    """Decodes one image.

    Args:
        data: the encoded bytes, or the path of the file.
        where: names the image in errors.
        shape: the expected ``(h, w, c)``, ``c`` = 1, 3 or 4. A grayscale image is repeated into colour channels; a
            colour image is never reduced to one channel.
        image_size: resizes to this height and width, in pixels, bilinear; None keeps the size.

    Returns:
        ``uint8[h, w, c]``.

    Raises:
        DataError: damaged, too large, of more than 8 bits, of another size, or in colour where ``c`` is 1.
    """
    height, width, channels = shape
    with _opened(data, where) as image:
        if channels == 1 and image.mode not in _GRAYSCALE_MODES:
            raise DataError(f"{where}: a colour image (mode {image.mode}) in a grayscale set; convert one or the other")
        image = image.convert(CHANNEL_MODES[channels])
        if image_size is not None and image.size != (image_size, image_size):
            image = image.resize((image_size, image_size), resample=2)  # PIL's BILINEAR
        if image.size != (width, height):
            raise DataError(
                f"{where}: {image.height} x {image.width} pixels (height x width), the first image has {height} x "
                f"{width}; give an image size to resize to"
            )
        pixels = np.asarray(image)
    return pixels.reshape(shape)


def image_header(data: bytes | Path, where: str) -> tuple[tuple[int, int], bool]:
    """Reads ``(height, width)`` and whether the image is grayscale, without decoding it."""
    with _opened(data, where) as image:
        return (image.height, image.width), image.mode in _GRAYSCALE_MODES


def decode_split(decode: Read, size: int, shape: Shape, title: str) -> Arrays:
    """Decodes a whole split into memory in threads, with a progress bar on a terminal.

    Raises:
        DataError: of the first example that fails.
    """
    from tqdm import tqdm

    images, labels = np.empty((size, *shape), np.uint8), np.empty(size, np.int32)

    def fill(start: int) -> int:
        stop = min(start + _CHUNK, size)
        images[start:stop], labels[start:stop] = decode(np.arange(start, stop))
        return stop - start

    bar = tqdm(total=size, desc=title, unit="img", disable=not sys.stderr.isatty(), leave=False)
    with bar:
        for done in _pool().map(fill, range(0, size, _CHUNK)):
            bar.update(done)
    return images, labels


def decode_batch(decode: Read, indices: np.ndarray, shape: Shape, memory_limit: int, where: str) -> Arrays:
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
    parts = min(_num_threads(), len(indices)) or 1
    images, labels = zip(*_pool().map(decode, np.array_split(indices, parts)), strict=True)
    return np.concatenate(images), np.concatenate(labels)


@contextmanager
def quiet_decoding() -> Iterator[None]:
    """Silences PIL's warnings on odd files: those that matter are errors here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


@contextmanager
def _opened(data: bytes | Path, where: str) -> Iterator[Any]:
    """Opens an image and turns whatever a damaged file raises into a ``DataError``."""
    pil = require("PIL.Image", "pillow", "decoding images")
    try:
        if isinstance(data, bytes) and len(data) > MAX_BYTES:
            raise ValueError(f"larger than {MAX_BYTES} bytes")
        # A file that was listed may have been replaced since, for example by a pipe, which would block.
        encoded = io.BytesIO(data) if isinstance(data, bytes) else open_regular(data, limit=MAX_BYTES)
        with encoded, pil.open(encoded, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(
                    f"{where}: {image.width} x {image.height} pixels are over the limit of "
                    f"{MAX_PIXELS}; remove the image or reduce it first"
                )
            if image.mode not in _EIGHT_BIT_MODES:
                raise DataError(f"{where}: mode {image.mode} is not 8 bits a channel; convert the image")
            yield image
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
        raise DataError(f"{where}: the image cannot be decoded ({one_line(error)}); replace or remove it") from error


def _num_threads() -> int:
    return min(32, os.cpu_count() or 1)


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_num_threads(), thread_name_prefix="decode")
