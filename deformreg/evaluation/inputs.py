"""What an evaluation is given: checked, and tried without computing anything, before the first attack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import jax
import numpy as np
from numpy.typing import ArrayLike

from deformreg import _checks
from deformreg._families import check_layout
from deformreg.attacks.attack import Attack, check_suits
from deformreg.criteria import Criterion
from deformreg.evaluation.data import Data, HostArray, OnDemand
from deformreg.evaluation.passes import Setting
from deformreg.evaluation.rows import Compiled, check_alike
from deformreg.interop.host import NoGradients


def finite_range(image_range: object) -> tuple[float, float]:
    """A range of images that must be finite."""
    low, high = _checks.image_range(image_range)
    if not np.isfinite([low, high]).all():
        raise ValueError(f"image_range must be finite, got {(low, high)}: None takes the range of the images")
    return low, high


def mask_of(name: str, value: object, count: int) -> HostArray:
    """A mask over all examples."""
    mask = np.asarray(value)
    if mask.shape != (count,) or mask.dtype != bool:
        raise ValueError(f"{name} must be bool of shape ({count},), got {_checks.described(value)}")
    return mask


def rehearse(setting: Setting, attacks: Sequence[tuple[Attack, Compiled]], key: jax.Array) -> None:
    """Traces the model and all attacks without running them, so that errors are raised before the first attack."""
    data, size = setting.data, setting.batch_size
    for attack, _ in attacks:  # before the model, whose error would name a size of its own
        check_layout(attack.perturbation, data.images.shape)
    batch = data._replace(targets=None).filler(size)
    outputs = setting.forward.eval_shape(setting.logits_fn, batch).outputs
    all_outputs = (len(data.images), *outputs.shape[1:])
    data.criterion.check_labels(data.labels, data.images.shape, all_outputs)
    if data.targets is not None:
        _checks.class_indices("targets", data.targets, len(data.labels), classes=outputs.shape[1])
    for attack, compiled in attacks:
        check_suits(attack, data.criterion, targeted=data.targets is not None)
        check_alike(attack, data, outputs)
        try:
            compiled.trace(setting.logits_fn, *compiled.idle_turn(data, key, size))
        except NoGradients as error:
            raise NoGradients(f"attack {attack.name!r} needs gradients: {error}") from None


def checked_data(
    images: ArrayLike | OnDemand,
    labels: ArrayLike,
    targets: ArrayLike | None,
    image_range: tuple[float, float] | None,
    criterion: Criterion,
) -> tuple[Data, tuple[float, float]]:
    """The examples on the host, and the range of attacked images; None means that of `images`, extended to zero."""
    images = _on_demand(images, image_range) if isinstance(images, OnDemand) else _checks.images_on_host(images)
    count = images.shape[0]
    _checks.at_least_one(images.shape)
    labels = np.asarray(criterion.check_labels(labels, images.shape, None))
    labels = labels.astype(jax.dtypes.canonicalize_dtype(labels.dtype), copy=False)
    targets = None if targets is None else np.asarray(_checks.class_indices("targets", targets, count))
    if isinstance(images, OnDemand):
        assert image_range is not None
        return Data(images, labels, targets, criterion), image_range
    low, high = _extremes(images, np.arange(count))
    if image_range is None:
        return Data(images, labels, targets, criterion), (min(0.0, low), max(0.0, high))
    _checks.in_range("images", images, image_range)
    return Data(images, labels, targets, criterion), image_range


def _extremes(images: HostArray, indices: HostArray) -> tuple[float, float]:
    """The smallest and the largest value of images, which must be finite; `indices` are their numbers in the set."""
    low, high = float(images.min()), float(images.max())
    if not np.isfinite([low, high]).all():
        (bad,) = np.nonzero(~np.isfinite(images).reshape(len(images), -1).all(axis=1))
        raise ValueError(
            f"images must be finite, got NaN or infinity in {len(bad)}, the first at index {indices[bad[0]]}: leave "
            "these out"
        )
    return low, high


def _on_demand(images: OnDemand, image_range: tuple[float, float] | None) -> OnDemand:
    """Images that are checked whenever they are read: the clean pass reads all of them."""
    if image_range is None:
        raise ValueError("image_range must be given for images on demand, for example (0.0, 1.0), got None")
    jax.eval_shape(_checks.images, jax.ShapeDtypeStruct(images.shape, images.dtype))

    def read(indices: HostArray) -> HostArray:
        found = np.asarray(images.read(indices))
        if len(found):
            _extremes(found, indices)
            _checks.in_range("images", found, image_range)
        return found

    return replace(images, read=read)
