"""`fit`: trains a preset, evaluates it and writes a report."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import jax
import tyro

from train import own, runs
from train.commands.owners import check_owners
from train.commands.placement import Placement, join
from train.config import Config, Model
from train.data import npz, places
from train.errors import ConfigError, Preempted, printable
from train.kinds import choose
from train.methods import METHODS
from train.methods.given import Given
from train.methods.penalties import RULES
from train.optimizers import OPTIMIZERS
from train.options import check, validate
from train.presets import find, table
from train.schedules import SCHEDULES
from train.tracing import parse_steps

if TYPE_CHECKING:
    MethodName: TypeAlias = str
    RuleName: TypeAlias = str
    OptimizerName: TypeAlias = str
    ScheduleName: TypeAlias = str
else:
    MethodName, RuleName, OptimizerName, ScheduleName = (
        Literal[tuple(name for name in kinds if name != "given")] for kinds in (METHODS, RULES, OPTIMIZERS, SCHEDULES)
    )


@dataclass(frozen=True)
class _Named:
    """The network that a command line names."""

    name: Annotated[str | None, tyro.conf.arg(name="model.name")] = None


USAGE = """\
usage: python -m train fit PRESET [options]        `fit PRESET --help` explains every option
       python -m train fit --resume RUN [options]  continues a run with the options stored in it
"""


@dataclass(frozen=True)
class Kinds:
    """Which method, optimizer, schedule and rule; each has options of its own, which this help then shows."""

    method: MethodName = "standard"
    """How the network is made robust; the options of the method are --method.*"""
    optimizer: OptimizerName = "sgd"
    """The optimizer; its options are --optimizer.*"""
    schedule: ScheduleName = "cosine"
    """How the learning rate changes over the run; the options of the schedule are --schedule.*"""
    rule: RuleName | None = None
    """How a gradient penalty is differentiated, by default exact; the options of the rule are --method.rule.*"""


@dataclass(frozen=True)
class Fit:
    """Trains a preset; every option overrides one of its values."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    kinds: Annotated[Kinds, tyro.conf.arg(name="")]
    run_dir: Path | None = None
    """The run folder; by default runs/PRESET."""
    resume: bool = False
    """Continue the run in that folder from its newest intact checkpoint;
    start it if there is no run or no checkpoint yet.
    Without a preset, `fit --resume RUN` takes every option from the run."""
    evaluate: bool = True
    """At the end, attack the trained network and write a report and pictures."""
    profile: str | None = None
    """START:STOP: trace these steps into `profile` in the run folder, for TensorBoard (xprof) and ui.perfetto.dev."""
    compilation_cache: str | None = None
    """Folder that keeps compiled programs for the next start, or off.
    By default what $JAX_COMPILATION_CACHE_DIR names, else `compiled` in $DEFORMREG_DATA or in
    ~/.cache/deformreg/data."""
    placement: Annotated[Placement, tyro.conf.arg(name="")] = field(default_factory=Placement)


def run(arguments: list[str]) -> int:
    """Trains and, unless told otherwise, evaluates; returns the exit code."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        print(table())
        return 0 if arguments else 2
    stored = None
    if arguments[0].startswith("-"):
        folder, stored, options = parse_continued(arguments)
    else:
        name, *rest = arguments
        options = parse(name, rest)
        folder = options.run_dir or Path("runs") / name
        _check_data_dir(options)
    placement = validate(options.placement)
    config, profile = check(options.config), parse_steps(options.profile) if options.profile else range(0)
    from train import compiled, processes
    from train.loop import fit, located

    networks = own.load([config.model.name] if own.is_own(config.model.name) else [])
    join(placement)
    compiled.keep(options.compilation_cache)
    # A run folder may be untrusted, so the data folder that it names is not written to.
    write_data = stored is None or stored.data.data_dir != config.data.data_dir
    here = located(config, folder, options.resume)  # before the run folder is there
    with processes.stop_on_sigterm() as stop_requested:
        fit(
            config,
            folder,
            model=networks.get(config.model.name),
            resume=options.resume,
            evaluated=options.evaluate,
            stop_requested=stop_requested,
            write_data=write_data,
            profile=profile,
        )
        # Of all processes: the others would wait in the evaluation for one that was asked alone.
        if any(processes.from_all(stop_requested())):
            print("stopped: SIGTERM after the last step: training is done, --resume evaluates it", file=sys.stderr)
            return Preempted.exit_code
    if processes.is_lead():
        print(printable(f"trained: {folder}"))
    if options.evaluate:
        from train.commands import evaluate

        runs.check_still_ours(folder)  # what is there would be evaluated, and its report written
        evaluation = evaluate.Evaluate(
            (folder,),
            data_dir=_own_place(here, runs.load_config(folder)),
            networks=tuple(networks),
            # In training they are those of all processes, which then take all.
            devices=config.devices if jax.process_count() == 1 else 0,
        )
        named = f" --model.name {config.model.name}" if networks else ""
        evaluate.compare(evaluation, again=f"`fit --resume {folder}{named}`")
    return 0


def _own_place(config: Config, stored: Config) -> str | None:
    """Where this process has the data, if the config in the run folder, which is that of process 0, has another place.

    It is named also where this process was given none: without a name the evaluation would look where process 0 does.

    Args:
        config: of this process, `located`.
        stored: in the run folder.
    """
    if (config.data.name, config.data.data_dir) == (stored.data.name, stored.data.data_dir):
        return None
    if config.data.data_dir is not None and places.path_of(config.data.name) is None:
        return config.data.data_dir
    return str(places.usual(config.data.name))


def _check_data_dir(options: Fit) -> None:
    """Raises `ConfigError` if a new training names a folder of data sets beside a file that holds its images."""
    data = options.config.data
    if data.data_dir is not None and not options.resume and npz.accepts(data.name, None):
        raise ConfigError(f"--data-dir has no effect on images in a file, {data.name}: leave it out")


def parse(name: str, arguments: list[str]) -> Fit:
    """The options of a command line after the preset's name.

    Raises:
        ConfigError: there is no such preset, `--rule` without a penalty, or an option of another method.
    """
    preset = find(name)
    return _parse(f"fit {name}", f"{preset}; {preset.source}", preset.config, arguments)


def parse_continued(arguments: list[str]) -> tuple[Path, Config, Fit]:
    """The run folder named after `--resume`, its config, and that config with the options of the command line.

    Raises:
        ConfigError: no folder is named, or the run's method comes from a script.
        RunError: it holds no run.
    """
    at = arguments.index("--resume") + 1 if "--resume" in arguments else len(arguments)
    if at == len(arguments) or arguments[at].startswith("-"):
        raise ConfigError("fit needs a preset, or --resume and the folder of a run: fit --resume runs/mnist5k-flow")
    folder = Path(arguments[at])
    stored = runs.load_config(folder)
    if isinstance(stored.method, Given):
        stored.method.make()
    rest = arguments[: at - 1] + arguments[at + 1 :]
    summary = f"Continues {folder}; options override the values stored there, as far as these may change."
    options = _parse(f"fit --resume {folder}", summary, stored, rest, run_dir=folder, resume=True)
    if options.run_dir != folder or not options.resume:
        raise ConfigError("--resume names the run folder here, without a preset: leave out --run-dir and --no-resume")
    return folder, stored, options


def _parse(command: str, summary: str, config: Config, arguments: list[str], **defaults: Any) -> Fit:
    prog = f"python -m train {command}"
    kinds = Kinds(*(options.name for options in (config.method, config.optimizer, config.schedule)))
    chosen, _ = tyro.cli(Kinds, prog=prog, args=arguments, default=kinds, return_unknown_args=True, add_help=False)
    named, _ = tyro.cli(_Named, prog=prog, args=arguments, return_unknown_args=True, add_help=False)
    if own.is_own(config.model.name) and named.name is None:
        raise ConfigError(
            f"the network {config.model.name} of this run is not part of this program, and a run folder may name "
            f"anything: to import it, say --model.name {config.model.name} again"
        )
    if named.name is not None and own.is_own(named.name) and named.name != config.model.name:
        config = replace(config, model=Model(name=named.name))  # the preset's options are those of another network
    config = choose(config, **vars(chosen))
    check_owners(arguments, config)
    return tyro.cli(
        Fit,
        prog=prog,
        args=arguments,
        default=Fit(config, chosen, **defaults),
        description=summary,
        config=(tyro.conf.AvoidSubcommands,),
    )
