"""Checks of perturbation families and of the images that they perturb; their identity."""

from __future__ import annotations

import warnings

from jaxtyping import Array

from deformreg import _checks
from deformreg._arrays import aligned
from deformreg.perturbations import Params, Perturbation, flow

_BACK = "and let the model transpose back"
_LAYOUTS = {
    3: (
        "[n, t, c]",
        "images [n, h, w] or signals [n, c, t]",
        f"give images[..., None], or transpose signals to (0, 2, 1) {_BACK}",
    ),
    4: ("[n, h, w, c]", "[n, c, h, w]", f"transpose them to (0, 2, 3, 1), {_BACK}"),
    5: ("[n, d, h, w, c]", "[n, c, d, h, w]", f"transpose them to (0, 2, 3, 4, 1), {_BACK}"),
}
"""By rank: the right layout, the one it is mistaken for, and what to do about it."""

SOME_CHANNELS, MANY_CHANNELS = 8, 24
"""More channels than those of photographs, and too many for an image of 1, 3 or 4 rows."""


def family_or_flow(perturbation: Perturbation | None) -> Perturbation:
    """Returns a family that was given, or `flow` for None; raises for anything else."""
    if perturbation is None:
        return flow()
    return _checks.instance("perturbation", perturbation, Perturbation, "deformreg.flow()")


def identity(perturbation: Perturbation, images: Array) -> Params:
    """The parameters of the identity, spread over devices as the images are."""
    return aligned(perturbation.init(images), images)


def check_layout(perturbation: Perturbation, shape: tuple[int, ...]) -> None:
    """Raises if a family would move the pixels of images that can only be [n, c, h, w], or of those without channels.

    Where they may as well be what they should be, it warns.
    """
    if perturbation.field is None:
        return
    of_signals = len(shape) == 3
    sure, doubtful = _signals_look_wrong(shape) if of_signals else _images_look_wrong(shape)
    kind, (right, wrong, remedy) = "signals" if of_signals else "images", _LAYOUTS[len(shape)]
    if sure:
        raise ValueError(f"{kind} must have shape {right}, got {shape}, which looks like {wrong}: {remedy}")
    if doubtful:
        # Python shows it once per place and text; the place is that of the caller's caller.
        warnings.warn(f"{kind} of shape {shape} are read as {right}, but may be {wrong}: if so, {remedy}", stacklevel=3)


def _images_look_wrong(shape: tuple[int, ...]) -> tuple[bool, bool]:
    """Whether images or volumes are surely, and whether they may be, with channels first.

    Surely: the first axis is 1, 3 or 4, as channels are, and the last is too long for those of images so low. Maybe:
    all axes but the first are of one size, as those of most images with channels first are.
    """
    first, last, channels = shape[1], shape[-2], shape[-1]
    shortest = min(last, channels)
    few, square = first in (3, 4) or (first == 1 and last == channels), len(set(shape[2:])) == 1
    sure = shortest >= MANY_CHANNELS and few
    return sure, (shortest >= SOME_CHANNELS and square and first != last) or (shortest >= MANY_CHANNELS and first == 1)


def _signals_look_wrong(shape: tuple[int, ...]) -> tuple[bool, bool]:
    """Whether signals are surely, and whether they may be, with channels first, or images without channels."""
    time, channels = shape[1:]
    return time <= 4 and channels >= MANY_CHANNELS, channels >= max(time, SOME_CHANNELS)
