"""Runs: the folder on the disk, and the trained model that comes back from it."""

from vae_jax.run import trackers
from vae_jax.run.arrays import load_variables
from vae_jax.run.folder import RunFolder, jsonable
from vae_jax.run.programs import save_programs
from vae_jax.run.record import versions, what_processes_share
from vae_jax.run.run import Run, load_run, load_together
from vae_jax.run.same import Record

__all__ = [
    "Record",
    "Run",
    "RunFolder",
    "jsonable",
    "load_run",
    "load_together",
    "load_variables",
    "save_programs",
    "trackers",
    "versions",
    "what_processes_share",
]
