"""Draws the figure of docs/mathematics.md: ``python docs/figures.py``, half a minute on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
from jax import Array
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

import deformreg
from deformreg.attacks import pgd

STANDARD, PENALIZED, GRAY = "#0969da", "#bc4c00", "#8c959f"
RADII = np.linspace(0.0, 0.5, 11)


def network(params: Any, images: Array) -> Array:
    """Logits of a network with one hidden layer."""
    hidden = jnp.tanh(images.reshape(len(images), -1) @ params["hidden"])
    return hidden @ params["head"]


def loss_of(params: Any, labels: Array) -> Callable[[Array], Array]:
    """The losses of images under these labels."""
    return lambda images: deformreg.cross_entropy(network(params, images), jnp.broadcast_to(labels, len(images)))


def trained(images: Array, labels: Array, weight: float) -> Any:
    """Parameters after 300 steps with a penalty of this weight."""
    keys = jax.random.split(jax.random.key(0))
    start = {"hidden": jax.random.normal(keys[0], (64, 64)) / 8, "head": jax.random.normal(keys[1], (64, 10)) / 8}

    def objective(params: Any) -> Array:
        penalties, losses = deformreg.gradient_penalty(loss_of(params, labels), images)
        return losses.mean() + weight * penalties.mean()

    def step(params: Any, _: None) -> tuple[Any, None]:
        return jax.tree.map(lambda value, gradient: value - 0.3 * gradient, params, jax.grad(objective)(params)), None

    params, _ = jax.lax.scan(step, start, None, length=300)
    return params


def draw_kink(axes: Axes, loss_fn: Any, image: Array) -> None:
    """The loss while one pixel moves left and right, for both interpolations, and the forward difference."""
    gradient = deformreg.image_gradients(loss_fn, image)[0]
    slopes = deformreg.warping.forward_differences(image)[1]
    row, column = np.unravel_index(np.argmax(np.abs(gradient * slopes)), image.shape[1:3])
    shifts = jnp.linspace(-1, 1, 81)
    flows = jnp.zeros((81, *image.shape[1:3], 2)).at[:, row, column, 1].set(shifts)
    many = jnp.broadcast_to(image, (81, *image.shape[1:]))
    for order, color, name in ((1, STANDARD, "bilinear"), (3, GRAY, "cubic")):
        axes.plot(shifts, loss_fn(deformreg.warp(many, flows, order=order)), color=color, label=name)
    slope = (gradient * slopes)[0, row, column, 0]
    axes.plot(shifts[30:], loss_fn(image)[0] + slope * shifts[30:], "--", color=PENALIZED, label="derivative used here")
    axes.set(xlabel="one pixel's displacement to the right, px", ylabel="loss", title="The kink")
    axes.legend(frameon=False)


def draw_closed_form(axes: Axes, loss_fn: Any, images: Array) -> None:
    """The closed form against automatic differentiation through the warp, a point for each pixel."""
    gradients, _ = deformreg.image_gradients(loss_fn, images)
    slopes = deformreg.warping.forward_differences(images)
    closed = jnp.stack([jnp.sum(gradients * slope, axis=-1) for slope in slopes], axis=-1)
    automatic = jax.grad(lambda flow: loss_fn(deformreg.warp(images, flow)).sum())(jnp.zeros((*images.shape[:3], 2)))
    largest = float(jnp.abs(automatic).max())
    axes.plot([-largest, largest], [-largest, largest], color=GRAY, linewidth=1)
    axes.plot(automatic.ravel(), closed.ravel(), ".", color=STANDARD, markersize=4)
    error = float(jnp.abs(closed - automatic).max())
    axes.set(xlabel="through the warp, nats/px", ylabel="closed form, nats/px", title="The gradient of the flow")
    axes.text(0.04, 0.9, f"largest difference {error:.0e}", transform=axes.transAxes)


def draw_bound(axes: Axes, params: Any, images: Array, labels: Array, color: str, name: str) -> None:
    """The mean increase of the loss under attack, and its first-order bound."""
    logits_fn, loss_fn = jax.tree_util.Partial(network, params), loss_of(params, labels)
    clean, per_pixel = loss_fn(images), deformreg.gradient_penalty(loss_fn, images, size=deformreg.linf(1.0).support)[0]

    def increase(radius: Array) -> Array:
        attack = pgd(ball=deformreg.linf(radius), num_steps=20, start="random", keep="best")
        found = attack.run(logits_fn, images, labels, jax.random.key(0))
        return (loss_fn(deformreg.warp(images, found.params)) - clean).mean()

    increases = jax.jit(lambda radii: jax.lax.map(increase, radii))(jnp.asarray(RADII[1:], jnp.float32))
    axes.plot(RADII, [0.0, *increases.tolist()], color=color, label=f"{name}: under attack")
    axes.plot(RADII, RADII * float(per_pixel.mean()), "--", color=color, label=f"{name}: first order")


def main(path: Path) -> None:
    """Writes the figure."""
    digits = load_digits()
    images, labels = jnp.asarray(digits.images[:600, ..., None] / 16, jnp.float32), jnp.asarray(digits.target[:600])
    plain, penalized = trained(images[:500], labels[:500], 0.0), trained(images[:500], labels[:500], 3.0)
    test, truth = images[500:], labels[500:]
    with mpl.rc_context({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9}):
        figure = Figure(figsize=(11, 3.4), layout="constrained")
        left, middle, right = figure.subplots(1, 3)
        draw_kink(left, loss_of(plain, truth[0]), test[:1])
        draw_closed_form(middle, loss_of(plain, truth), test)
        draw_bound(right, plain, test, truth, STANDARD, "standard")
        draw_bound(right, penalized, test, truth, PENALIZED, "with penalty")
        right.set(
            xlabel="largest displacement per component, px", ylabel="mean increase of the loss", title="The bound"
        )
        right.legend(frameon=False)
        figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main(Path(__file__).with_name("mathematics.png"))
