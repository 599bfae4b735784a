"""The kernel benchmark compares like with like, and the flow penalty compiles to what it should."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deformreg
from benchmarks import harness, kernels
from deformreg.penalties import squared_norm
from deformreg.perturbations import pull_back

SHAPE = (2, 11, 10, 3)


@pytest.mark.parametrize("name", ["flow gradient", "second order"])
@pytest.mark.parametrize(("largest", "others"), [(0.9, 3), (4.0, 2)])
def test_all_samplers_compute_the_same(name, largest, others):
    arguments = kernels.example(SHAPE, largest)
    results = {
        implementation: jax.jit(kernels.kernel(name, sampler))(*arguments)
        for implementation, sampler in kernels.samplers(largest).items()
    }
    ours = results.pop("deformreg")
    assert len(results) == others
    for implementation, theirs in results.items():
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            inside = np.s_[:, 4:-4, 4:-4]  # outside of the image slopes may differ
            np.testing.assert_allclose(a[inside], b[inside], rtol=1e-4, atol=1e-4, err_msg=implementation)


def test_the_flows_are_as_large_as_their_name_says():
    for largest in kernels.FLOWS.values():
        _, flow, _ = kernels.example((4, 32, 32, 1), largest)
        assert 0.8 * largest < float(jnp.abs(flow).max()) <= largest


def test_a_copy_moves_what_it_must():
    images = 4 * 2 * 11 * 10 * 3
    flow = 4 * 2 * 11 * 10 * 2
    assert kernels.moved_bytes("forward", SHAPE) == 2 * images + flow
    assert kernels.moved_bytes("flow gradient", SHAPE) == 3 * images + 2 * flow


def test_the_flow_penalty_compiles_to_no_gather_and_no_scatter():
    def penalty(image_gradients, images):
        return squared_norm(pull_back(deformreg.flow(), image_gradients, images))

    def reverse(image_gradients, images):
        return jax.grad(lambda *arguments: penalty(*arguments).sum(), argnums=(0, 1))(image_gradients, images)

    def operations(function):
        images = jnp.ones((4, 8, 8, 3))
        return harness.operations(harness.compiled(function, images, images)[0].as_text())

    for function in (penalty, reverse):
        assert not {"gather", "scatter"} & set(operations(function))
    assert "gather" in operations(lambda images, flow: images[flow[:, 0, 0, 0].astype(int)])  # the word to look for
