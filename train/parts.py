"""What the processes of an evaluation have found with the attack at work: kept in files, and exchanged through them.

Each process attacks its share of the images and writes what it has found into a file of its own beside that of the
finished attacks. A process that has finished its share waits for the others' files, and puts them together. Started
again, on any number of processes and devices, the evaluation continues with all that these files hold.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from deformreg.evaluation import Found, together
from train import environment, files, processes, runs
from train.partial import START, STOP, Kept, Partial

WAIT = 0.2
"""Seconds between two looks for a file of another process."""


@dataclass(frozen=True)
class Team:
    """The processes that share an evaluation.

    Attributes:
        index: of this one, from 0.
        count: of all.
        start: a number that is the same in all processes, and another one at every start.
    """

    index: int = 0
    count: int = 1
    start: int = 0


def team() -> Team:
    """All processes that have joined; they call this together."""
    if not processes.is_joined():
        return Team(start=_new_number())
    return Team(jax.process_index(), jax.process_count(), processes.from_lead(_new_number()))


def _new_number() -> int:
    return time.time_ns() % (1 << 31)


def check_alike(kept: Sequence[Partial]) -> None:
    """Makes sure that all processes evaluate the same: else each would wait for files that no other writes.

    Args:
        kept: the files of the finished attacks of all runs.

    Raises:
        RunError: another process has other code, versions, settings, options, images or networks.
    """

    def of_all(*names: str) -> str:
        return json.dumps([[file.identity[name] for name in names] for file in kept], sort_keys=True)

    processes.agree(
        {
            **environment.shared(),
            "options": of_all("options"),
            "test images": of_all("examples"),
            "networks": of_all("model", "step", "weights", "program"),
        }
    )


def check_shared(kept: Sequence[Partial], team: Team) -> None:
    """Makes sure that all processes see the same folders, and in them the same results of earlier starts.

    Else each would wait for files that it never sees, or that another one, which is at another attack, never writes.

    Args:
        kept: the files of the finished attacks of all runs.
        team: the processes.

    Raises:
        RunError: in every process, if one does not see a folder, or does not read what process 0 reads there.
    """
    if team.count == 1:
        return
    for file in kept:
        place, start = file.path.with_suffix(START), str(team.start).encode()
        if team.index == 0:
            file.check()
            files.write_bytes(place, start)
        try:
            runs.check_seen(place, partial(_holds, place, start), "an --output (by default the run folder)")
        finally:
            if team.index == 0:
                place.unlink(missing_ok=True)
    places = [(file, path) for file in kept for path in (file.path, *_paths(file))]
    read = [[path.name, file._replace(path=path).fingerprint()] for file, path in places]
    folders = " and ".join(dict.fromkeys(str(file.path.parent) for file in kept))
    remedy = f"give the command again, once all can read {folders} and no process of an earlier start is left"
    processes.agree({"results of an earlier start": json.dumps(read)}, remedy)


def _holds(path: Path, text: bytes) -> bool:
    """Whether a file is there with this text; what an earlier start has left holds another one."""
    with suppress(OSError, ValueError):
        return files.read_bytes(path, limit=64) == text
    return False


def stop_together(file: Partial, team: Team, requested: Callable[[], bool]) -> Callable[[], bool]:
    """A function that says whether any process of the team was asked to stop; all call it again and again.

    A process that was asked writes the number of this start into a file, at which the others look.

    Args:
        file: of the finished attacks; of those of the first run, where there are several.
        team: the processes.
        requested: whether this process was asked.
    """
    if team.count == 1:
        return requested
    place, start = file.path.with_suffix(STOP), str(team.start).encode()

    def stopping() -> bool:
        told = _holds(place, start)
        if requested() and not told:
            file.check()
            files.write_bytes(place, start)
        return told or requested()

    return stopping


class Part(NamedTuple):
    """What one process has found.

    Attributes:
        attack: number of the attack at work.
        start: of the team.
        complete: whether the process has finished its share.
        found: all that it knows of, costs only of this start and process.
        earlier: model calls, seconds and seconds of compiling of earlier starts.
        shown: int[k], which of the images for the pictures it has attacked.
        params: what the attack found for these, leaves whose first axis is k.
    """

    attack: int
    start: int
    complete: bool
    found: Found
    earlier: tuple[int, float, float]
    shown: np.ndarray
    params: list[np.ndarray]


class Begun(NamedTuple):
    """What earlier starts have found with an attack, and the parts that say so."""

    found: Found
    parts: list[Part]


def write(file: Partial, team: Team, part: Part) -> None:
    """Replaces this process's file."""
    found = part.found
    arrays = {"finished": found.finished, "claimed": found.claimed, "broken": found.broken, "calls": found.calls}
    arrays |= {f"norm {name}": values for name, values in found.norms.items()}
    arrays |= {"shown": part.shown, **{f"params {at}": leaf for at, leaf in enumerate(part.params)}}
    costs = (found.model_calls, found.seconds, found.compile_seconds)
    facts = {"attack": part.attack, "start": part.start, "complete": part.complete, "costs": costs}
    _place(file, team.index, part.attack).write({**facts, "earlier": part.earlier}, arrays)


def begun(file: Partial, attack: int, count: int) -> Begun:
    """What earlier starts have found with an attack on `count` images."""
    read = (file._replace(path=path).read(lambda kept: _parse(kept, attack, count)) for path in _paths(file))
    parts = [part for part in read if part is not None]
    if not parts:
        return Begun(Found.nothing(count), [])
    newest = max(parts, key=lambda part: (part.earlier, part.start))
    spent = together(part.found for part in parts if part.start == newest.start)
    calls, seconds, compile_seconds = newest.earlier
    found = together(part.found for part in parts)._replace(
        model_calls=calls + spent.model_calls,
        seconds=seconds + spent.seconds,
        compile_seconds=compile_seconds + spent.compile_seconds,
    )
    return Begun(found, parts)


def gathered(file: Partial, team: Team, own: Part, waiting: Callable[[], None]) -> list[Part]:
    """Writes this process's part and waits for those of all others; for complete ones if this one is complete.

    Args:
        file: of the finished attacks.
        team: the processes.
        own: this process's part.
        waiting: called again and again while others are waited for; may raise.
    """
    write(file, team, own)
    return [own if index == team.index else _wait_for(file, index, own, waiting) for index in range(team.count)]


def _wait_for(file: Partial, index: int, own: Part, waiting: Callable[[], None]) -> Part:
    place = _place(file, index, own.attack)
    seen = None
    while True:
        try:
            status = place.path.stat()
            # Some file systems keep times in steps of a second; a file in the place of another has another number.
            now = status.st_mtime_ns, status.st_ino
        except OSError:
            now = None
        if now not in (None, seen):
            seen = now
            part = place.read(lambda kept: _parse(kept, own.attack, len(own.found.finished)))
            if part is not None and _answers(part, own):
                return part
        waiting()
        time.sleep(WAIT)


def _answers(part: Part, own: Part) -> bool:
    """Whether a part of the same attack is of the same start, and complete if `own` is."""
    return part.start == own.start and (part.complete or not own.complete)


def _place(file: Partial, index: int, attack: int) -> Partial:
    # Two files in turn: a process may be an attack ahead of one that has yet to read what it found with the last.
    return file._replace(path=file.path.with_suffix(f".{index}.{attack % 2}{file.path.suffix}"))


def _paths(file: Partial) -> Iterable[Path]:
    return sorted(file.path.parent.glob(f"{file.path.stem}.*{file.path.suffix}"))


def _parse(kept: Kept, attack: int, count: int) -> Part | None:
    """A part of an attack on `count` images; None for a part of an earlier attack, which may be on other images."""
    facts, arrays = kept.facts, kept.arrays
    if facts["attack"] != attack:
        return None
    finished, claimed, broken, calls = (arrays[name] for name in ("finished", "claimed", "broken", "calls"))
    norms = {name.removeprefix("norm "): array for name, array in arrays.items() if name.startswith("norm ")}
    shown = arrays["shown"]
    params = [arrays[f"params {at}"] for at in range(sum(name.startswith("params ") for name in arrays))]
    each = (finished, claimed, broken, calls, *norms.values())
    if any(mask.dtype != bool for mask in each[:3]) or any(array.shape != (count,) for array in each):
        raise ValueError("its results are not one for each image")
    if shown.ndim != 1 or shown.dtype != np.int64 or any(len(leaf) != len(shown) for leaf in params):
        raise ValueError("its pictures are not one for each image")
    (spent, *times), (before, *times_before) = facts["costs"], facts["earlier"]
    seconds, compile_seconds = map(float, times)
    seconds_before, compile_before = map(float, times_before)
    return Part(
        attack,
        int(facts["start"]),
        bool(facts["complete"]),
        Found(finished, claimed, broken, calls, norms, int(spent), seconds, compile_seconds),
        (int(before), seconds_before, compile_before),
        shown,
        params,
    )
