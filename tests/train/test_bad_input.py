"""Generated bad input: whatever is given, one line names the culprit, the exit code is 2, and nothing hangs.

Every input is bad by construction, so each recipe below knows what a message must name. The default run takes a few of
each kind, ``python -m pytest tests/train/test_bad_input.py -m slow --bad-inputs 250 --bad-commands 50`` a thousand, and
50 more as commands of their own.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

from train.commands import main
from train.config import Config
from train.errors import ConfigError
from train.methods.gradient import FlowGradientDeformation
from train.methods.penalties import FiniteDifference
from train.options import from_json, to_json
from train.schedules import Step

RICH = Config(method=FlowGradientDeformation(rule=FiniteDifference()), schedule=Step())
"""A config of the kinds with the most options, which `CHOSEN` chooses on the command line."""

CHOSEN = ("--method", RICH.method.name, "--rule", RICH.method.rule.name, "--schedule", RICH.schedule.name)

LIMIT = 60  # seconds, in process; a hang is an error

OUT_OF_RANGE = {
    "epochs": (0, -1, 10**7, 10**30),
    "batch_size": (0, -5, 10**9),
    "accumulate": (0, -1, 3, 10**12),
    "seed": (-1, 2**32, 10**30),
    "devices": (-1, 10**6),
    "log_every": (0, -7, 10**12),
    "checkpoint_every": (-1, 10**12),
    "max_skipped": (-1, 10**12),
    "data.max_unreadable": (-1, 10**12),
    "data.holdout": (-0.1, 1.0, 7.5),
    "data.image_size": (0, -3, 10**6),
    "augmentation.resize": (-1, 10**6),
    "augmentation.crop": (-1, 10**6),
    "augmentation.shift": (-1, 10**6),
    "augmentation.min_area": (0.0, 1.5),
    "augmentation.erase": (-0.1, 1.5),
    "model.width": (0.0, -1.0, 16.5, 1e300),
    "method.weight": (0.0, -1.0, 1e10, 1e300),
    "method.rule.step_size": (0.0, -1.0),
    "method.share": (0.0, 1.5),
    "method.every": (0, -2, 10**12),
    "method.random_start": (-0.5, 1e10),
    "method.radius": (0.0, -1.0, 1e10),
    "method.steps": (0, 10**9),
    "method.step_size": (0.0, -1.0),
    "optimizer.learning_rate": (0.0, -0.1, 1e10),
    "optimizer.momentum": (-0.1, 1.0),
    "optimizer.weight_decay": (-1.0, 1e10),
    "optimizer.clip_norm": (-1.0, 1e10),
    "average": (-0.1, 1.0),
    "labels.smoothing": (-0.1, 1.0),
    "labels.mixup": (-0.1, 1e10),
    "labels.cutmix": (-0.1, 1e10),
    "schedule.decay_factor": (0.0, -1.0, 2.0),
    "schedule.warmup_epochs": (-1.0, 1e8),
    "evaluation.radius": (-1.0, 1e10),
    "evaluation.steps": (0, 10**9),
    "evaluation.examples": (-1, 10**12),
    "evaluation.batch_size": (0, 10**9),
}
FLOATS = [path for path, values in OUT_OF_RANGE.items() if isinstance(values[0], float)]
WORDS = st.text("abcdefghijklmnopqrstuvwxyz", min_size=3, max_size=12).filter(
    lambda word: word not in str(asdict(RICH))
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def option(path):
    return "--" + path.replace("_", "-")


def out_of_range(path, value):
    """The start of the message about a number that its option does not take."""
    limits = "divide --batch-size" if (path, value) == ("accumulate", 3) else "be "
    return f"{option(path)} must {limits}"


def leaves(tree, prefix=""):
    for name, value in tree.items():
        yield from leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else [f"{prefix}{name}"]


def changed(path, value):
    tree = json.loads(to_json(RICH))
    inner = tree
    *parents, name = path.split(".")
    for parent in parents:
        inner = inner[parent]
    inner[name] = value
    return json.dumps(tree)


LEAVES = sorted(leaves(asdict(RICH)))
BAD_NUMBERS = st.sampled_from([(path, value) for path, values in OUT_OF_RANGE.items() for value in values]) | st.tuples(
    st.sampled_from(FLOATS), st.sampled_from([float("nan"), float("inf"), float("-inf")])
)


# Recipes: a folder to write into -> the command's arguments and phrases, one of which its message must have.


@st.composite
def configs(draw):
    """A run folder whose config is broken: wrong type, unknown field, number out of range, no JSON, no text."""
    kind = draw(st.sampled_from(["type", "field", "number", "cut", "bytes", "deep"]))
    if kind == "type":
        # No field is a table or a list of lists, and none takes a text that is not one of its choices.
        value = draw(st.dictionaries(st.text(max_size=5), JSON, max_size=3) | st.lists(st.lists(JSON), min_size=1))
        path = draw(st.sampled_from(LEAVES))
        # A kind is chosen by its name: the message is about the option that chooses it.
        kinds = ("method.name", "method.rule.name", "optimizer.name", "schedule.name")
        named = option(path.removesuffix(".name") if path in kinds else path)
        content, said = (
            changed(path, value),
            [f"config.json: {named}: input should be", f"config.json: {named} must be"],
        )
    elif kind == "field":
        path = draw(st.sampled_from(["", "data.", "model.", "method.", "optimizer.", "evaluation."])) + draw(WORDS)
        content, said = changed(path, draw(JSON)), [f"the config has no field '{path}'"]
    elif kind == "number":
        path, value = draw(BAD_NUMBERS)
        content, said = changed(path, value), [f"config.json: {out_of_range(path, value)}"]
    elif kind == "cut":
        content, said = to_json(RICH)[: draw(st.integers(0, 1000))], ["config.json: the config is not JSON: EOF"]
    elif kind == "bytes":
        content, said = draw(st.binary(max_size=100)) + b"\xff", ["config.json: 'utf-8' codec can't decode"]
    else:
        said = [
            "the config is not JSON: EOF",
            "the config is not JSON: recursion limit",
            "is larger than 1048576 bytes",
        ]
        content = draw(st.sampled_from(["[", '{"a":', '{"data":'])) * draw(st.sampled_from([100, 10_000, 200_000]))

    def write(folder):
        path = folder / "run" / "config.json"
        path.parent.mkdir()
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return ["evaluate", str(path.parent)], said

    return write


@st.composite
def arrays(draw):
    """An ``.npz`` file that cannot be trained on."""
    count = draw(st.integers(16, 24))
    images, labels = np.zeros((count, 8, 8, 1), np.uint8), np.arange(count) % 3
    members = {"images": images, "labels": labels}
    said = "a.npz: not a readable .npz file"  # cut, a bit, bytes
    kind = draw(
        st.sampled_from(["dtype", "shape", "keys", "count", "label", "names", "cut", "bit", "objects", "bytes"])
    )
    if kind == "dtype":
        name, dtype = draw(st.sampled_from(sorted(members))), draw(st.sampled_from(["f4", "f8", "U3", "c8", "m8", "?"]))
        members[name] = members[name].astype(dtype)
        said = f"a.npz, {name}: {members[name].dtype} "
    elif kind == "shape":
        members["images"] = np.zeros(
            draw(st.sampled_from([(0, 8, 8), (count, 64), (count,), (), (count, 8, 8, 2)])), "u1"
        )
        shape = members["images"].shape
        said = f"a.npz, images: shape {shape} {'is empty' if shape == (0, 8, 8) else ''}".rstrip()
    elif kind == "keys":
        word = draw(WORDS)
        members[word] = members.pop(draw(st.sampled_from(sorted(members))))
        said = f"a.npz: no split 'train' in the keys {', '.join(sorted(members))}; expected images and labels"
    elif kind == "count":
        members["labels"] = np.zeros(draw(st.integers(0, 40).filter(lambda number: number != count)), int)
        said = f"a.npz, labels: shape {members['labels'].shape}, expected ({count},)"
    elif kind == "label":
        number, label = draw(st.integers(0, count - 1)), draw(st.integers(-(2**63), -1) | st.integers(2**16, 2**63 - 1))
        labels[number] = label
        said = f"of example {number} is not in 0..2" if label < 0 else f"labels: {label + 1} classes are over"
    elif kind == "names":
        members["class_names"] = draw(st.sampled_from([np.array(["a"]), np.array([1, 2, 3]), np.array(["a", "b"])]))
        few = len(members["class_names"])
        said = "a.npz: class_names" if few == 3 else f"label {few} of example {few} is not in 0..{few - 1}"
    elif kind == "objects":
        name = draw(st.sampled_from(sorted(members)))
        members[name] = np.array([None] * count)
        said = f"a.npz: {name} is an array of Python objects"
    position = draw(st.floats(0, 0.999))

    def write(folder):
        path = folder / "a.npz"
        np.savez(path, **members)
        content = bytearray(path.read_bytes())
        if kind == "cut":
            content = content[: int(position * len(content))]
        elif kind == "bit":  # in the images: their checksum stands in the file
            content[content.index(bytes(64)) + int(position * 64)] ^= 1
        elif kind == "bytes":
            content = bytearray(np.random.default_rng(count).bytes(int(position * 1000)))
        path.write_bytes(content)
        return fit(folder, "--data.name", str(path)), [said]

    return write


@cache
def bomb():
    """A small file of 400 million pixels."""
    content = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(content, format="PNG")
    return content.getvalue()


DECODED = ("noise", "empty", "cut", "format")
SAID = dict.fromkeys(DECODED, "the image cannot be decoded (") | {
    "size": "16 x 17 pixels (height x width), the first image has 16 x 16", "deep": "16 bits, not 8 bits a channel",
    "folder": "not a regular file", "pipe": "not a regular file", "link": "a symbolic link", "bomb": "over the limit",
}  # fmt: skip
"""What a message says after the path of the image, by what is wrong with it."""


@st.composite
def images(draw):
    """A folder with one file in it that is no image of its kind."""
    suffix = draw(st.sampled_from(["png", "jpg", "bmp", "webp"]))
    kind = draw(st.sampled_from(list(SAID)))
    split, index = draw(st.sampled_from(["train", "test"])), draw(st.integers(0, 7))
    noise, share = draw(st.binary(min_size=1, max_size=200)), draw(st.floats(0.05, 0.5))
    format_ = draw(st.sampled_from(["EPS", "TIFF", "GIF", "PPM", "ICO", "PDF", "TGA"]))

    def write(folder):
        rng = np.random.default_rng(0)
        for number in range(32):
            path = folder / "set" / ("train", "test")[number % 2] / "ab"[number // 16] / f"{number:02}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(path)
        path = sorted((folder / "set" / split).rglob(f"*.{suffix}"))[index]
        content = path.read_bytes()
        path.unlink()
        if kind in ("noise", "empty", "cut"):
            path.write_bytes({"noise": b"\0" + noise, "empty": b"", "cut": content[: int(share * len(content))]}[kind])
        elif kind == "size":
            Image.new("RGB", (17, 16)).save(path)
        elif kind == "deep":
            Image.fromarray(np.full((16, 16), 40_000, np.uint16)).save(path.with_name("deep.png"))
            path.with_name("deep.png").rename(path)
        elif kind == "format":
            Image.new("RGB", (16, 16)).save(path.with_name("tmp"), format=format_)
            path.with_name("tmp").rename(path)
        elif kind == "folder":
            path.mkdir()
        elif kind == "pipe":
            os.mkfifo(path)
        elif kind == "link":
            path.symlink_to(next(path.parent.iterdir()))
        else:
            path.write_bytes(bomb())
        # The test images are decoded after the training images: both before the first step.
        # Where the first image has another size than the others, they have another than it.
        said = [f"{path}: {SAID[kind]}", *(["the first image has 16 x 17"] if kind == "size" else [])]
        return fit(folder, "--data.name", f"folder:{folder / 'set'}"), said

    return write


@st.composite
def argument_lists(draw):
    """A command line with a mistake in it."""
    kind = draw(st.sampled_from(["number", "text", "choice", "option", "value", "preset", "command", "data", "run"]))
    path, value = draw(BAD_NUMBERS)
    word, text = draw(WORDS), draw(st.text(max_size=30))
    choice = draw(
        st.sampled_from(
            ["model.name", "model.norm", "model.dtype", "method", "rule", "schedule", "optimizer", "parallel"]
        )
    )
    unknown = "is not a data set's name, an existing folder or an .npz file"
    name, said = draw(
        st.sampled_from(
            [
                (text, [f"{text!r} {unknown}", f"data set {text!r} is not prepared"]),
                (f"{word}.npz", [f"/{word}.npz: no such file"]),
                (f"folder:{word}", [f"/{word}: no such folder"]),
                (f"~{word}/x", [f"'~{word}/x': there is no such user"]),
                ("/" * 300 + word, [f"/{word}' {unknown}"]),
                (word * 100, [f"File name too long: '{word}"]),
            ]
        )
    )
    where = draw(st.sampled_from([f"{word}/x", text + "/" + word, f"~{word}/x", "\0" + word, word * 100]))

    def write(folder):
        recipes = {
            "number": (fit(folder, option(path), str(value)), [f"error: {out_of_range(path, value)}"]),
            "text": (fit(folder, option(path), word), [f"Error parsing {option(path)}: "]),
            "choice": (fit(folder, option(choice), word), [f"'{word}'"]),
            "option": (fit(folder, "--" + word, "1"), [f"Unrecognized options: --{word}"]),
            "value": (fit(folder, option(path)), [option(path)]),
            "preset": (["fit", word], [f"there is no preset '{word}'"]),
            "command": ([word, "x"], [f"there is no command '{word}'"]),
            "data": (fit(folder, "--data.name", name), said),
            "run": (["evaluate", where], ["holds no run: there is no config.json in it", "File name too long"]),
        }
        return recipes[kind]

    return write


def fit(folder, *options):
    """The arguments of a short training run in a folder."""
    fixed = ["--run-dir", str(folder / "run"), "--data-dir", str(folder / "cache"), "--batch-size", "8"]
    given_ = {option for option in options if option.startswith("--")}
    if any(option.endswith(".npz") for option in options):
        given_.add("--data-dir")  # without effect on a file, and so refused
    pairs = [pair for pair in zip(fixed[::2], fixed[1::2], strict=True) if pair[0] not in given_]
    return ["fit", "digits-flow", *(word for pair in pairs for word in pair), "--devices", "1", *CHOSEN, *options]


KINDS = {"configs": configs, "arrays": arrays, "images": images, "argument lists": argument_lists}


class Hang(BaseException):
    """Not an `Exception`, so that nothing in the program catches it."""


def in_process(arguments):
    """Exit code and messages of a command in this process."""

    def expire(*_):
        raise Hang(arguments)

    errors = io.StringIO()
    before = signal.signal(signal.SIGALRM, expire)
    signal.alarm(LIMIT)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
            code = main(arguments)
    except SystemExit as exit_:
        code = exit_.code
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return code, errors.getvalue()


def as_command(arguments):
    """Exit code and messages of a command as it is typed."""
    words = [word.replace("\0", "").encode(errors="ignore") for word in arguments]
    command = [sys.executable, "-m", "train", *words]
    done = subprocess.run(command, capture_output=True, timeout=10 * LIMIT, check=False, cwd=Path(__file__).parents[2])
    return done.returncode, done.stderr.decode(errors="replace")


def judge(run, write):
    """Runs a recipe; raises if the outcome is not one line with one of its phrases, with exit code 2."""
    with tempfile.TemporaryDirectory() as folder:
        arguments, phrases = write(Path(folder))
        code, errors = run(arguments)
        trained = list(Path(folder, "run").glob("checkpoints"))
    # tyro boxes its own messages and breaks their lines.
    message = " ".join(errors.replace("│", " ").split())
    shown = f"{arguments}\n{errors[-3000:]}"
    assert code == 2, shown
    assert "Traceback" not in errors, shown
    assert "Warning" not in errors, shown
    assert any(phrase in message for phrase in phrases), f"{phrases}\n{shown}"
    assert errors.startswith("error: ") <= (errors.count("\n") == 1), shown
    assert not trained, shown


def examine(run, kind, count):
    """Judges so many inputs of a kind and returns how many there were."""
    judged = 0

    @seed(5)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(KINDS[kind]())
    def each(write):
        nonlocal judged
        judge(run, write)
        judged += 1

    each()
    return judged


@pytest.mark.parametrize("kind", list(KINDS))
def test_bad_input_is_named(kind):
    assert examine(in_process, kind, 10) >= 10


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(KINDS))
def test_more_bad_input_is_named(kind, request):
    count = request.config.getoption("--bad-inputs")
    assert examine(in_process, kind, count) >= count


@pytest.mark.parametrize("path", OUT_OF_RANGE)
def test_every_number_out_of_range_is_named(path):
    more = (float("nan"), float("inf"), float("-inf")) if path in FLOATS else ()
    for value in (*OUT_OF_RANGE[path], *more):
        with pytest.raises(ConfigError, match=rf"^{out_of_range(path, value)}.*, got {re.escape(str(value))}$"):
            from_json(changed(path, value))


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(KINDS))
def test_bad_input_of_real_commands_is_named(kind, request):
    count = -(-request.config.getoption("--bad-commands") // len(KINDS))
    assert examine(as_command, kind, count) >= count
