"""Prints the lower bounds of setup.cfg as exact versions, for pip."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

EXTRAS = ("attacks", "train", "benchmarks", "test")
TOOLS = ("mypy", "ruff")  # style is checked with the pinned versions only


def lowest(text: str) -> list[str]:
    """The lower bounds of the library, the applications and the tests, as ``name==version``."""
    config = configparser.ConfigParser(interpolation=None)
    config.read_string(text)
    extras = config["options.extras_require"]
    lines = "\n".join([config["options"]["install_requires"], *(extras[name] for name in EXTRAS)]).splitlines()
    bounds = [re.fullmatch(r"([\w-]+)(?:\[\w+\])?>=([\w.]+)", line.strip()) for line in lines]
    found = {bound[1]: bound[2] for bound in bounds if bound and bound[1] not in TOOLS}
    return [f"{name}=={version}" for name, version in {**found, "jaxlib": found["jax"]}.items()]


if __name__ == "__main__":
    print("\n".join(lowest((Path(__file__).parents[1] / "setup.cfg").read_text())))
