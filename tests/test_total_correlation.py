"""Estimates of q(z) against exact finite mixtures, over all minibatches, on 1 to 8 devices."""

import dataclasses
import itertools
import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import struct
from gradients import assert_close, norm, one_batch
from hostile.declared import Logistic
from jax import Array
from scipy import special, stats
from test_objectives import make_terms

from vae_jax import (
    DIPVAE,
    BetaTC,
    Capacity,
    Categorical,
    FreeBits,
    InfoVAE,
    Terms,
    VaeJaxError,
    VampPrior,
)
from vae_jax.compatibility import check_objective
from vae_jax.distributions import Normal
from vae_jax.interfaces import Metrics, Model, Objective
from vae_jax.objectives.beta_tc import log_aggregated, log_weights

STEP = jnp.int32(0)
N, D, K = 5, 2, 3
RNG = np.random.default_rng(0)
LOC = RNG.normal(size=(N, D))
SCALE = RNG.uniform(0.5, 1.5, size=(N, D))
Z = LOC + SCALE * RNG.normal(size=(K, N, D))  # z of image n in column n
COMPONENTS = stats.norm.logpdf(Z[:, :, None], LOC, SCALE)  # [K, image of z, image of q, D]
EXACT_JOINT = special.logsumexp(COMPONENTS.sum(-1), axis=2) - np.log(N)
EXACT_MARGINALS = (special.logsumexp(COMPONENTS, axis=2) - np.log(N)).sum(-1)


def terms_of(loc: Any, scale: Any, z: Any) -> Terms:
    """Terms with q = N(loc, scale²), p = N(0, I), z `[K, B, d]` and a distortion of 3."""
    loc, scale, z = (jnp.asarray(each, jnp.float32) for each in (loc, scale, z))
    q, p = Normal(loc, scale), Normal(jnp.zeros(loc.shape[1]), jnp.ones(loc.shape[1]))
    terms = make_terms(
        jnp.full(z.shape[:2], -3.0),
        p.log_prob(z)[None],
        q.log_prob(z)[None],
        jnp.ones((1, len(loc))),
    )
    return terms.replace(q=(q,), p=(p,), z=(z,))  # pyright: ignore[reportAttributeAccessIssue]


@partial(jax.jit, static_argnums=0)
def at(objective: Objective, loc: Any, scale: Any, z: Any) -> Any:
    """Loss and metrics."""
    return objective(terms_of(loc, scale, z), STEP, tiny.model())


@partial(jax.jit, static_argnums=0)
def aggregated(sampling: Any, loc: Any, scale: Any, z: Any) -> Any:
    """`log_aggregated` of a batch from N images."""
    return log_aggregated(terms_of(loc, scale, z), N, sampling)


# Weights


def test_stratified_weights_fill_the_diagonal_and_not_a_column() -> None:
    """A known fault gives every z_i the weight 1/N under the first image, not under its own."""
    n, b = 50, 4
    weights = np.exp(log_weights(jnp.arange(b), b, n, "stratified"))
    np.testing.assert_allclose(np.diag(weights), 1 / n, rtol=1e-5)
    others = weights[~np.eye(b, dtype=bool)]
    assert (others > 10 / n).all()
    np.testing.assert_allclose(weights.sum(1), 1.0, rtol=1e-5)
    second_device = np.exp(log_weights(2 + jnp.arange(2), b, n, "stratified"))
    np.testing.assert_array_equal(second_device, weights[2:])


def test_stratified_weights_are_the_mean_of_the_papers() -> None:
    """Chen et al. (2018), appendix C.2, by hand: own image 1/N, one other (N-M)/(NM), rest 1/M.

    Here M + 1 images are in the batch; the mean is over which image is the one.
    """
    n, m = 50, 3
    papers = []
    for one in range(1, m + 1):
        row = np.full(m + 1, 1 / m)
        row[0], row[one] = 1 / n, (n - m) / (n * m)
        papers.append(row)
    weights = np.exp(log_weights(jnp.array([0]), m + 1, n, "stratified"))
    np.testing.assert_allclose(weights[0], np.mean(papers, axis=0), rtol=1e-5)


@pytest.mark.parametrize("dataset_size", [1_300_000, 2**31 // 2048, 2**31, 10**12])
def test_weights_of_data_sets_beyond_an_int32(dataset_size: int) -> None:
    weighted = log_weights(jnp.arange(2), 2048, dataset_size, "weighted")
    np.testing.assert_allclose(weighted, -np.log(dataset_size * 2048.0), rtol=1e-6)
    stratified = log_weights(jnp.arange(2), 2048, dataset_size, "stratified")
    np.testing.assert_allclose(np.exp(stratified).sum(1), 1, rtol=1e-4)
    np.testing.assert_allclose(stratified[0, 0], -np.log(dataset_size), rtol=1e-6)


# q(z)


@pytest.mark.parametrize(("sampling", "excess"), [("stratified", 0.0), ("weighted", np.log(N))])
def test_the_whole_data_set_as_one_batch(sampling: Any, excess: float) -> None:
    """Stratified estimates are exact; the paper's 1/(NM) is 1/N² there, ln N too low."""
    joint, marginals = aggregated(sampling, LOC, SCALE, Z)
    np.testing.assert_allclose(joint, EXACT_JOINT - excess, rtol=1e-5)
    np.testing.assert_allclose(marginals, EXACT_MARGINALS - D * excess, rtol=1e-5)


def test_stratified_estimates_of_minibatches_are_unbiased() -> None:
    """Every minibatch of 3 that holds image n, for every n: their mean is the exact density.

    Of q(z) and of q(z_1); the weighted estimate's is too low, so that its logarithm bounds ln q(z)
    from below in expectation, as the paper says.
    """
    for n in range(N):
        others = itertools.combinations([m for m in range(N) if m != n], 2)
        batches = [np.array([n, *pair]) for pair in others]
        assert len(batches) == 6

        def estimates(dims: slice, sampling: Any, batches: Any = batches) -> Any:
            found = []
            for rows in batches:
                batch = LOC[rows, dims], SCALE[rows, dims], Z[:, rows, dims]
                found.append(aggregated(sampling, *batch)[0][:, 0])  # z of image n
            return np.array(found)

        stratified = estimates(slice(None), "stratified")
        np.testing.assert_allclose(np.exp(stratified).mean(0), np.exp(EXACT_JOINT[:, n]), rtol=1e-4)
        weighted = estimates(slice(None), "weighted")
        assert (weighted.mean(0) < EXACT_JOINT[:, n]).all()
        first = stats.norm.pdf(Z[:, n, :1], LOC[:, 0], SCALE[:, 0]).mean(-1)
        mean = np.exp(estimates(slice(1), "stratified")).mean(0)
        np.testing.assert_allclose(mean, first, rtol=1e-4)


# beta-TCVAE


def test_beta_tc_weighs_the_parts_of_the_kl() -> None:
    """The parts by SciPy from the exact mixture; at weights of one they are the sampled KL."""
    own = COMPONENTS[:, range(N), range(N)].sum(-1)
    prior = stats.norm.logpdf(Z).sum(-1)
    parts = [
        (own - EXACT_JOINT).mean(),
        (EXACT_JOINT - EXACT_MARGINALS).mean(),
        (EXACT_MARGINALS - prior).mean(),
    ]
    objective = BetaTC(beta=6.0, dataset_size=N, alpha=0.5, gamma=2.0)
    loss, metrics = at(objective, LOC, SCALE, Z)
    assert loss == pytest.approx(3 + np.dot(parts, [0.5, 6.0, 2.0]), rel=1e-5)
    names = ("mutual_information", "total_correlation", "dimension_wise_kl")
    np.testing.assert_allclose([metrics[name] for name in names], parts, rtol=1e-4)
    assert sum(parts) == pytest.approx((own - prior).mean())
    assert metrics["neg_elbo"] == 4.0
    one, _ = at(BetaTC(beta=1.0, dataset_size=1000), LOC, SCALE, Z)
    assert one == pytest.approx(3 + (own - prior).mean(), rel=1e-5)


@pytest.mark.parametrize(
    ("loc", "total_correlation"),
    [
        ([[0, 0], [1, 1], [2, 2], [3, 3]], np.log(4)),
        ([[0, 0], [0, 1], [1, 0], [1, 1]], 0.0),
    ],
    ids=["line", "square"],
)
def test_codes_that_do_not_overlap(loc: list[list[int]], total_correlation: float) -> None:
    """Four codes far apart have a mutual information of ln 4. On a line one coordinate says all
    of the other; on a square's corners nothing."""
    noise = np.random.default_rng(1).normal(size=(1, 4, 2))
    codes = np.array(loc), np.full((4, 2), 1e-2), np.array(loc) + 1e-2 * noise
    _, metrics = at(BetaTC(beta=1.0, dataset_size=4), *codes)
    assert metrics["mutual_information"] == pytest.approx(np.log(4), abs=1e-4)
    assert metrics["total_correlation"] == pytest.approx(total_correlation, abs=1e-4)


# DIP-VAE


@pytest.mark.parametrize("covariance_of", ["mean", "z"])
def test_dip_penalizes_numpys_covariance(covariance_of: Any) -> None:
    """Cov[mu], and for DIP-VAE-II E[sigma²] on its diagonal; also as the covariance of draws."""
    covariance = np.cov(LOC.T, bias=True)
    if covariance_of == "z":
        covariance += np.diag((SCALE**2).mean(0))
        draws = LOC + SCALE * np.random.default_rng(2).normal(size=(20000, N, D))
        np.testing.assert_allclose(np.cov(draws.reshape(-1, D).T), covariance, atol=0.05)
    expected = 3.0 * 2 * covariance[0, 1] ** 2
    expected += 5.0 * ((covariance[0, 0] - 1) ** 2 + (covariance[1, 1] - 1) ** 2)
    loss, metrics = at(DIPVAE(3.0, 5.0, covariance_of), LOC, SCALE, Z)
    assert metrics["covariance_penalty"] == pytest.approx(expected, rel=1e-5)
    assert loss == pytest.approx(4.0 + expected, rel=1e-5)


# A user's own density


@struct.dataclass
class Spread(Logistic):
    """The logistic distribution of scale one, which is no Normal, with its deviations."""

    @property
    def std(self) -> Array:
        return jnp.full(self.shape, math.pi / math.sqrt(3))


def test_a_users_own_density_is_taken_apart_as_a_normal_is() -> None:
    """Its mixture, the parts of its KL and its covariance by SciPy."""
    z = LOC + np.random.default_rng(4).logistic(size=(K, N, D))
    each = stats.logistic.logpdf(z[:, :, None], LOC)  # [K, image of z, image of q, D]
    joint = special.logsumexp(each.sum(-1), axis=2) - np.log(N)
    marginals = (special.logsumexp(each, axis=2) - np.log(N)).sum(-1)
    own = each[:, range(N), range(N)]
    rates = (own - stats.norm.logpdf(z)).mean((0, 1))
    assert rates.min() < 0.5 * sum(rates) < rates.max()
    covariance = np.cov(LOC.T, bias=True) + np.diag([np.pi**2 / 3] * D)
    penalty = ((covariance - np.eye(D)) ** 2).sum()

    @jax.jit
    def losses() -> list[Array]:
        q = Spread(jnp.asarray(LOC, jnp.float32))
        terms: Any = terms_of(LOC, SCALE, z)
        terms = terms.replace(q=(q,), log_qz=q.log_prob(terms.z[0])[None], kl=None)
        objectives = BetaTC(6.0, N), DIPVAE(1.0, 1.0), FreeBits(0.5 * sum(rates))
        return [each(terms, STEP, tiny.model())[0] for each in objectives]

    kl = [own.sum(-1) - joint, joint - marginals, marginals - stats.norm.logpdf(z).sum(-1)]
    expected = [
        3 + np.dot([1.0, 6.0, 1.0], [part.mean() for part in kl]),
        3 + sum(rates) + penalty,
        3 + np.maximum(rates, 0.5 * sum(rates)).sum(),
    ]
    np.testing.assert_allclose(losses(), expected, rtol=1e-5)


# Devices


@dataclass(frozen=True)
class Sum(Objective):
    """The sum of objectives, so that one program tests them all; their losses are its metrics."""

    objectives: tuple[Any, ...]
    num_samples: int = 2

    def __call__(self, terms: Terms, step: Array, model: Model) -> tuple[Array, Metrics]:
        losses = [objective(terms, step, model)[0] for objective in self.objectives]
        return jnp.stack(losses).sum(), {str(i): loss for i, loss in enumerate(losses)}


WHOLE_BATCH = [
    FreeBits(0.4),
    FreeBits(0.5, per="layer"),
    Capacity(2.0, 0.9),
    BetaTC(6.0, 90),
    BetaTC(6.0, 90, sampling="weighted"),
    DIPVAE(3.0, 5.0, "mean"),
    DIPVAE(3.0, 5.0, "z"),
    InfoVAE(0.5, 3.0),
]


@pytest.mark.slow
def test_whole_batch_estimators_have_the_same_gradients_on_1_2_and_8_devices() -> None:
    """Loss by loss, and the gradient of their sum, where a wrong share of any one would show."""
    experiment = dataclasses.replace(
        tiny.experiment(), objective=Sum(tuple(WHOLE_BATCH)), batch_size=8
    )
    one, two, eight = one_batch(experiment, 1, 2, 8)
    assert norm(one[3]["encoder"]) > 0.1
    assert_close(two, one, 2e-5)
    assert_close(eight, one, 2e-5)


def test_refusals() -> None:
    with pytest.raises(VaeJaxError, match="BetaTC needs a prior with independent components"):
        check_objective(BetaTC(6.0, 90), tiny.model().clone(prior=VampPrior(3)))
    model = tiny.model().clone(posterior=Categorical(2, 3, 1.0))
    with pytest.raises(VaeJaxError, match="DIPVAE needs"):
        check_objective(DIPVAE(1.0, 1.0), model)
