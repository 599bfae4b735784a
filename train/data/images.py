"""Decode one image file, from a path or from bytes, to ``uint8[h, w, c]``."""

from __future__ import annotations

import io
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from train.data.errors import DataError, one_line, require

MAX_PIXELS = 2**25
"""Larger images are refused before they are decompressed: a few bytes can claim gigabytes."""

MAX_BYTES = 2**28
"""Larger files are refused unread: no image of `MAX_PIXELS` needs so many."""

FORMATS = ("PNG", "JPEG", "BMP", "WEBP")
"""By content, whatever a file is called: of PIL's other decoders one runs Ghostscript."""

CHANNEL_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_GRAYSCALE_MODES = {"1", "L", "LA"}
_EIGHT_BIT_MODES = _GRAYSCALE_MODES | {"P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"}


def decode_image(data: bytes | Path, where: str, *, channels: int, image_size: int | None = None) -> np.ndarray:
    """Decodes one image.

    Args:
        data: the encoded bytes, or the path of the file.
        where: names the image in errors.
        channels: 1, 3 or 4; a grayscale image is repeated into colour channels, a colour image
            is never reduced to one.
        image_size: resizes to this height and width, in pixels, bilinear; None keeps the size.

    Returns:
        ``uint8[h, w, channels]``.

    Raises:
        DataError: corrupt, too large, of more than 8 bits, or in colour where ``channels`` is 1.
    """
    with _opened(data, where) as image:
        if channels == 1 and image.mode not in _GRAYSCALE_MODES:
            raise DataError(f"{where}: a colour image (mode {image.mode}) in a grayscale set; convert one or the other")
        image = image.convert(CHANNEL_MODES[channels])
        if image_size is not None and image.size != (image_size, image_size):
            image = image.resize((image_size, image_size), resample=2)  # PIL's BILINEAR
        pixels = np.asarray(image)
    return pixels.reshape(*pixels.shape[:2], channels)


def image_header(data: bytes | Path, where: str) -> tuple[tuple[int, int], bool]:
    """Reads ``(height, width)`` and whether the image is grayscale, without decoding it."""
    with _opened(data, where) as image:
        return (image.height, image.width), image.mode in _GRAYSCALE_MODES


@contextmanager
def quiet_decoding():
    """Silences PIL's warnings on odd files: what matters is an error of this module."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


@contextmanager
def _opened(data: bytes | Path, where: str):
    """Opens an image and turns whatever a damaged file raises into a ``DataError``."""
    pil = require("PIL.Image", "pillow", "decoding images")
    try:
        size = len(data) if isinstance(data, bytes) else data.stat().st_size
        if size > MAX_BYTES:
            raise DataError(f"{where}: {size} bytes are over the limit of {MAX_BYTES}; remove the image or reduce it")
        with pil.open(io.BytesIO(data) if isinstance(data, bytes) else data, formats=FORMATS) as image:
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
