"""Going back after a non-finite loss: a rollback is a resume that knows which batch to leave out.

The batches left out are in the run folder's ``rollbacks.json``; with the step they determine every later batch
(`train.data.order.batch_number`), so that an interrupted run continues to the bit after a rollback too.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from train import runs

FILE = "rollbacks.json"


def read(folder: Path) -> tuple[int, ...]:
    """The numbers of the batches that a run leaves out, from 0, rising.

    Raises:
        RunError: the file is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return ()
    try:
        numbers = json.loads(path.read_text(encoding="utf-8"))["skipped_batches"]
        if not all(type(number) is int and number >= 0 for number in numbers):
            raise ValueError("not a list of numbers")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise runs.RunError(f"{path} cannot be used ({error}): without it the run's batches are not known") from error
    return tuple(sorted(set(numbers)))


def skip(folder: Path, skipped: tuple[int, ...], batch: int, error: Exception, limit: int) -> tuple[int, ...]:
    """Leaves one more batch out and writes that down, or raises what went wrong.

    Args:
        folder: the run folder.
        skipped: the batches left out so far.
        batch: the one that led to a non-finite loss.
        error: what to raise where the limit is reached.
        limit: how many batches may be left out.

    Returns:
        The batches left out from now on.
    """
    if len(skipped) >= limit:
        raise error
    skipped = tuple(sorted({*skipped, batch}))
    runs.write_json(folder / FILE, {"skipped_batches": list(skipped)})
    print(
        f"rolling back to the last checkpoint, without batch {batch} ({len(skipped)} of at most {limit}): {error}",
        file=sys.stderr,
    )
    return skipped
