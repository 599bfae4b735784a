"""The command line, ``python -m benchmarks NAME``: one file a benchmark, one line in `BENCHMARKS`."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence
from functools import partial

from train import streams
from train.errors import ConfigError, UserError, say

BENCHMARKS = {
    "cost": "one training step per method",
    "kernels": "the warp and its gradients, against other samplers and a copy",
    "attacks": "images per second of the multi-step attack",
    "input": "a preset's steps with its data; photographs read by this program and by others",
    "storage": "training steps while a checkpoint is written",
    "peers": "a training step, against plain PyTorch",
    "interop": "a PyTorch network called from JAX, against plain PyTorch",
    "pods": "training steps compiled for TPU pods, without one",
    "robustness": "accuracies of trained runs beside the cost of their steps",
    "claims": "the paper's claims, as a grid of trainings",
    "certified": "certified radii with and without the flow gradient penalty and noise in training",
    "tuned": "the flow gradient penalty for a few epochs from a trained network, and from random weights",
    "transfer": "deformations that fool one network, shown to the others",
    "ranking": "attacks by how near they come to the smallest known budgets",
    "report": "writes the tables and plots of docs/benchmarks.md, docs/results.md and docs/attacks.md",
}
"""What each benchmark measures; the module of that name in this folder has its `Options` and `run`.

`run` takes the options and returns rows, which are printed and written to `--json`, or a text, which is printed.
"""

USAGE = f"""\
usage: python -m benchmarks NAME [options]

{chr(10).join(f"  {name:<11} {text}" for name, text in BENCHMARKS.items())}

`python -m benchmarks NAME --help` explains the options. An option with several values is measured for each of them.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a benchmark and returns the exit code; errors that a user can mend are one line on standard error."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    streams.prepare()
    return streams.until_closed(partial(_main, arguments))


def _main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0 if arguments else 2
    try:
        name, *rest = arguments
        if name not in BENCHMARKS:
            near = difflib.get_close_matches(name, BENCHMARKS, 1)
            raise ConfigError(
                f"there is no benchmark {name!r}: " + (f"did you mean {near[0]}?" if near else "see --help")
            )
        _run(name, rest)
        sys.stdout.flush()  # a full disk is an error of this command
    except UserError as error:
        say(f"error: {error}")
        return error.exit_code
    except BrokenPipeError:
        return streams.drop_output()
    except OSError as error:
        streams.drop_output()  # of a standard output on a full disk
        say(f"error: {error}")
        return 2
    return 0


def _run(name: str, arguments: list[str]) -> None:
    import tyro

    from benchmarks import rows
    from train.options import validate

    benchmark = importlib.import_module(f"benchmarks.{name}")
    options = validate(tyro.cli(benchmark.Options, prog=f"python -m benchmarks {name}", args=arguments))
    file = getattr(options, "json", None)
    if file is not None:
        rows.check_writable(file)
    result = benchmark.run(options)
    if file is not None:
        rows.write(file, [name, *arguments], result)
    print(result if isinstance(result, str) else rows.table(result))
    if file is not None:
        print(f"written: {file}")
