"""Flow fields: units, generators, smoothing and sizes.

A flow is ``float[n, h, w, 2]``: a displacement in pixels for every pixel, last axis (dy, dx) like NumPy indices. It
says where an output pixel *reads from*, so the image content moves in the opposite direction. Flows of signals,
``[n, t, 1]``, and of volumes, ``[n, d, h, w, 3]``, are in the same order: one component per axis.
"""

from deformreg.fields.generators import AFFINE_PARAMETERS, affine_flow, smooth, upsample
from deformreg.fields.sizes import folds, max_component, max_displacement, mean_displacement, total_variation
from deformreg.fields.units import normalized_from_pixels, pixels_from_normalized, pixels_per_unit

__all__ = [
    "AFFINE_PARAMETERS",
    "affine_flow",
    "folds",
    "max_component",
    "max_displacement",
    "mean_displacement",
    "normalized_from_pixels",
    "pixels_from_normalized",
    "pixels_per_unit",
    "smooth",
    "total_variation",
    "upsample",
]
