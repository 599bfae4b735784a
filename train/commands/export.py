"""`export`: writes a trained network for other programs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from train import exports, reports
from train.errors import ConfigError, RunError
from train.restored import load_networks, network_of, open_network


@dataclass(frozen=True)
class Export:
    """Writes a trained network for other programs: its weights as safetensors, a `jax.export` program, a model card."""

    run: tyro.conf.Positional[Path]
    """The run folder."""
    output: Path | None = None
    """Folder for model.safetensors, model.jax and README.md; by default `export` in the run folder."""
    data_dir: str | None = None
    """Where the data is, if it has moved since training."""
    networks: Annotated[tuple[str, ...], tyro.conf.arg(name="model.name")] = ()
    """A network of your own, package.module:factory, to import if the run's config names it.
    It is never imported otherwise."""


def run(arguments: list[str]) -> int:
    """Exports a run."""
    if not arguments:
        raise ConfigError("export needs a run folder, for example runs/digits-standard")
    options = tyro.cli(Export, prog="python -m train export", args=arguments)
    folder = options.output or options.run / "export"
    if options.output is None and folder.is_symlink():  # a stranger's run may hold it
        raise RunError(f"{folder} is a link: --output names the folder to write into")
    model = network_of(options.run, load_networks(options.networks, [options.run]))
    opened = open_network(options.run, data_dir=options.data_dir, model=model)
    reports.check_writable([folder], None)
    exports.write(folder, opened, reports.guard(folder, opened))
    print(f"exported: {folder}")
    return 0
