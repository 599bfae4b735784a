"""Which part of an image file is shown: a box of it, resized when the file is decoded.

References:
    Szegedy et al., "Going Deeper with Convolutions", CVPR 2015 (random crops of any area and aspect ratio).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from train.errors import DataError

Box = tuple[float, float, float, float]
"""``(left, top, right, bottom)`` in pixels from the upper left corner of the upright image."""

NUM_DRAWS = 4
"""Random numbers in [0, 1) that place a random crop: area, aspect ratio, left, top."""

_MAX_ASPECT = 4 / 3


class View(NamedTuple):
    """The part of every image that is shown.

    Attributes:
        size: the height and width, in pixels, to which the part is resized; None keeps whole images as they are.
        center: shows the square in the image's centre with this share, in (0, 1], of its shorter side; None stretches
            the whole image.
        min_area: the smallest share, in (0, 1], of the image's area that a random crop shows; 1 for no random crop.
    """

    size: int | None = None
    center: float | None = None
    min_area: float = 1.0

    @property
    def random(self) -> bool:
        """Whether an image is shown differently each time."""
        return self.min_area < 1

    @property
    def label(self) -> str:
        """Names the view, without its random crop, in file names."""
        return f"{self.size or 'original'}" + (f"-center-{self.center}" if self.center else "")

    def box(self, width: int, height: int, draws: Sequence[float] | None) -> Box:
        """The part of an image that is shown.

        Args:
            width, height: of the upright image, in pixels.
            draws: `NUM_DRAWS` random numbers in [0, 1) for a random crop; None for none, as in evaluation.
        """
        wide, high = float(width), float(height)
        if draws is not None:
            area = (self.min_area + (1 - self.min_area) * draws[0]) * width * height
            aspect = _MAX_ASPECT ** (2 * draws[1] - 1)
            # As in the augmentation's crop: what does not fit into the image is cut to its side.
            wide, high = min(math.sqrt(area * aspect), wide), min(math.sqrt(area / aspect), high)
        elif self.center is not None:
            wide = high = self.center * min(width, height)
        across, down = (0.5, 0.5) if draws is None else draws[2:4]
        left, top = (width - wide) * across, (height - high) * down
        # A last bit beyond the border is an error for PIL.
        return left, top, min(left + wide, width), min(top + high, height)


def check_view(view: View) -> None:
    """Refuses a view that is none.

    Raises:
        DataError: one line with the option and what it may be.
    """
    if view.size is not None and view.size < 1:
        raise DataError(f"image_size {view.size} is not a number of pixels; give 1 or more")
    for name, share in (("center_crop", view.center), ("random_crop", view.min_area)):
        if share is not None and not 0 < share <= 1:
            raise DataError(f"{name} {share} is not a share in (0, 1]; give for example 0.875")
    if view.size is None and (view.center is not None or view.random):
        raise DataError("center_crop and random_crop need the size of the crop: give image_size (--data.image-size)")
