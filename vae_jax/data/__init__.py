"""Data: from a name, a path or arrays to uint8 splits, and from those to inputs of likelihoods."""

from vae_jax.data.catalog import SOURCES, Listing, Source, list_datasets, load, prepare
from vae_jax.data.datasets import Data, Split
from vae_jax.data.folder import load_folder
from vae_jax.data.pipeline import (
    PROTOCOLS,
    Protocol,
    SplitName,
    Support,
    batch_indices,
    prefetched,
)

__all__ = [
    "PROTOCOLS",
    "SOURCES",
    "Data",
    "Listing",
    "Protocol",
    "Source",
    "Split",
    "SplitName",
    "Support",
    "batch_indices",
    "list_datasets",
    "load",
    "load_folder",
    "prefetched",
    "prepare",
]
