"""The warp and its derivatives against other samplers and against the memory's bandwidth, on the same cores, in turn.

Four kernels: the warp alone; the warp with the gradient of its flow, as an attack needs it; with the gradient of its
images; and the second order, the gradient of the squared flow gradient with respect to the images and to the incoming
gradient, which is what double backpropagation through a warp needs. The flows are smooth, below one pixel or of
several.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import deformreg
from benchmarks import harness
from benchmarks.attacks import loss_function
from benchmarks.torch_peer import TorchPeer, torch_peer

SHAPES = ((128, 32, 32, 3), (16, 224, 224, 3), (4, 512, 512, 1))
FLOWS = {"below one pixel": 0.9, "several pixels": 4.0}
KERNELS = ("forward", "flow gradient", "image gradient", "second order")
COPIED = 2**27
Sampler = Callable[[Array, Array], Array]


def samplers(largest: float) -> dict[str, Sampler]:
    """Functions ``(images, flow) -> images`` by implementation: ours, and what else JAX users have.

    Args:
        largest: the flow's longest component in pixels; where `deformreg.warp` can use that promise it comes twice.
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
        return jax.scipy.ndimage.map_coordinates(image, list(positions), order=1, mode="nearest")

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


def moved_bytes(name: str, shape: tuple[int, int, int, int]) -> int:
    """Bytes a kernel cannot do without, in float32: every argument read once, every result written once."""
    images, flow = 4 * int(np.prod(shape)), 4 * int(np.prod(shape[:3])) * 2
    return {
        "forward": 2 * images + flow,
        "flow gradient": 3 * images + 2 * flow,
        "image gradient": 4 * images + flow,
        "second order": 4 * images + flow,
    }[name]


def example(shape: tuple[int, int, int, int], largest: float) -> tuple[Array, Array, Array]:
    """Random images, a smooth flow of components up to `largest` pixels, and a gradient that comes in."""
    keys = jax.random.split(jax.random.key(0), 3)
    count, height, width, _ = shape
    coarse = jax.random.uniform(keys[1], (count, -(-height // 8), -(-width // 8), 2), minval=-largest, maxval=largest)
    flow = deformreg.fields.upsample(coarse, height, width)
    return jax.random.uniform(keys[0], shape), flow, jax.random.normal(keys[2], shape)


def measure(
    *, rounds: int = 7, quick: bool = False, torch_python: str | None = None, shapes: tuple[Any, ...] = SHAPES
) -> list[dict[str, Any]]:
    """Times every kernel of every implementation, and a copy beside each.

    Args:
        rounds: timed rounds; every round runs every implementation.
        quick: fewer rounds where time is short; the second order and the image gradient for small flows only.
        torch_python: an interpreter with PyTorch, for ``grid_sample``; None leaves it out.
        shapes: of the images; other ones than the usual leave out the share of an attack's step.

    Returns:
        A row per kernel, implementation, shape and flow. `bandwidth_fraction` is the bytes that must move over the
        time, as a fraction of what reading and writing 128 MiB in place reaches in the same rounds.

    Raises:
        PeerError: PyTorch is not there.
    """
    rows = []
    for shape in shapes:
        for flow_name, largest in FLOWS.items():
            arguments = example(shape, largest)
            short = quick and flow_name != "below one pixel"
            with _grid_sample(torch_python, shape, largest) as peer:
                for name in KERNELS[:2] if short else KERNELS:
                    samples = _time(name, arguments, largest, peer, rounds=rounds, quick=quick)
                    rows += _rows(name, shape, flow_name, samples)
    if shapes == SHAPES:
        rows.append(attack_share(rounds=rounds, quick=quick))
    return rows


@contextlib.contextmanager
def _grid_sample(python: str | None, shape: tuple[int, ...], largest: float) -> Iterator[TorchPeer | None]:
    if python is None:
        yield None
        return
    words = ["--shape", *map(str, shape), "--largest", str(largest)]
    with torch_peer(python, "torch_kernels.py", words) as peer:
        yield peer


def _time(
    name: str,
    arguments: tuple[Array, Array, Array],
    largest: float,
    peer: TorchPeer | None,
    *,
    rounds: int,
    quick: bool,
) -> harness.Samples:
    candidates: dict[str, Callable[[], float]] = {
        implementation: harness.repeated(jax.jit(kernel(name, sampler)), *arguments)
        for implementation, sampler in samplers(largest).items()
    }
    if peer is not None and name != "second order":  # grid_sample has no second derivative
        candidates["grid_sample (PyTorch)"] = lambda: peer(name)
    candidates["copy"] = harness.copy(COPIED)
    return harness.interleave(candidates, rounds=rounds, budget_seconds=6 if quick else None)


def _rows(name: str, shape: Any, flow_name: str, samples: harness.Samples) -> list[dict[str, Any]]:
    copy_bandwidth = 2 * COPIED / harness.summary(samples["copy"])["milliseconds"]
    return [
        {
            "kernel": name,
            "implementation": implementation,
            "shape": "x".join(map(str, shape)),
            "flow": flow_name,
            **harness.summary(values),
            "ratio_to_ours": harness.ratio(samples, implementation, "deformreg")["ratio"],
            "ratio_quartiles": harness.ratio(samples, implementation, "deformreg")["ratio_quartiles"],
            "bandwidth_fraction": moved_bytes(name, shape) / harness.summary(values)["milliseconds"] / copy_bandwidth,
            "copy_gigabytes_per_second": copy_bandwidth / 1e6,
        }
        for implementation, values in samples.items()
        if implementation != "copy"
    ]


def attack_share(*, rounds: int, quick: bool, model: str = "vgg-11", batch_size: int = 128) -> dict[str, Any]:
    """How much of a step of the multi-step attack is the warp: one row."""
    num_steps = 2 if quick else 10
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
        rounds=rounds,
        budget_seconds=30 if quick else None,
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
