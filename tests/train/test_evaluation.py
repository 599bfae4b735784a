"""The evaluation of a run: what its pictures show."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np

import deformreg
from train import evaluation


def test_pictures_show_the_flow_that_broke_an_image_or_the_last_one():
    images = np.random.default_rng(0).random((4, 8, 8, 1)).astype(np.float32)

    def logits_fn(batch):
        return jnp.stack([batch.mean(axis=(1, 2, 3)), batch[:, 0, 0, 0]], axis=1)

    exhibits, outcomes = evaluation._Exhibits(4), []

    def face(name, shift, indices, broken, family):
        faced = deformreg.attacks.pgd(ball=deformreg.linf(1.0), num_steps=1, perturbation=family, name=name)
        for part in ([index] for index in indices):
            params = np.asarray(family.init(np.zeros((1, 8, 8, 1), np.float32)) + shift)
            claims = np.array([True])  # which the fresh check need not confirm
            found = deformreg.attacks.AttackResult(np.zeros((1, 8, 8, 1)), params, claims, np.zeros(1), (), np.ones(1))
            exhibits.collect(faced, np.array(part), found)
        masks = (np.isin(np.arange(9), which) for which in (indices, broken))
        outcomes.append(SimpleNamespace(name=name, **dict(zip(("attacked_mask", "broken_mask"), masks, strict=True))))

    edge = deformreg.flow(boundary="edge")
    face("first", 1.0, [0, 1, 8], [0], edge)  # more images than are shown
    face("second", 2.0, [1, 0], [0], edge)
    face("pixels", 9.0, [2], [2], deformreg.additive())  # moves none
    trained = SimpleNamespace(images=images, labels=np.zeros(4, int), logits_fn=jax.tree_util.Partial(logits_fn))
    sample = exhibits.sample(trained, outcomes)
    assert [flow.mean() for flow in sample.flows] == [1.0, 2.0, 0.0, 0.0]
    flows = jnp.broadcast_to(jnp.array([1.0, 2.0, 0.0, 0.0]).reshape(4, 1, 1, 1), (4, 8, 8, 2))
    np.testing.assert_array_equal(sample.deformed, deformreg.warp(images, flows, boundary="edge"))
    np.testing.assert_array_equal(sample.before, jnp.argmax(logits_fn(images), axis=1))
    np.testing.assert_array_equal(sample.after, jnp.argmax(logits_fn(sample.deformed), axis=1))
