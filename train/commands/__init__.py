"""The command line, `python -m train COMMAND`: one file a command, one line in `names`."""

from __future__ import annotations

import difflib
import importlib
import os
import re
import sys
import traceback
from collections.abc import Sequence
from functools import partial

from train import streams
from train.commands.names import COMMANDS

USAGE = f"""\
usage: python -m train COMMAND [options]

{chr(10).join(f"  {name} {text}" for name, text in COMMANDS.items())}

Exit codes:
  0    done
  1    verify found a damaged checkpoint, or an unexpected error with a traceback
  2    an option, a file or a run folder cannot be used, or a device is out of memory; one line says which
  3    loss, gradient or parameters became NaN or infinite
  4    the disk or another process failed; --resume continues a training, the same command another work
  130  interrupted from the keyboard; --resume continues from the last checkpoint
  134  JAX ended the process after another one was lost; --resume continues
  137  killed, for example because the host is out of memory; --resume continues
  143  stopped by SIGTERM; training saved its last step, and --resume continues from there
"""

_LESS_MEMORY = {
    "fit": "take --accumulate or a smaller --batch-size, in another --run-dir; on accelerators also --model.remat "
    "(with a gradient penalty only together with --rule forward-over-reverse; networks of your own lack it); in the "
    "evaluation --evaluation.batch-size",
    "evaluate": "`fit --resume RUN --no-evaluate --evaluation.batch-size N` stores a smaller batch for the attacks",
    "certify": "a smaller --batch-size takes less",
}

_LOST = re.compile(
    r"(UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|CANCELLED):|\bGloo\b|(closed|reset) by peer|remote process exited|"
    r"NCCL operation .* failed"
)
"""What errors say when another process is lost: of JAX's coordination service, of Gloo and of NCCL."""

UNUSABLE, FAILED, INTERRUPTED = 2, 4, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns the exit code; errors that a user can mend are one line on standard error."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    streams.prepare()
    return streams.until_closed(partial(_main, arguments))


def _main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0 if arguments else UNUSABLE
    name, *rest = arguments
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, 1, cutoff=0.65)
        remedy = f"did you mean {near[0]}?" if near else f"choose {', '.join(COMMANDS)}; --help explains them"
        return _fail(f"there is no command {name!r}: {remedy}")
    try:
        _prepare_jax()
    except ValueError as error:
        return _fail(f"JAX does not accept a variable of the environment: {error}: correct or unset it")
    from train import processes
    from train.errors import NonFiniteLoss, Preempted

    try:
        code = _run(name, rest)
    except Exception:
        traceback.print_exc()
        processes.leave(1)
        return 1
    if code not in (0, NonFiniteLoss.exit_code, Preempted.exit_code):  # these, all processes end with together
        processes.leave(code)
    return code


def _prepare_jax() -> None:
    """Undoes settings of JAX that are meant for a user's own code; Flax and this program do not keep to them.

    Raises:
        ValueError: JAX cannot be imported, because a variable of the environment has a value that it does not know.
    """
    import jax

    jax.config.update("jax_numpy_dtype_promotion", "standard")
    jax.config.update("jax_numpy_rank_promotion", "allow")
    jax.config.update("jax_transfer_guard", "allow")


def _run(name: str, arguments: list[str]) -> int:
    import jax

    from train.errors import Preempted, UserError, one_line
    from train.files import is_storage_failure

    resumes = name in ("fit", "launch")
    try:
        os.getcwd()
    except FileNotFoundError:
        return _fail("the current directory has been deleted: change to another one")
    try:
        code: int = importlib.import_module(f"train.commands.{name}").run(arguments)
        sys.stdout.flush()  # a full disk is an error of this command
        return code
    except BrokenPipeError:
        return streams.drop_output()
    except KeyboardInterrupt:
        how = "--resume continues from the last checkpoint" if resumes else "give the command again"
        return _fail(f"interrupted; {how}", INTERRUPTED)
    except Preempted as stop:
        print(f"stopped: {stop}", file=sys.stderr)
        return stop.exit_code
    except UserError as error:
        return _fail(str(error), error.exit_code)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in ("train", "deformreg"):
            raise
        return _fail(f"the package {error.name} is not installed: pip install -e .[train]")
    except OSError as error:
        streams.drop_output()  # of a standard output on a full disk
        return _fail(str(error), FAILED if is_storage_failure(error) else UNUSABLE)
    except (jax.errors.JaxRuntimeError, ValueError) as error:  # the latter where processes exchange numbers
        line = one_line(error)
        if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in line:
            return _fail(f"out of memory ({line}): {_LESS_MEMORY.get(name, _LESS_MEMORY['fit'])}")
        if jax.process_count() > 1 and _LOST.search(str(error)):
            how = "--resume continues" if resumes else "give the command again"
            return _fail(f"another process is gone or cannot be reached ({line}); {how}", FAILED)
        raise


def _fail(message: str, code: int = UNUSABLE) -> int:
    from train.errors import say

    say(f"error: {message}")
    return code
