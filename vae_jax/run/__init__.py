"""Runs: the folder on the disk, and the trained model that comes back from it."""

from vae_jax.run.folder import Record, RunFolder, jsonable
from vae_jax.run.run import Run

__all__ = ["Record", "Run", "RunFolder", "jsonable"]
