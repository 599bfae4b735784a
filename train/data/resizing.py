"""A box of an image at another size, by OpenCV: linear interpolation after a blur, where the image gets smaller.

PIL weights the pixels around each new pixel by a triangle as wide as the image shrinks. OpenCV has no such filter, but
is several times as fast; here a Gaussian blur gives each new pixel the spread of PIL's triangle.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from train.data.kind import require
from train.data.view import Box

_REACH = 2  # standard deviations of the blur that count


def resize(pixels: np.ndarray, box: Box, size: int) -> np.ndarray:
    """Shows the box of an image at another size.

    Args:
        pixels: ``uint8[h, w]`` or ``uint8[h, w, c]``.
        box: the part that is shown, in pixels of this image, possibly fractions of them.
        size: height and width of the result.

    Returns:
        ``uint8[size, size]`` or ``uint8[size, size, c]``.
    """
    cv2, (left, top, right, bottom) = _cv2(), box
    across, down = (right - left) / size, (bottom - top) / size
    blur_x, blur_y = _blur(across), _blur(down)
    # Only the box and what the blur sees around it are blurred.
    x, y = (max(math.floor(start - _REACH * blur) - 1, 0) for start, blur in ((left, blur_x), (top, blur_y)))
    end_x, end_y = (math.ceil(end + _REACH * blur) + 1 for end, blur in ((right, blur_x), (bottom, blur_y)))
    part = pixels[y:end_y, x:end_x]
    if blur_x or blur_y:
        kernel = _taps(blur_x), _taps(blur_y)
        part = cv2.GaussianBlur(part, kernel, sigmaX=blur_x, sigmaY=blur_y, borderType=cv2.BORDER_REPLICATE)
    # Pixels are squares: the middle of new pixel i lies at (i + 1/2) * across of the box.
    places = np.array([[across, 0, left - x + across / 2 - 0.5], [0, down, top - y + down / 2 - 0.5]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    shown: np.ndarray = cv2.warpAffine(part, places, (size, size), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return shown


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
