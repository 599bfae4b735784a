"""The command line, in process: help, spelling, and one line for everything a user can mend."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from running import ROOT, run

from train.commands import COMMANDS
from train.presets import PRESETS

MEMORY = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 9 GiB")


def test_help_names_every_command(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == 0
    assert all(command in out for command in COMMANDS)
    assert max(map(len, out.splitlines())) <= 120


def test_no_command_is_an_error(capsys):
    assert run(capsys)[0] == 2


def test_presets_lists_them_all(capsys):
    code, out, _ = run(capsys, "presets")
    assert code == 0
    assert all(name in out for name in PRESETS)
    code, _, err = run(capsys, "presets", "--all")
    assert code == 2
    assert "presets takes no options, got --all" in err


def test_a_missing_package_is_named(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tyro", None)
    monkeypatch.delitem(sys.modules, "train.commands.verify", raising=False)
    code, _, err = run(capsys, "verify", "nowhere")
    assert code == 2
    assert "the package tyro is not installed: pip install -e .[train]" in err


def test_every_option_has_a_help_text(capsys):
    code, out, _ = run(capsys, "fit", "digits-flow", "--help")
    assert code == 0
    for option in ("--method", "--method.weight", "--data-dir", "--run-dir", "--resume", "--schedule"):
        assert option in out
    assert "pixels" in out


def test_a_coordinator_that_does_not_answer_is_named(capsys, tmp_path, monkeypatch):
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        options = (
            "--distributed",
            "--coordinator",
            address,
            "--num-processes",
            "2",
            "--process-id",
            "1",
            "--join-seconds",
            "0.3",
        )
        code, _, err = run(capsys, "fit", "digits-flow", *options, "--run-dir", str(tmp_path / "run"))
    assert code == 2
    assert f"--coordinator {address} has not answered for 0 s" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [
        (["fitt"], "'fitt': did you mean fit?"),
        (["resume", "runs/a"], "no command 'resume': choose fit, evaluate, report"),
        (["presets", "photos-flow"], "`fit PRESET --help` explains one"),
        (["fit", "digits-flwo"], "did you mean digits-flow?"),
        (["fit", "digits-flow", "--method.wieght", "3"], "--method.weight"),
        (["fit", "digits-flow", "--method", "magic"], "magic"),
        (["fit", "digits-flow", "--batch-size", "-3"], "--batch-size must be at least 1, got -3"),
        (["fit", "digits-flow", "--method.weight", "-1"], "--method.weight must be above 0, got -1"),
        (["fit", "digits-flow", "--method.weight", "nan"], "--method.weight must be a finite number, got nan"),
        (
            ["fit", "digits-standard", "--method.weight", "3"],
            "error: --method.weight is no option of the method standard: flow-gradient, input-gradient, ",
        ),
        (["fit", "digits-standard", "--method.weight=3"], "and --method flow-gradient chooses one of them"),
        (
            ["fit", "digits-flow", "--method.radius", "1"],
            "of the method flow-gradient: displacement, adversarial, deformation, ",
        ),
        (["fit", "digits-flow", "--method.slope_weight", "1"], "llr has it, and --method llr chooses that"),
        (["fit", "digits-flow", "--method", "cure", "--method.beta", "1"], "of the method cure: trades, mart have it"),
        (["fit", "digits-standard", "--method.rule.step-size", "1"], "is no option of the method standard: flow-gr"),
        (["fit", "digits-flow", "--method.rule.step-size", "1"], "and --rule finite-difference chooses that"),
        (["fit", "digits-flow", "--schedule.decay-epochs", "3"], "of the schedule cosine: step has it, and --schedule"),
        (["fit", "digits-flow", "--optimizer.beta1", "0.8"], "of the optimizer sgd: adamw, lamb"),
        (
            ["fit", "digits-flow", "--optimizer", "adamw", "--optimizer.no-nesterov"],
            "error: --optimizer.no-nesterov is no option of the optimizer adamw: sgd",
        ),
        (["fit", "digits-flow", "--model.stochastic-depth", "0.1"], "which small-cnn does not have; resnet-18 has it"),
        (["fit", "digits-flow", "--model.nrom", "group"], "--model.norm"),
        (["fit", "digits-standard", "--rule", "exact"], "--rule needs a method with a gradient penalty"),
        (
            ["fit", "digits-flow", "--model.norm", "device-batch", "--parallel", "jit"],
            "device-batch needs --parallel pmap",
        ),
        (["fit", "digits-flow", "--batch-size", "5000"], "--batch-size"),
        (["fit", "digits-flow", "--model.width", "1e30"], "--model.width must be at most 16, got 1e+30"),
        (
            ["fit", "digits-flow", "--schedule", "step", "--schedule.decay-epochs", "3", "-1"],
            "--schedule.decay-epochs must be",
        ),
        (["fit", "digits-flow", "--data.name", "no-such-set", "--data-dir", "."], "no-such-set"),
        (["fit", "cifar10-vgg11-flow-2022", "--data.name", "digits", "--augmentation.resize", "20"], "crop"),
        (["fit", "digits-flow", "--process-id", "1"], "need --distributed"),
        (["fit", "digits-flow", "--profile", "20:10"], "--profile must be START:STOP"),
        (["fit", "digits-flow", "--profile", "220:230"], "traces nothing: this training goes from step 0 to step 220"),
        (
            ["fit", "digits-flow", "--method.first-step", "219", "--method.every", "2"],
            "--method.first-step 219: the training ends after 220 steps, none of which takes the penalty",
        ),
        (["fit", "digits-flow", "--data.name", "a.npz"], "--data-dir has no effect on images in a file, a.npz: leave"),
        (["fit", "digits-flow", "--process-id", "1"], "--process-id and --join-seconds need --distributed"),
        (["fit", "digits-flow", "--join-seconds", "9"], "--join-seconds need --distributed"),
        (["fit", "digits-flow", "--augmentation.rand-strength", "0.5"], "needs --augmentation.rand above 0"),
        (["fit", "digits-flow", "--distributed", "--coordinator", "host"], "--coordinator must be HOST:PORT, got host"),
        (
            ["fit", "digits-flow", "--distributed", "--coordinator", "host:99999"],
            "--coordinator must be HOST:PORT, got h",
        ),
        (["launch"], "launch needs a command"),
        (["launch", "--processes", "2", "certify", "runs/x"], "certify runs in one process, without launch"),
        (["certify", "runs/x", "--distributed", "--process-id=1"], "leave out --distributed --process-id=1"),
        (["launch", "--processes", "0", "fit", "digits-flow"], "--processes must be at least 1, got 0"),
        (["launch", "--devices", "2", "fit", "digits-flow"], "--devices"),
        (
            ["launch", "fit", "digits-flow", "--process-id=1"],
            "launch tells each process its place: leave out --process-id",
        ),
        (["verify"], "verify"),
        (["verify", "no/such/run", "--json", f"{__file__}/x"], f"{__file__} is a file, not a folder"),
        (["verify", "no/such/run"], "no/such/run"),
        (["verify", "no/such/run", "no/such/../such/run"], "such/run is named twice: leave one out"),
        (["evaluate"], "evaluate"),
        (["evaluate", "no/such/run"], "no/such/run"),
        (["evaluate", "no/such/run", "--radius", "-1"], "--radius"),
        (["evaluate", "no/such/run", "--radius", "nan"], "--radius"),
        (["evaluate", "no/such/run", "--suite", "easy"], "easy"),
        (["evaluate", "no/such/run", "--radii", "0.5", "0.2"], "--radii must be increasing, got 0.5 0.2"),
        (["evaluate", "no/such/run", "--seed", "1" + "0" * 20], "--seed must be at most 4294967295, got 1000"),
        (["certify"], "certify needs a run folder"),
        (["certify", "no/such/run"], "no/such/run"),
        (["certify", "no/such/run", "--family", "shear"], "shear"),
        (["certify", "no/such/run", "--sigma", "0"], "--sigma must be above 0, got 0"),
        (["certify", "no/such/run", "--sigma", "1", "nan"], "--sigma must be a finite number, got nan"),
        (["certify", "no/such/run", "--sigma", "1", "2"], "--sigma must be 1 numbers"),
        (["certify", "no/such/run", "--family", "affine", "--sigma", "1"], "--sigma must be 6 numbers"),
        (["certify", "no/such/run", "--num-samples", "0"], "--num-samples must be at least 1, got 0"),
        (["certify", "no/such/run", "--num-samples", "9"], "certify nothing at --alpha 0.001"),
        (["certify", "no/such/run", "--num-selection", "0"], "--num-selection must be at least 1, got 0"),
        (["certify", "no/such/run", "--alpha", "1"], "--alpha must be below 1, got 1.0"),
        (["certify", "no/such/run", "--alpha", "1e-300"], "--alpha must be at least 1e-250, got 1e-300"),
        (["certify", "no/such/run", "--examples", "-1"], "--examples must be at least 0"),
        (["certify", "no/such/run", "--radii", "0.5", "0.2"], "--radii must be increasing"),
        (["certify", "no/such/run", "--stride", "0"], "--stride must be at least 1"),
        (["evaluate", "no/such/run", "--process-id", "1"], "need --distributed"),
        (["evaluate", "no/such/run", "--devices", "999"], "--devices must be at most"),
        (["evaluate", "no/such/run"], "holds no run: there is no config.json in it; give the folder"),
        (["certify", "no/such/run", "--stride", "2"], "--stride needs --family smooth, got flow"),
        (["certify", "no/such/run", "--batch-size", "0"], "--batch-size must be at least 1"),
        (["certify", "no/such/run", "--seed", "-1"], "--seed must be at least 0, got -1"),
    ],
)
def test_what_cannot_be_used_is_named(capsys, tmp_path, arguments, culprit):
    if arguments[0] == "fit":
        arguments = [*arguments, "--run-dir", str(tmp_path / "run")]
        if "--data-dir" not in arguments:
            arguments += ["--data-dir", str(tmp_path / "data")]
    code, _, err = run(capsys, *arguments)
    assert code == 2
    # tyro boxes its own messages and breaks their lines.
    assert culprit in " ".join(err.replace("│", " ").split())
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()


def test_a_file_is_no_run_folder(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        code, _, err = run(capsys, "fit", "digits-flow", "--run-dir", str(folder))
        assert code == 2
        assert err.startswith(f"error: {folder} cannot be a run folder, because {tmp_path / 'file'} is a file")


def test_photographs_as_the_place_of_an_embedded_set_are_a_mix_up(capsys, tmp_path):
    (tmp_path / "photos" / "train" / "cat").mkdir(parents=True)
    options = ("--data-dir", str(tmp_path / "photos"), "--run-dir", str(tmp_path / "run"))
    code, _, err = run(capsys, "fit", "digits-flow", *options)
    assert code == 2
    assert f"--data.name folder:{tmp_path / 'photos'} trains on it" in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("command", "error", "code", "words"),
    [
        ("fit", KeyboardInterrupt(), 130, "error: interrupted; --resume continues from the last checkpoint"),
        ("evaluate", KeyboardInterrupt(), 130, "error: interrupted; give the command again"),
        (
            "fit",
            MEMORY,
            2,
            "take --accumulate or a smaller --batch-size, in another --run-dir; on accelerators also --model.remat (",
        ),
        ("evaluate", MEMORY, 2, "`fit --resume RUN --no-evaluate --evaluation.batch-size N` stores a smaller batch"),
        ("certify", MEMORY, 2, "error: out of memory (RESOURCE_EXHAUSTED: 9 GiB): a smaller --batch-size takes less"),
    ],
)
def test_the_remedy_is_an_option_of_the_command(capsys, monkeypatch, command, error, code, words):
    def fail(_):
        raise error

    monkeypatch.setattr(f"train.commands.{command}.run", fail)
    assert run(capsys, command, "run")[0] == code
    _, _, err = run(capsys, command, "run")
    assert words in err
    assert err.count("\n") == 1


GLOO = "UNKNOWN: Gloo all-reduce failed: [external/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer"


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (jax.errors.JaxRuntimeError(GLOO), True),
        (ValueError(GLOO.replace("all-reduce", "AllGather")), True),  # of numbers that processes exchange
        (jax.errors.JaxRuntimeError("UNAVAILABLE: failed to connect to all addresses"), True),
        (jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED: Barrier timed out."), True),
        (jax.errors.JaxRuntimeError("INTERNAL: NCCL operation failed: remote process exited or there was a"), True),
        (jax.errors.JaxRuntimeError("INVALID_ARGUMENT: Executable expected parameter 0 of size 4"), False),
        (jax.errors.JaxRuntimeError("INTERNAL: ptxas exited with non-zero error code 1"), False),
        (ValueError("shapes do not match"), False),
    ],
)
@pytest.mark.parametrize(("command", "remedy"), [("fit", "--resume continues"), ("evaluate", "give the command again")])
def test_only_the_loss_of_a_process_is_said_to_be_one(capsys, monkeypatch, command, remedy, error, lost):
    def fail(_):
        raise error

    monkeypatch.setattr(f"train.commands.{command}.run", fail)
    code, _, err = run(capsys, command, "run")
    assert (code, "Traceback" in err) == (1, True)  # of one process
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    code, _, err = run(capsys, command, "run")
    if lost:
        assert (code, err) == (4, f"error: another process is gone or cannot be reached ({error}); {remedy}\n")
    else:
        assert (code, "Traceback" in err) == (1, True)


@pytest.mark.slow
def test_fit_evaluate_and_compare(capsys, tmp_path):
    options = ["--data-dir", str(tmp_path / "data"), "--epochs", "2", "--model.width", "0.25", "--devices", "1"]
    options += ["--evaluation.steps", "3", "--evaluation.examples", "100"]
    for name in ("standard", "flow"):
        code, out, err = run(
            capsys, "fit", f"digits-{name}", "--run-dir", str(tmp_path / name), "--no-evaluate", *options
        )
        assert code == 0, err
        assert str(tmp_path / name) in out
    folders = [str(tmp_path / name) for name in ("standard", "flow")]
    code, out, err = run(
        capsys, "evaluate", *folders, "--output", str(tmp_path / "both"), "--json", str(tmp_path / "out.json")
    )
    assert code == 0, err
    comparison = json.loads((tmp_path / "both" / "comparison.json").read_text())
    assert set(comparison) == {"standard", "flow"}
    for row in comparison.values():
        assert 0 < row["multi_step_accuracy"] < row["clean_accuracy"] <= 1
        assert row["train_seconds"] > 0
    assert "standard" in out
    for path in ("comparison.png", "comparison.md", "flow/examples.png", "flow/curve.png"):
        assert (tmp_path / "both" / path).stat().st_size > 100
    rows = json.loads((tmp_path / "out.json").read_text())
    assert rows["flow"]["attacks"]
    accuracies = [point["accuracy"] for point in rows["flow"]["curve"]]
    assert all(np.isfinite(accuracies))
    options_of_suites = ["--radii", "0.1", "0.2", "--independent", "--json", str(tmp_path / "one.json")]
    code, out, err = run(capsys, "evaluate", folders[1], "--transfer-from", folders[0], *options_of_suites)
    assert code == 0, err
    row = json.loads((tmp_path / "one.json").read_text())
    assert set(row["attacks"]) == {"multi-step", "any iterate", "transfer from standard"}
    assert len({attack["attacked"] for attack in row["attacks"].values()}) == 1
    assert [point["radius_pixels"] for point in row["curve"]] == [0, 0.1, 0.2]
    assert row["curve_examples"] == row["examples"] == 100
    assert 0 < row["mean_minimal_displacement"] <= 0.2
    assert (tmp_path / "flow" / "curve.csv").read_text().count("\n") == 4
    code, _, err = run(capsys, "fit", "digits-flow", "--run-dir", folders[1], *options)
    assert code == 2
    assert "already holds a run" in err


@pytest.mark.slow
def test_certify_a_run(capsys, tmp_path):
    options = ["--data-dir", str(tmp_path / "data"), "--epochs", "3", "--model.width", "0.25", "--devices", "1"]
    options += ["--method.random-start", "0.3", "--no-evaluate"]
    folder = tmp_path / "noisy"
    code, _, err = run(capsys, "fit", "digits-standard", "--run-dir", str(folder), *options)
    assert code == 0, err
    few = ["--num-samples", "200", "--examples", "12", "--batch-size", "150"]
    code, out, err = run(capsys, "certify", str(folder), *few, "--json", str(tmp_path / "flow.json"))
    assert (code, err) == (0, "")  # no progress bar where nobody watches
    assert str(folder / "certified.md") in out
    assert (folder / "certified.png").read_bytes().startswith(b"\x89PNG")
    row = json.loads((tmp_path / "flow.json").read_text())
    assert row == json.loads((folder / "certified.json").read_text())
    assert (row["family"], row["law"], row["sigma"], row["unit"], row["examples"]) == (
        "flow",
        "gaussian",
        [0.3],
        "px",
        12,
    )
    radii, right = np.array(row["radii"]), np.array(row["predictions"]) == row["labels"]
    assert 0.5 < row["smoothed_accuracy"] == right.mean() <= 1
    assert row["abstained"] == np.sum(radii == 0) == np.sum(np.array(row["predictions"]) == -1)
    assert row["mean_radius"] == pytest.approx(np.mean(radii * right))
    assert radii.max() <= row["ceiling"] < 0.3 * 1.9
    for point in row["curve"]:
        assert point["accuracy"] == pytest.approx(np.mean(right & (radii > point["radius"])))
    rotation = ["--family", "rotation", "--law", "uniform", "--sigma", "20", "--radii", "5", "--output", str(tmp_path)]
    code, _, err = run(capsys, "certify", str(folder), *few, *rotation)
    assert code == 0, err
    row = json.loads((tmp_path / "certified.json").read_text())
    assert (row["unit"], row["norm"]) == ("degrees", "l1 norm of the parameters")
    assert 5 < np.max(row["radii"]) <= row["ceiling"] < 20
    assert [point["radius"] for point in row["curve"]] == [5]
    code, _, err = run(capsys, "certify", str(folder), *few, "--family", "affine", "--output", str(tmp_path))
    assert code == 0, err
    row = json.loads((tmp_path / "certified.json").read_text())
    assert (row["unit"], len(row["sigma"])) == ("sigma", 6)
    assert row["norm"] == "l2 norm of the parameters, each divided by its sigma"


GONE = "/dev/null/gone"
HARMLESS = {  # each row is one start under all of its settings and limits of the shell
    "text": (
        {"HOME": GONE, "PYTHONIOENCODING": "ascii", "LC_ALL": "tr_TR.UTF-8", "LANG": "nonsense", "TERM": "dumb",
         "COLUMNS": "20", "NO_COLOR": "1", "PYTHONOPTIMIZE": "1", "TZ": "nonsense/zone"},
        "ulimit -n 64; ulimit -c 0; ulimit -t 600",
    ),
    "places and numbers": (
        {"HOME": None, "XDG_CACHE_HOME": GONE, "MPLCONFIGDIR": GONE, "TMPDIR": GONE, "PATH": "", "USER": None,
         "LOGNAME": None, "PYTHONDONTWRITEBYTECODE": "1", "LC_ALL": "POSIX", "PYTHONUTF8": "0",
         "PYTHONCOERCECLOCALE": "0", "COLUMNS": "nonsense", "TERM": None, "PYTHONWARNINGS": "error",
         "JAX_NUMPY_DTYPE_PROMOTION": "strict", "JAX_NUMPY_RANK_PROMOTION": "raise", "JAX_TRANSFER_GUARD": "disallow",
         "JAX_ENABLE_X64": "1", "JAX_DEBUG_NANS": "1", "JAX_CHECK_TRACER_LEAKS": "1", "JAX_DEFAULT_PRNG_IMPL": "rbg",
         "JAX_COMPILATION_CACHE_DIR": GONE, "OMP_NUM_THREADS": "nonsense"},
        "umask 077",
    ),
}  # fmt: skip


def start(command, setting, *, shell="", after=""):
    """Runs a command in the environment of the tests with other variables, of which None are unset."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), **setting}
    environment = {name: value for name, value in environment.items() if value is not None}
    line = f"{shell or ':'}; exec {shlex.join([sys.executable, '-m', 'train', *command])} {after}"
    return subprocess.run(
        ["/bin/sh", "-c", line], cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=900
    )


@pytest.mark.slow
@pytest.mark.parametrize("row", HARMLESS)
def test_a_training_goes_on_in_an_odd_environment(tmp_path, row):
    setting, shell = HARMLESS[row]
    command = ["fit", "digits-flow", "--epochs", "1", "--model.width", "0.25", "--data-dir", str(tmp_path / "data")]
    if row == "text":  # the report has the name of the folder, too
        command += ["--run-dir", str(tmp_path / "läuft"), "--evaluation.steps", "2", "--evaluation.examples", "20"]
    else:
        command += ["--run-dir", str(tmp_path / "run"), "--no-evaluate"]
    done = start(command, setting, shell=shell)
    said = done.stdout + done.stderr
    assert (done.returncode, "Traceback" in said) == (0, False), said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ({"JAX_PLATFORMS": "cuda"}, "JAX finds no device for JAX_PLATFORMS='cuda'"),
        ({"JAX_PLATFORMS": "nonsense"}, "JAX finds no device for JAX_PLATFORMS='nonsense'"),
        *(
            ({f"JAX_{name}": "nonsense"}, "JAX does not accept a variable of the environment: ")
            for name in ("NUM_CPU_DEVICES", "DEFAULT_PRNG_IMPL")  # read as a number, and as one of some words
        ),
    ],
)
def test_an_environment_without_remedy_is_named(tmp_path, setting, line):
    command = ["fit", "digits-flow", "--data-dir", str(tmp_path / "data"), "--run-dir", str(tmp_path / "run")]
    done = start(command, setting)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert done.stderr.startswith(f"error: {line}")
    assert next(iter(setting)).removeprefix("JAX_").lower() in done.stderr.lower()


@pytest.mark.slow
@pytest.mark.parametrize(("closed", "code"), [("2>&-", 0), (">&- 2>&- <&-", 0), (">/dev/full", 4)])
def test_closed_and_full_streams_end_nothing(closed, code):
    done = start(["presets"], {}, after=closed)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
    assert done.stderr == ("error: [Errno 28] No space left on device\n" if code else "")


@pytest.mark.slow
def test_a_deleted_current_directory_is_named(tmp_path):
    folder = tmp_path / "gone"
    folder.mkdir()
    done = start(["presets"], {}, shell=f"cd {folder} && rmdir {folder}")
    expected = (2, "error: the current directory has been deleted: change to another one\n")
    assert (done.returncode, done.stderr) == expected


@pytest.mark.parametrize("option", ["--run-dir", "--data-dir"])
def test_storage_of_other_hosts_is_refused_and_no_folder_made(capsys, tmp_path, monkeypatch, option):
    monkeypatch.chdir(tmp_path)
    code, _, err = run(capsys, "fit", "digits-flow", "--epochs", "1", option, "gs://bucket/place")
    assert code == 2
    assert "is no path of this host: mount the storage" in err
    assert list(tmp_path.rglob("gs:*")) == []
