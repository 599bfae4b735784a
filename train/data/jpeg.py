"""JPEGs that get smaller, by simplejpeg.

libjpeg decodes at fractions of a JPEG's size, where its inverse cosine transform leaves out high frequencies: that is
faster than decoding all pixels, and antialiased. What is odd is left to PIL, whose errors name what is wrong.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from train.data.kind import require

_MODES = {"YCbCr": "RGB", "Gray": "L"}
_SCAN, _APP1 = 0xDA, 0xE1
_WITHOUT_LENGTH = {0x01, 0xFF, *range(0xD0, 0xDA)}


def header(encoded: bytes) -> tuple[tuple[int, int], str] | None:
    """``(width, height)`` and PIL's mode of a JPEG in colour or gray; None for anything else."""
    try:
        height, width, colours, _ = _simplejpeg().decode_jpeg_header(encoded)
    except ValueError:
        return None
    return ((width, height), _MODES[colours]) if colours in _MODES else None


def may_be_turned(encoded: bytes) -> bool:
    """Whether a JPEG has a segment that may hold an EXIF or XMP orientation before its pixels, or is odd."""
    place = 2
    while place + 4 <= len(encoded) and encoded[place] == 0xFF:
        marker = encoded[place + 1]
        if marker == _SCAN:
            return False
        if marker == _APP1 or marker in _WITHOUT_LENGTH:
            return True
        place += 2 + int.from_bytes(encoded[place + 2 : place + 4], "big")
    return True


def decode(encoded: bytes, mode: str, least: tuple[int, int]) -> np.ndarray | None:
    """Pixels of a JPEG of a mode of `header`, no smaller than `least` unless the JPEG is.

    Args:
        encoded: the file.
        mode: as `header` has it.
        least: width and height.

    Returns:
        ``uint8[h, w, 3]``, for gray ``uint8[h, w]``; None if the JPEG is damaged.
    """
    try:
        width, height = _scaled(encoded, least)
        colours = "RGB" if mode == "RGB" else "GRAY"
        pixels: np.ndarray = _simplejpeg().decode_jpeg(encoded, colours, min_width=width, min_height=height)
    except ValueError:
        return None
    return pixels if mode == "RGB" else pixels[:, :, 0]


def _scaled(encoded: bytes, least: tuple[int, int]) -> tuple[int, int]:
    """The smallest fast size of a JPEG that is no smaller than `least`; its own if there is none.

    libjpeg has 1/8, 2/8 and so on. Those in between 4/8 and 8/8 take longer than all pixels: no vector instructions.
    """
    height, width, *_ = _simplejpeg().decode_jpeg_header(encoded)
    for eighths in (1, 2, 4):
        size = math.ceil(width * eighths / 8), math.ceil(height * eighths / 8)
        if size[0] >= least[0] and size[1] >= least[1]:
            return size
    return width, height


def _simplejpeg() -> Any:
    return require("simplejpeg", "simplejpeg", "resizing JPEGs")
