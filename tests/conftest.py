"""Eight CPU devices for every test, and the one model whose likelihood has a closed form."""

import os
from importlib.metadata import version

# Before JAX starts. The tests compile many small programs and run each for a moment, so LLVM's
# optimizations, XLA's fusion emitters, its passes over loops and compiling in parts side by side
# cost much of their time and save nothing. (A training program, whose own option names another
# pass, has the passes over loops all the same.)
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 "
    "--xla_llvm_disable_expensive_passes=true --xla_cpu_parallel_codegen_split_count=1 "
    "--xla_disable_hlo_passes=simplify-while-loops,while-loop-invariant-code-motion,"
    "while-loop-constant-sinking"
    + " --xla_cpu_use_fusion_emitters=false"
    * version("jaxlib").startswith("0.10."),
)

import gc
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import checks  # noqa: F401  (before vae_jax, whose annotations it checks)
import numpy as np
import pytest
from scipy import stats
from unlucky import copied, from_file, from_python  # noqa: F401 (fixtures)

from vae_jax import MLP, VAE, DiagonalGaussian, Gaussian, StandardNormal
from vae_jax.data import prepare


def pytest_collection_finish() -> None:
    """Collects garbage less often: tracing makes many objects, and little of it is garbage."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 100)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of a test marked `others_slow`, all cases but the first are in the slow suite."""
    begun = set()
    for item in items:
        if item.get_closest_marker("others_slow") is not None:
            test = item.nodeid.partition("[")[0]
            if test in begun:
                item.add_marker(pytest.mark.slow)
            begun.add(test)


def _identity(x):
    return x


@dataclass(frozen=True)
class LinearGaussian:
    """A linear-Gaussian VAE = probabilistic PCA at its optimum for some data (Lucas et al. 2019).

    Attributes:
        model: the package's own parts.
        variables: float64 host arrays with the maximum-likelihood W, mean and noise, and the exact
            posterior.
        mean, covariance: the moments of the marginal p(x) of flattened images.
        optimum: the highest average log-likelihood of the data, nats per image, from the
            eigenvalues alone.
    """

    model: VAE
    variables: dict[str, Any]
    mean: np.ndarray
    covariance: np.ndarray
    optimum: float

    def log_likelihood(self, x: np.ndarray) -> np.ndarray:
        """Exact ln p(x), `[B]`, by SciPy."""
        normal: Any = stats.multivariate_normal
        return normal.logpdf(x.reshape(len(x), -1), self.mean, self.covariance)

    @classmethod
    def fit(cls, x: np.ndarray, latents: int) -> "LinearGaussian":
        """The maximum-likelihood solution for images `[N, H, W, C]` (Tipping & Bishop 1999)."""
        flat = x.reshape(len(x), -1).astype(np.float64)
        mean = flat.mean(0)
        eigenvalues, vectors = np.linalg.eigh(np.cov(flat.T, bias=True))
        eigenvalues, vectors = eigenvalues[::-1], vectors[:, ::-1]
        noise = eigenvalues[latents:].mean()
        weights = vectors[:, :latents] * np.sqrt(eigenvalues[:latents] - noise)
        # The posterior is N(M^-1 W'(x - mean), noise M^-1), M = W'W + noise I, diagonal here.
        m = eigenvalues[:latents]
        to_posterior = weights / m
        size = flat.shape[1]
        log_likelihood = -0.5 * (
            size * math.log(2 * math.pi)
            + np.log(m).sum()
            + (size - latents) * math.log(noise)
            + size
        )
        return cls(
            model=VAE(
                encoder=MLP(()),
                posterior=DiagonalGaussian(latents),
                prior=StandardNormal(latents),
                decoder=MLP(()),
                likelihood=Gaussian(squash=_identity),
                image_shape=x.shape[1:],
            ),
            variables={
                "params": {
                    "posterior": {
                        "loc": {"kernel": to_posterior, "bias": -mean @ to_posterior},
                        "log_scale": {
                            "kernel": np.zeros((size, latents)),
                            "bias": 0.5 * np.log(noise / m),
                        },
                    },
                    "likelihood": {
                        "loc": {"kernel": weights.T, "bias": mean},
                        "log_scale": np.asarray(0.5 * math.log(noise)),
                    },
                }
            },
            mean=mean,
            covariance=weights @ weights.T + noise * np.eye(size),
            optimum=float(log_likelihood),
        )


@pytest.fixture(scope="session")
def fit_linear_gaussian():
    """`LinearGaussian.fit`."""
    return LinearGaussian.fit


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder in which mnist_5k is prepared for real, once for all of xdist's workers."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    prepare("mnist_5k", root / "data")
    return root / "data"
