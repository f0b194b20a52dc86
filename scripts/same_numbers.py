"""Trains short runs of every family, and prints the SHA-256 of their parameters.

    python scripts/same_numbers.py                  # of this tree
    python scripts/same_numbers.py --beside HEAD    # and of a revision's files

A change that should not change numbers keeps them to the bit, on the same machine with the same
versions. Each run takes four steps on two CPU devices; run it in the repository's root.
"""

import importlib
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import tyro
from benchmark import files_of
from rich.console import Console
from rich.table import Table

import vae_jax as vj

STEPS, SHOWN = 4, 16
DATA = {"data": "mnist_5k"}
# For each family an experiment, its arguments, and those of `train`.
RUNS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "VAE, two seeds": ("quickstart", {}, {"num_seeds": 2}),
    "VAE, streamed": ("quickstart", {}, {"streamed": True}),
    "two layers, k = 5": ("iwae", {"layers": 2, "k": 5, **DATA}, {}),
    "deep hierarchy": ("vdvae", DATA, {}),
    "quantized": ("vqvae", DATA, {}),
    "critic": ("vaegan", DATA, {}),
    "conditional": ("conditional", DATA, {}),
    "flows": ("flows", {"posterior": "iaf", "prior": "realnvp", **DATA}, {}),
    "VampPrior": ("vampprior", {"components": 50, **DATA}, {}),
    "sphere": ("hyperspherical", DATA, {}),
}


def hashes() -> dict[str, str]:
    """`params_sha256` of each run, with the package that this process imports."""
    sys.path.insert(0, str(Path("experiments").absolute()))
    found = {}
    for name, (file, arguments, given) in RUNS.items():
        experiment = importlib.import_module(file).experiment(**arguments)
        short = replace(experiment, num_steps=STEPS, log_every=STEPS, checkpoint_every=STEPS)
        with tempfile.TemporaryDirectory() as folder:
            run = vj.train(short, Path(folder) / "run", **given)
            summary = run.folder.read_summary()
            assert summary
            found[name] = summary["params_sha256"]
    return found


def hashes_at(revision: str) -> dict[str, str]:
    """The same with a revision's package and experiments, in a process of its own."""
    with tempfile.TemporaryDirectory() as tree:
        files_of(revision, Path(tree))
        lines = subprocess.run(
            [sys.executable, __file__, "--lines"],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            cwd=tree,
            env=os.environ | {"PYTHONPATH": tree},
        ).stdout.splitlines()
    return dict(line.split("\t") for line in lines)


def main(beside: str | None = None, lines: bool = False) -> None:
    """Print the table; with a difference, the exit status is 1.

    Args:
        beside: a revision of this repository.
        lines: print lines for programs instead of a table.
    """
    jax.config.update("jax_num_cpu_devices", 2)
    found = hashes()
    if lines:
        print(*(f"{name}\t{sha}" for name, sha in found.items()), sep="\n")
        return
    earlier = hashes_at(beside) if beside else {}
    table = Table("run", "params_sha256", *([f"at {beside}"] if beside else []))
    for name, sha in found.items():
        other = "" if name not in earlier else "the same" if earlier[name] == sha else "**other**"
        table.add_row(name, sha[:SHOWN], *([other] if beside else []))
    Console().print(table)
    sys.exit(int(bool(beside) and earlier != found))


if __name__ == "__main__":
    tyro.cli(main)
