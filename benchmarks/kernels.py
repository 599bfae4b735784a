"""The warp and its derivatives against other samplers and against the memory's bandwidth.

There are four kernels: the warp alone; the warp with the gradient of its flow, which an attack needs; the warp with
the gradient of its images; and the second order, the gradient of the squared flow gradient with respect to the images
and the incoming gradient, which double backpropagation through a warp needs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import deformreg
from benchmarks import harness
from benchmarks.attacks import loss_function
from benchmarks.options import Several, Timed, WithTorch
from benchmarks.rows import Rows
from benchmarks.torch_peer import optional_peer
from train.errors import ConfigError

SHAPES = ("128x32x32x3", "16x224x224x3", "4x512x512x1")
FLOWS = {"below one pixel": 0.9, "several pixels": 4.0}
KERNELS = ("forward", "flow gradient", "image gradient", "second order")
COPIED = 2**27  # bytes that the copy reads, and writes

Shape = tuple[int, int, int, int]
Sampler = Callable[[Array, Array], Array]


@dataclass(frozen=True, kw_only=True)
class Options(WithTorch, Timed):
    """Times every kernel of every sampler on smooth flows, below one pixel and of several, and a copy beside each."""

    quick: bool = False
    """At most six seconds per kernel, and for large flows only the first two kernels."""
    shape: Several[str] = SHAPES
    """Shapes of the images. Other ones than the default leave out the warp's share of an attack's step."""


def run(options: Options) -> Rows:
    """A row per kernel, implementation, shape and flow.

    `bandwidth_fraction` is the rate of the bytes that must move, relative to the rate at which 128 MiB are read and
    written in place in the same rounds.

    Raises:
        UserError: there is no PyTorch in the interpreter that was named for it.
    """
    shapes = [_shape(text) for text in options.shape]
    rows = [row for shape in shapes for flow_name in FLOWS for row in _measure(shape, flow_name, options)]
    return [*rows, attack_share(options)] if options.shape == SHAPES else rows


def samplers(largest: float) -> dict[str, Sampler]:
    """Functions ``(images, flow) -> images`` by implementation: ours, and others for JAX.

    Args:
        largest: the flow's largest component in pixels. Below 2, `deformreg.warp` comes a second time with that bound
            promised.
    """
    found: dict[str, Sampler] = {"deformreg": deformreg.warp, "map_coordinates": _map_coordinates}
    if largest < 2:
        found["deformreg, promised"] = partial(deformreg.warp, within=largest)
    with contextlib.suppress(ImportError):
        import dm_pix

        def dm_pix_sampler(images: Array, flow: Array) -> Array:
            return _per_channel(dm_pix.flat_nd_linear_interpolate, images, flow)

        found["dm_pix"] = dm_pix_sampler
    return found


def _map_coordinates(images: Array, flow: Array) -> Array:
    def sample(image: Array, positions: Array) -> Array:
        sampled: Array = jax.scipy.ndimage.map_coordinates(image, list(positions), order=1, mode="nearest")
        return sampled

    return _per_channel(sample, images, flow)


def _per_channel(sample: Callable[[Array, Array], Array], images: Array, flow: Array) -> Array:
    """Maps a sampler of ``image[h, w]`` at ``positions[2, h, w]`` over channels and examples."""
    height, width = images.shape[1:3]
    grid = jnp.stack(jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij"), axis=-1)
    positions = jnp.moveaxis(flow + grid, -1, 1)
    return jax.vmap(jax.vmap(sample, in_axes=(-1, None), out_axes=-1))(images, positions)


def kernel(name: str, sampler: Sampler) -> Callable[[Array, Array, Array], Any]:
    """``(images, flow, incoming gradient) -> results`` of one kernel."""

    def flow_gradient(images: Array, flow: Array, incoming: Array) -> tuple[Array, Array]:
        outputs, pullback = jax.vjp(lambda flow: sampler(images, flow), flow)
        return outputs, *pullback(incoming)

    def image_gradient(images: Array, flow: Array, incoming: Array) -> tuple[Array, Array]:
        outputs, pullback = jax.vjp(lambda images: sampler(images, flow), images)
        return outputs, *pullback(incoming)

    def squared(images: Array, incoming: Array, flow: Array) -> Array:
        return jnp.sum(flow_gradient(images, flow, incoming)[1] ** 2)

    return {
        "forward": lambda images, flow, incoming: sampler(images, flow),
        "flow gradient": flow_gradient,
        "image gradient": image_gradient,
        "second order": lambda images, flow, incoming: jax.grad(squared, argnums=(0, 1))(images, incoming, flow),
    }[name]


def moved_bytes(name: str, shape: Shape) -> int:
    """Bytes that a kernel must move in float32: every argument is read once, every result written once."""
    images, flow = 4 * int(np.prod(shape)), 4 * int(np.prod(shape[:3])) * 2
    return {
        "forward": 2 * images + flow,
        "flow gradient": 3 * images + 2 * flow,
        "image gradient": 4 * images + flow,
        "second order": 4 * images + flow,
    }[name]


def example(shape: Shape, largest: float) -> tuple[Array, Array, Array]:
    """Random images, a smooth flow of components up to `largest` pixels, and an incoming gradient."""
    keys = jax.random.split(jax.random.key(0), 3)
    count, height, width, _ = shape
    coarse = jax.random.uniform(keys[1], (count, -(-height // 8), -(-width // 8), 2), minval=-largest, maxval=largest)
    flow = deformreg.fields.upsample(coarse, height, width)
    return jax.random.uniform(keys[0], shape), flow, jax.random.normal(keys[2], shape)


def _shape(text: str) -> Shape:
    """``"16x224x224x3"`` as sizes."""
    sizes = tuple(int(size) for size in text.split("x") if size.isdecimal())
    if len(sizes) != 4 or not all(1 <= size <= 10**5 for size in sizes):
        raise ConfigError(f"--shape must be four sizes as in 16x224x224x3, got {text}")
    return sizes[0], sizes[1], sizes[2], sizes[3]


def _measure(shape: Shape, flow_name: str, options: Options) -> Rows:
    largest = FLOWS[flow_name]
    arguments, rows = example(shape, largest), []
    with optional_peer(options.torch_python, "torch_kernels.py", _words(shape, largest)) as peer:
        for name in KERNELS[:2] if options.quick and largest > 1 else KERNELS:
            candidates: dict[str, Callable[[], float]] = {
                implementation: harness.repeated(jax.jit(kernel(name, sampler)), *arguments)
                for implementation, sampler in samplers(largest).items()
            }
            if peer is not None and name != "second order":  # grid_sample has no second derivative
                candidates["grid_sample (PyTorch)"] = partial(peer, name)
            candidates["copy"] = harness.copy(COPIED)
            samples = harness.interleave(candidates, rounds=options.rounds, budget_seconds=6 if options.quick else None)
            rows += _rows(name, shape, flow_name, samples)
    return rows


def _words(shape: Shape, largest: float) -> list[str]:
    return ["--shape", *map(str, shape), "--largest", str(largest)]


def _rows(name: str, shape: Shape, flow_name: str, samples: harness.Samples) -> Rows:
    copied_per_millisecond = 2 * COPIED / harness.summary(samples.pop("copy"))["milliseconds"]
    rows = []
    for implementation in samples:
        found = harness.compared(samples, implementation, "deformreg")
        rows.append(
            {
                "kernel": name,
                "implementation": implementation,
                "shape": "x".join(map(str, shape)),
                "flow": flow_name,
                **found,
                "bandwidth_fraction": moved_bytes(name, shape) / found["milliseconds"] / copied_per_millisecond,
                "copy_gigabytes_per_second": copied_per_millisecond / 1e6,
            }
        )
    return rows


def attack_share(options: Options, *, model: str = "vgg-11", batch_size: int = 128) -> dict[str, Any]:
    """A row that says how much of a step of the multi-step attack is the warp."""
    num_steps = 2 if options.quick else 10
    images, flow, incoming = example((batch_size, 32, 32, 3), 0.155)
    loss_fn = loss_function(model, batch_size)
    attack = jax.jit(
        lambda images: deformreg.multi_step(loss_fn, images, ball=deformreg.linf(0.155), num_steps=num_steps).params
    )
    samples = harness.interleave(
        {
            "attack": harness.repeated(attack, images),
            "warp": harness.repeated(jax.jit(kernel("flow gradient", deformreg.warp)), images, flow, incoming),
        },
        rounds=options.rounds,
        budget_seconds=30 if options.quick else None,
    )
    samples["attack"] = [value / num_steps for value in samples["attack"]]
    return {
        "kernel": f"step of the multi-step attack, {model}",
        "implementation": "deformreg",
        "shape": f"{batch_size}x32x32x3",
        **harness.summary(samples["attack"]),
        "ratio_to_ours": 1.0,
        "warp_share": harness.ratio(samples, "warp", "attack")["ratio"],
    }
