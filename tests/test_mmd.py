"""MMD against double loops over pairs, in expectation, and in the objectives that use it."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from jax import Array

from vae_jax import (
    ELBO,
    IMQ,
    RBF,
    WAE,
    Categorical,
    Deterministic,
    GaussianMixture,
    InfoVAE,
    VaeJaxError,
)
from vae_jax.compatibility import check_objective
from vae_jax.objectives.mmd import aggregated_mmd, mmd
from vae_jax.train import loss_and_metrics

STEP = jnp.int32(0)
B = 6
X = jnp.asarray(tiny.images(B, 0), jnp.float32) / 255
KEYS = jax.random.split(jax.random.key(1), B)


def imq(a: np.ndarray, b: np.ndarray, variance: float) -> float:
    """Tolstikhin et al. (2018), section 4, with C = 2 d sigma² times each of the code's scales."""
    total = 0.0
    for scale in (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0):
        c = 2 * len(a) * variance * scale
        total += c / (c + float(np.linalg.norm(a - b)) ** 2)
    return total


def rbf(a: np.ndarray, b: np.ndarray, variance: float) -> float:
    return float(np.exp(-(np.linalg.norm(a - b) ** 2) / (2 * len(a) * variance)))


@pytest.mark.parametrize(("kernel", "by_hand"), [(IMQ, imq), (RBF, rbf)])
@pytest.mark.parametrize("variance", [1.0, 0.25])
def test_mmd_by_double_loops(kernel: Any, by_hand: Any, variance: float) -> None:
    """Algorithm 2 of Tolstikhin et al. (2018), in NumPy."""
    x, y = np.random.default_rng(0).normal(size=(2, 7, 3)) * [[[1.0]], [[1.5]]]
    n = len(x)
    expected = 0.0
    for i in range(n):
        for j in range(n):
            if i != j:
                within = by_hand(x[i], x[j], variance) + by_hand(y[i], y[j], variance)
                expected += within / (n * (n - 1))
            expected -= 2 * by_hand(x[i], y[j], variance) / n**2
    actual = mmd(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32), kernel(variance))
    assert actual == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("kernel", [IMQ(), RBF()], ids=["imq", "rbf"])
def test_mmd_is_zero_in_expectation_for_equal_distributions(kernel: Any) -> None:
    """4000 sets of 5 draws: within 4 standard errors of 0, and far above for shifted ones.

    With the pairs of a draw with itself the mean would be about 0.4 times the kernel's range.
    """
    x, y = jax.random.normal(jax.random.key(0), (2, 4000, 5, 3))
    estimate = jax.jit(jax.vmap(lambda x, y: mmd(x, y, kernel)))
    same, shifted = np.asarray(estimate(x, y)), np.asarray(estimate(x, y + 1))
    error = same.std() / np.sqrt(len(same))
    assert abs(same.mean()) < 4 * error
    assert (same < 0).mean() > 0.3
    assert shifted.mean() > 40 * error


# In the objectives


@pytest.fixture(scope="module")
def terms() -> Any:
    """Of a model with K = 3, on the host; the keys stay keys."""
    model = tiny.model()
    return jax.jit(lambda: model.init_with_output(jax.random.key(0), X, KEYS, 3)[0])()


def test_samples_of_one_image_are_not_paired(terms: Any) -> None:
    """The mean over K of the estimate from one sample an image; prior draws are the keys' own."""
    prior = np.stack(
        [jax.random.normal(jax.random.fold_in(key, 1), (3, 2)) for key in KEYS], axis=1
    )
    expected = np.mean([mmd(z, jnp.asarray(y), IMQ()) for z, y in zip(terms.z, prior, strict=True)])
    assert aggregated_mmd(terms, IMQ()) == pytest.approx(float(expected), rel=1e-4)


def test_the_order_of_the_batch_is_nothing(terms: Any) -> None:
    order = jnp.array([3, 1, 5, 0, 2, 4])
    shuffled = terms.replace(z=terms.z[:, order], keys=terms.keys[order])
    expected = float(aggregated_mmd(terms, RBF()))
    assert aggregated_mmd(shuffled, RBF()) == pytest.approx(expected, rel=1e-4)


def test_info_vae_by_its_ends(terms: Any) -> None:
    """alpha = 0, lambda = 1 is the ELBO; alpha = 1 the WAE; between, Zhao et al.'s weights."""
    elbo, metrics = ELBO()(terms, STEP)
    distance = float(aggregated_mmd(terms, IMQ()))
    loss, info = InfoVAE(0.0, 1.0)(terms, STEP)
    assert loss == pytest.approx(float(elbo), rel=1e-6)
    assert info["mmd"] == pytest.approx(distance, rel=1e-5)
    loss, _ = InfoVAE(1.0, 7.0)(terms, STEP)
    assert loss == pytest.approx(float(WAE(7.0)(terms, STEP, tiny.model())[0]), rel=1e-6)
    assert loss == pytest.approx(float(metrics["distortion"]) + 7 * distance, rel=1e-6)
    loss, _ = InfoVAE(-1.0, 5.0, RBF())(terms, STEP)
    rbf_distance = float(aggregated_mmd(terms, RBF()))
    expected = float(metrics["distortion"] + 2 * metrics["kl"]) + 3 * rbf_distance
    assert loss == pytest.approx(expected, rel=1e-6)


def gradients(model: Any, objective: Any) -> tuple[Any, Any]:
    """Of the loss at the initial parameters, and the metrics."""
    init, apply = nn.init(loss_and_metrics, model), nn.apply(loss_and_metrics, model)

    @jax.jit
    def both() -> Any:
        params = init(jax.random.key(0), objective, X, KEYS, STEP)["params"]

        def loss(params: Any) -> tuple[Array, Any]:
            return apply({"params": params}, objective, X, KEYS, STEP)

        return jax.grad(loss, has_aux=True)(params)

    return both()


def test_wae_without_noise_or_density() -> None:
    """Where q has no density no bound is reported; the encoder is moved all the same."""
    model = tiny.model().clone(posterior=Deterministic(2))
    check_objective(WAE(10.0), model)
    check_objective(WAE(10.0), tiny.model())
    gradient, metrics = gradients(model, WAE(10.0))
    assert "neg_elbo" not in metrics
    assert all(np.abs(leaf).max() > 1e-4 for leaf in jax.tree.leaves(gradient))
    with pytest.raises(VaeJaxError, match="InfoVAE needs a density"):
        check_objective(InfoVAE(0.5, 3.0), model)
    with pytest.raises(VaeJaxError, match="WAE has no meaning for one-hot vectors"):
        check_objective(WAE(10.0), tiny.model().clone(posterior=Categorical(2, 3, 1.0)))


def test_the_priors_draws_are_constants() -> None:
    """A learned prior is not drawn to q(z) by MMD."""
    gradient, metrics = gradients(tiny.model().clone(prior=GaussianMixture(3, 2)), WAE(10.0))
    assert optax.tree.norm(gradient["prior"]) == 0
    assert "neg_elbo" in metrics
