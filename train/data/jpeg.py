"""JPEGs that get smaller, by simplejpeg.

libjpeg decodes at eighths of a JPEG's size, where its inverse cosine transform leaves out high frequencies: that is
faster than decoding all pixels, and antialiased. What is odd is left to PIL, whose errors name what is wrong.
"""

from __future__ import annotations

from typing import Any

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


def decode(encoded: bytes, mode: str, least: tuple[int, int]) -> Any | None:
    """A PIL image of a mode of `header`, no smaller than `least` unless the JPEG is; None if it is damaged."""
    pil = require("PIL.Image", "pillow", "decoding images")
    colours = "RGB" if mode == "RGB" else "GRAY"
    try:
        pixels = _simplejpeg().decode_jpeg(encoded, colours, min_width=least[0], min_height=least[1])
    except ValueError:
        return None
    return pil.fromarray(pixels if mode == "RGB" else pixels[:, :, 0])


def _simplejpeg() -> Any:
    return require("simplejpeg", "simplejpeg", "resizing JPEGs")
