"""The command line: ``python -m train {fit,evaluate,certify,verify,launch,presets}``."""

from __future__ import annotations

import difflib
import math
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal

import jax
import tyro

from train import processes
from train.config import Config, ConfigError, check, check_effect
from train.presets import find, table
from train.processes import PREEMPTED

DAMAGED, UNUSABLE, NON_FINITE, FAILED = 1, 2, 3, 4
_TOGETHER = (0, NON_FINITE, PREEMPTED)  # how all processes end, each waiting for the others

USAGE = """\
usage: python -m train COMMAND [options]

  fit PRESET [options]    train a preset, evaluate it, write a report; `fit PRESET --help` explains every option
  evaluate RUN [RUN ...]  attack trained runs and compare them; `evaluate --help`
  certify RUN             radii that no deformation of a family beats, by randomized smoothing; `certify --help`
  verify RUN [RUN ...]    check every checkpoint against its checksums; `verify --help`
  launch fit PRESET ...   the same training in several processes of this host; `launch --help`
  presets                 what each preset trains, how long it takes, what to expect

Exit codes:
  0    done
  1    verify found damage
  2    something given cannot be used; one line says what
  3    the loss became NaN or infinite
  4    the disk or another process failed a run that was under way; --resume continues
  130  interrupted from the keyboard; --resume continues from the last checkpoint
  143  SIGTERM; a run that was training has saved its last step, and --resume continues from there
"""


@dataclass(frozen=True)
class Fit:
    """Trains a preset; every option overrides one of its values."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    run_dir: Path | None = None
    """The run folder; by default runs/PRESET."""
    resume: bool = False
    """Continue the run in that folder from its newest intact checkpoint; starts it where there is none."""
    evaluate: bool = True
    """Attack the trained network at the end and write report and pictures."""
    distributed: bool = False
    """This is one process of several, on one host or on many, that train together; each reads its part of every
    batch, and all need the run folder on one file system. See docs/distributed.md."""
    coordinator: str | None = None
    """With --distributed: HOST:PORT of process 0. By default $JAX_COORDINATOR_ADDRESS, or what SLURM, Open MPI,
    Kubernetes or a TPU pod say; likewise the next two."""
    num_processes: int | None = None
    """With --distributed: how many processes there are. By default $JAX_NUM_PROCESSES."""
    process_id: int | None = None
    """With --distributed: which one this is, from 0. By default $JAX_PROCESS_ID."""


@dataclass(frozen=True)
class Evaluate:
    """Attacks trained runs on their test images and compares them."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders, of the same test images."""
    suite: Literal["released", "quick", "standard", "full", "spatial"] = "released"
    """released: the paper's multi-step attack (zero start, last iterate); quick, standard, full: any iterate counts,
    more attacks, restarts. spatial: translations by at most the radius, with rotations by at most 10 degrees for
    every pixel of it (the paper: 3 pixels)."""
    radius: float | None = None
    """Largest displacement per component in pixels; by default the first run's `evaluation.radius`."""
    radii: tuple[float, ...] = ()
    """Budgets in pixels at which the whole suite draws the accuracy curve; by default a light attack draws it, at
    five multiples of the radius, on 200 images."""
    independent: bool = False
    """Run every attack on every correctly classified image, so that the attacks compare with each other; by default
    each is run on those that still stand."""
    transfer_from: tuple[Path, ...] = ()
    """Run folders of other networks: the images deformed to fool them are shown to the evaluated ones as well."""
    examples: int = 0
    """Test images, from the first; 0 for the run's own choice."""
    data_dir: str | None = None
    """Where the data lies, if it has moved since training."""
    output: Path | None = None
    """Folder for all that is written, with a sub-folder for each of several runs. By default the evaluation and its
    pictures go into each run folder, and the comparison of several runs into the folder above the first one."""
    json: Path | None = None
    """Also write the evaluation (of several runs: all, by name) to this file, for scripts."""
    seed: int = 0
    """Seed of the attacks' random numbers."""


@dataclass(frozen=True)
class Verify:
    """Checks every checkpoint of runs: all arrays against their checksums, and the config against the run's."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders."""
    json: Path | None = None
    """Also write the findings to this file, for scripts."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns the exit code; errors that a user can mend are one line on standard error."""
    try:
        code = _run(list(sys.argv[1:] if arguments is None else arguments))
    except Exception:
        if jax.distributed.is_initialized():
            traceback.print_exc()
            processes.leave(1)
        raise
    if code not in _TOGETHER:
        processes.leave(code)
    return code


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0 if arguments else 2
    commands: dict[str, Callable[[list[str]], int]] = {
        "fit": _fit,
        "evaluate": _evaluate,
        "certify": _certify,
        "verify": _verify,
        "launch": _launch,
        "presets": lambda _: print(table()) or 0,
    }
    command, *rest = arguments
    if command not in commands:
        near = difflib.get_close_matches(command, commands, 1)
        return _fail(f"there is no command {command!r}: " + (f"did you mean {near[0]}?" if near else "see --help"))
    try:
        return commands[command](rest)
    except BrokenPipeError:
        # The reader (`| head`) has seen enough; Python must not complain at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except processes.Preempted as stop:
        print(f"stopped: {stop}", file=sys.stderr)
        return PREEMPTED
    except KeyboardInterrupt:
        return _fail("interrupted; --resume continues from the last checkpoint", 130)
    except (ValueError, OSError, RuntimeError) as error:
        code, message = _explain(error)
        if not code:
            raise
        return _fail(message, code)


def _explain(error: Exception) -> tuple[int, str]:
    """Exit code and message of an error that the user can mend; 0 for any other."""
    from train.checkpoints import CheckpointError
    from train.data import DataError
    from train.loop import NonFiniteLoss
    from train.runs import RunError, StorageError, is_storage_failure

    if isinstance(error, NonFiniteLoss):
        return NON_FINITE, str(error)
    if isinstance(error, StorageError) or is_storage_failure(error):
        return FAILED, str(error)
    if isinstance(error, (ConfigError, DataError, RunError, CheckpointError, OSError)):
        return UNUSABLE, str(error)
    line = (str(error).strip().splitlines() or [""])[0]
    if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in line:
        return UNUSABLE, f"out of memory ({line:.200}): --accumulate, --model.remat or a smaller --batch-size take less"
    if isinstance(error, jax.errors.JaxRuntimeError) and jax.process_count() > 1:
        return FAILED, f"another process of this run is gone or cannot be reached ({line}); --resume continues"
    return 0, ""


def _fail(message: str, code: int = 2) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code


def _fit(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: python -m train fit PRESET [options]; `fit PRESET --help` explains every option\n")
        print(table())
        return 0 if arguments else 2
    name, *rest = arguments
    preset = find(name)
    options = tyro.cli(
        Fit, prog=f"python -m train fit {name}", args=rest, default=Fit(preset.config), description=preset.summary
    )
    config = check(options.config)
    check_effect(config, preset.config)
    placement = (options.coordinator, options.num_processes, options.process_id)
    if options.distributed:
        processes.join(*placement)
    elif any(value is not None for value in placement):
        return _fail("--coordinator, --num-processes and --process-id belong to --distributed")
    folder = options.run_dir or Path("runs") / name
    from train import loop

    with processes.stop_on_sigterm() as stop_requested:
        loop.fit(config, folder, resume=options.resume, evaluated=options.evaluate, stop_requested=stop_requested)
        if stop_requested():
            return _fail("SIGTERM after the last step: the run is trained, --resume evaluates it", PREEMPTED)
    if processes.is_lead():
        print(f"trained: {folder}")
        if options.evaluate:
            _compare(Evaluate((folder,)))
    return 0


def _evaluate(arguments: list[str]) -> int:
    options = tyro.cli(Evaluate, prog="python -m train evaluate", args=arguments)
    if not options.runs:
        return _fail("evaluate needs at least one run folder, for example runs/mnist5k-flow")
    if options.radius is not None and not 0 < options.radius < math.inf:
        return _fail(f"--radius must be above 0 pixels, got {options.radius}")
    if not all(low < high for low, high in pairwise((0, *options.radii, math.inf))):
        return _fail(f"--radii must increase from above 0 pixels, got {' '.join(map(str, options.radii))}")
    if options.examples < 0:
        return _fail(f"--examples must be at least 0, got {options.examples}")
    if not 0 <= options.seed < 2**32:
        return _fail(f"--seed must be in 0..4294967295, got {options.seed!s:.80}")
    return _compare(options)


def _certify(arguments: list[str]) -> int:
    from train import certification, reports, runs

    options = certification.parse(arguments)
    folder = options.output or options.run
    reports.check_writable([folder], options.json)
    certified = certification.certify_run(options)
    reports.write_certified(folder, runs.short_names([options.run])[0], certified)
    if options.json:
        runs.write_json(options.json, certified.row)
    return 0


def _verify(arguments: list[str]) -> int:
    from train import checkpoints, runs

    options = tyro.cli(Verify, prog="python -m train verify", args=arguments)
    if not options.runs:
        return _fail("verify needs at least one run folder, for example runs/mnist5k-flow")
    findings: dict[str, dict[int, str | None]] = {}
    for folder in options.runs:
        found = findings[str(folder)] = {}
        config = runs.load_config(folder)
        for step, damage in checkpoints.verify(runs.Run(folder).checkpoints, config):
            found[step] = damage
            print(f"{folder}: step {step}: {damage or 'intact'}", flush=True)
        if not found:
            print(f"{folder}: no checkpoint")
    if options.json:
        runs.write_json(options.json, findings)
    return DAMAGED if any(damage for found in findings.values() for damage in found.values()) else 0


def _launch(arguments: list[str]) -> int:
    from train import launch

    return launch.main(arguments)


def _compare(options: Evaluate) -> int:
    from train import evaluation, reports, runs

    trained = evaluation.open_runs(options.runs, data_dir=options.data_dir, examples=options.examples)
    radius = trained[0].config.evaluation.radius if options.radius is None else options.radius
    sources = evaluation.open_sources(options.transfer_from, trained[0], data_dir=options.data_dir)
    protocol = evaluation.Protocol(options.suite, radius, options.radii, options.independent, sources, options.seed)
    folders, above = reports.places(options.runs, options.output), options.output or options.runs[0].parent
    reports.check_writable(folders if len(folders) == 1 else [*folders, above], options.json)
    studies = {}
    for name, folder, run in zip(runs.short_names(options.runs), folders, trained, strict=True):
        studies[name] = evaluation.evaluate_run(name, run, protocol)
        reports.write_run_report(folder, name, studies[name], run.class_names)
    if len(studies) > 1:
        reports.write_comparison(above, studies, trained[0].class_names)
    if options.json:
        rows = {name: study.row for name, study in studies.items()}
        runs.write_json(options.json, next(iter(rows.values())) if len(rows) == 1 else rows)
    return 0
