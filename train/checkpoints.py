"""Orbax checkpoints with a checksum of every leaf, written in the background.

Orbax notices missing and truncated files but not flipped bits inside an array, so each step also stores the CRC-32 of
every leaf; a restore compares them and falls back to the newest step that is whole.
"""

from __future__ import annotations

import logging
import warnings
import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

Tree = Any


class CheckpointError(ValueError):
    """No usable checkpoint; the message is one line with the culprit and the remedy."""


def open_manager(folder: Path) -> ocp.CheckpointManager:
    """Opens a run's checkpoints: keeps the last two and the one of best validation accuracy."""
    logging.getLogger("absl").setLevel(logging.ERROR)
    policies = ocp.checkpoint_managers

    def score(metrics: dict[str, float]) -> float:
        return metrics["accuracy"]

    return ocp.CheckpointManager(
        folder.resolve(),
        options=ocp.CheckpointManagerOptions(
            best_fn=score,
            best_mode="max",
            # `max_to_keep` together with `best_fn` would delete the newest step.
            preservation_policy=policies.AnyPreservationPolicy(
                [policies.LatestN(2), policies.BestN(get_metric_fn=score, n=1)]
            ),
            cleanup_tmp_directories=True,
        ),
    )


def checksums(tree: Tree) -> dict[str, int]:
    """The CRC-32 of every leaf's bytes, by its path; for replicated arrays."""

    def crc(leaf: Any) -> int:
        data = leaf.addressable_shards[0].data if isinstance(leaf, jax.Array) else leaf
        return zlib.crc32(np.ascontiguousarray(data).tobytes())

    return {jax.tree_util.keystr(path): crc(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def save(manager: ocp.CheckpointManager, step: int, state: Tree, metrics: dict[str, float]) -> None:
    """Starts writing a checkpoint; the next save or `wait_until_finished` waits for it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        manager.save(
            step,
            metrics=metrics,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(jax.tree.map(np.asarray, _plain(state))),
                checksums=ocp.args.JsonSave(checksums(_plain(state))),
            ),
        )


def _plain(state: Tree) -> Tree:
    """Named tuples as dictionaries, so that a checkpoint can be read without this program's types."""
    return ocp.utils.to_state_dict(state) if hasattr(ocp.utils, "to_state_dict") else state


def restore(manager: ocp.CheckpointManager, state: Tree, *, step: int | None = None) -> tuple[int, Tree, list[str]]:
    """Reads the newest checkpoint that is whole.

    Args:
        manager: from `open_manager`.
        state: a state of the same structure, shapes and types.
        step: only this one; None for the newest.

    Returns:
        ``(step, state as NumPy arrays, what was skipped and why)``.

    Raises:
        CheckpointError: none is whole.
    """
    abstract = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), state)
    skipped = []
    for candidate in [step] if step is not None else sorted(manager.all_steps(), reverse=True):
        try:
            read = manager.restore(
                candidate,
                args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract), checksums=ocp.args.JsonRestore()),
            )
        except Exception as error:  # Orbax and TensorStore raise many kinds for damage
            lines = str(error).strip().splitlines()
            skipped.append(f"step {candidate}: {lines[0][:200] if lines else type(error).__name__}")
            continue
        found, expected = checksums(read.state), dict(read.checksums)
        damaged = [path for path in expected if found.get(path) != expected[path]]
        if not damaged and found.keys() == expected.keys():
            return candidate, read.state, skipped
        skipped.append(f"step {candidate}: the checksum of {(damaged or ['a missing leaf'])[0]} does not match")
    detail = "; ".join(skipped) if skipped else "there is none"
    raise CheckpointError(f"{manager.directory}: no intact checkpoint ({detail})")
