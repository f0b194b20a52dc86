"""Evaluation: every image once, at the K asked for, against closed forms and hand-made posteriors."""

import math
from types import SimpleNamespace
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import struct
from scipy import special, stats

from vae_jax import (
    ELBO,
    MLP,
    VAE,
    Bernoulli,
    Data,
    DiagonalGaussian,
    Experiment,
    HierarchicalVAE,
    StandardNormal,
    Terms,
    VaeJaxError,
    evaluate,
    parallel,
)
from vae_jax import evaluate as _  # noqa: F401
from vae_jax.distributions import Distribution, Normal
from vae_jax.evaluate import bits_per_dim, make_evaluator, per_image
