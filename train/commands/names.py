"""The commands by name: what `--help` says of each."""

from __future__ import annotations

COMMANDS = {
    "fit": "PRESET [options]    train a preset, evaluate it, write a report; `fit PRESET --help`: every option\n"
    "  fit --resume RUN        continue a run with its own options",
    "evaluate": "RUN [RUN ...]  attack trained runs and compare them; `evaluate --help`",
    "report": "RUN [RUN ...]    write one HTML page about evaluated runs; `report --help`",
    "certify": "RUN             certify radii within which no deformation changes the answer; `certify --help`",
    "export": "RUN              write the weights and the program for others; `export --help`",
    "verify": "RUN [RUN ...]    check every checkpoint against its checksums; `verify --help`",
    "launch": "fit PRESET ...   the same training in several processes of this host; `launch --help`",
    "presets": "                list what each preset trains, how long it takes, what to expect",
}
"""What each command takes and does; the module of that name in this folder has its options and `run`."""
