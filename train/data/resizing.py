"""Images at another size, by OpenCV: linear interpolation after a blur, where the image gets smaller.

PIL weights the pixels around each new pixel by a triangle as wide as the image shrinks. OpenCV has no such filter, but
is several times as fast; here a Gaussian blur gives each new pixel the spread of PIL's triangle.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from train.data.kind import require

_REACH = 2  # standard deviations of the blur that count


def resize(pixels: np.ndarray, size: int) -> np.ndarray:
    """Stretches or shrinks an image to a square.

    Args:
        pixels: ``uint8[h, w]`` or ``uint8[h, w, c]``.
        size: height and width of the result.

    Returns:
        ``uint8[size, size]`` or ``uint8[size, size, c]``.
    """
    cv2 = _cv2()
    blur_y, blur_x = (_blur(length / size) for length in pixels.shape[:2])
    if blur_x or blur_y:
        kernel = _taps(blur_x), _taps(blur_y)
        pixels = cv2.GaussianBlur(pixels, kernel, sigmaX=blur_x, sigmaY=blur_y, borderType=cv2.BORDER_REPLICATE)
    resized: np.ndarray = cv2.resize(pixels, (size, size), interpolation=cv2.INTER_LINEAR)
    return resized


def _blur(factor: float) -> float:
    """The standard deviation, in pixels, that linear interpolation lacks where an image shrinks by a factor.

    A triangle of half width f has variance f^2 / 6, and linear interpolation is one of half width 1.
    """
    return math.sqrt(max(factor**2 - 1, 0.0) / 6)


def _taps(blur: float) -> int:
    """The odd number of pixels that a blur reads along an axis."""
    return 2 * math.ceil(_REACH * blur - 0.5) + 1 if blur else 1


@functools.cache
def _cv2() -> Any:
    cv2 = require("cv2", "opencv-python-headless", "resizing images")
    cv2.setNumThreads(1)  # images are decoded in threads already
    return cv2
