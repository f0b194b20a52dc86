"""Importance-weighted bounds and their gradient estimators, most of them exactly.

Expectations over the noise are Gauss-Hermite quadratures in one dimension for each sample, so that
bounds, expected gradients and variances of a model with one latent are known without noise.
"""

import inspect
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax import Array
from jax.flatten_util import ravel_pytree
from running import script
from scipy import special
from test_objectives import LOG_PX, LOG_PZ, LOG_QZ, STEP, TWO_LAYERS, VANILLA, make_terms

from vae_jax import (
    CIWAE,
    ELBO,
    IWAE,
    MIWAE,
    PIWAE,
    VAE,
    Categorical,
    RenyiBound,
    Terms,
    VaeJaxError,
    VampPrior,
)
from vae_jax.compatibility import check_objective
from vae_jax.distributions import Normal, exact_kl
from vae_jax.interfaces import Objective
from vae_jax.objectives.renyi import renyi_bound
from vae_jax.vae import weigh_path

Bound = Callable[[Any], Any]
# Four samples each: the plain objective, and the one whose gradient goes another way.
PAIRS: dict[str, tuple[Objective, Objective]] = {
    "elbo": (ELBO(4), ELBO(4, sticking_the_landing=True)),
    "iwae": (IWAE(4), IWAE(4, doubly_reparameterized=True)),
    "miwae": (MIWAE(2, 2), MIWAE(2, 2, doubly_reparameterized=True)),
    "piwae": (PIWAE(2, 2), PIWAE(2, 2, doubly_reparameterized=True)),
    "ciwae": (CIWAE(4, 0.3), CIWAE(4, 0.3, doubly_reparameterized=True)),
    "renyi": (RenyiBound(4, 0.4), RenyiBound(4, 0.4, doubly_reparameterized=True)),
    "renyi above 1": (RenyiBound(4, 2.0), RenyiBound(4, 2.0, doubly_reparameterized=True)),
    "renyi below 0": (RenyiBound(4, -1.0), RenyiBound(4, -1.0, doubly_reparameterized=True)),
}
OBJECTIVES = [objective for pair in PAIRS.values() for objective in pair]
every_pair = pytest.mark.parametrize("name", PAIRS)
INFERENCE = ("encoder", "posterior")


def of_log_w(log_w: Any) -> Terms:
    """Terms of log-weights `[K, B]` alone."""
    zeros = jnp.zeros((1, *np.shape(log_w)))
    return make_terms(log_w, zeros, zeros)


# --- By hand ------------------------------------------------------------------------------------

BY_HAND: dict[str, tuple[Objective, Bound]] = {
    "miwae": (
        MIWAE(2, 3),
        lambda w: (np.log(w[:3].mean(0)) + np.log(w[3:].mean(0))) / 2,
    ),
    "ciwae": (
        CIWAE(6, 0.3),
        lambda w: 0.3 * np.log(w).mean(0) + 0.7 * np.log(w.mean(0)),
    ),
    "renyi 0.5": (RenyiBound(6, 0.5), lambda w: 2 * np.log(np.sqrt(w).mean(0))),
    "renyi 3": (RenyiBound(6, 3.0), lambda w: np.log((w**-2.0).mean(0)) / -2),
    "renyi -1": (RenyiBound(6, -1.0), lambda w: np.log((w**2.0).mean(0)) / 2),
    "renyi 1": (RenyiBound(6, 1.0), lambda w: np.log(w).mean(0)),
}


def results(objectives: Any, terms: Terms) -> list[Any]:
    """Loss and metrics of each objective, by one program."""
    return jax.jit(
        lambda terms: [objective(terms, STEP, tiny.model()) for objective in objectives]
    )(terms)


def test_bounds_by_hand():
    """From the papers' formulas for the weights themselves, in NumPy."""
    log_w = np.random.default_rng(0).normal(size=(6, 5))
    objectives, formulas = zip(*BY_HAND.values(), strict=True)
    assert [objective.num_samples for objective in objectives] == [6] * len(BY_HAND)
    found = results(objectives, of_log_w(log_w))
    for name, formula, (loss, metrics) in zip(BY_HAND, formulas, found, strict=True):
        assert loss == pytest.approx(-formula(np.exp(log_w)).mean(), rel=1e-5), name
        assert metrics["neg_elbo"] == pytest.approx(-log_w.mean(), rel=1e-5)
        assert {"distortion", "kl_sampled"} <= metrics.keys()


def test_special_cases():
    """Each family ends in the ELBO and in IWAE; alpha = 1 is a limit."""
    elbos = (ELBO(6), MIWAE(6, 1), CIWAE(6, 1.0), RenyiBound(6, 1.0), RenyiBound(6, 1.0 + 1e-3))
    iwaes = (IWAE(6), MIWAE(1, 6), CIWAE(6, 0.0), RenyiBound(6, 0.0))
    # each falls in alpha, from the largest weight to the smallest
    falling = [RenyiBound(6, alpha) for alpha in (-50.0, -1.0, 0.0, 0.5, 1.0, 2.0, 50.0)]
    terms = of_log_w(np.random.default_rng(1).normal(size=(6, 5)))
    losses = np.array([loss for loss, _ in results((*elbos, *iwaes, *falling), terms)])
    elbo, iwae, falling = np.split(losses, [len(elbos), len(elbos) + len(iwaes)])
    assert iwae[0] < elbo[0] - 0.1
    np.testing.assert_allclose(elbo, elbo[0], atol=2e-3)
    np.testing.assert_allclose(iwae, iwae[0], atol=1e-6)
    assert (np.diff(falling) > 0.01).all()


@pytest.mark.parametrize("alpha", [-2.0, 0.0, 0.3, 0.5, 0.999999, 1.0, 1.5])
def test_renyi_bounds_where_a_weight_is_zero(alpha: float):
    """1/(1 - alpha) ln mean w^(1 - alpha), which is -inf from alpha = 1 on; K = 3."""
    log_w = np.array([[0.0, -1.0], [-np.inf, 2.0], [1.0, 3.0]])
    powers = np.exp((1 - alpha) * log_w[[0, 2], 0]).sum() / 3
    with_zero = -np.inf if alpha >= 1 else np.log(powers) / (1 - alpha)
    without = log_w[:, 1].mean()
    if alpha != 1:
        without = np.log(np.exp((1 - alpha) * log_w[:, 1]).mean()) / (1 - alpha)
    found = renyi_bound(jnp.float32(log_w), alpha)
    np.testing.assert_allclose(found, [with_zero, without], rtol=1e-4)
    if alpha < 1:
        gradient = jax.grad(lambda log_w: renyi_bound(log_w, alpha).sum())(jnp.float32(log_w))
        expected = np.exp((1 - alpha) * log_w)
        np.testing.assert_allclose(gradient, expected / expected.sum(0), atol=1e-5)


def test_layers_add_up():
    """ln w of two layers is ln p(x|z) + sum_l ln p(z_l) - ln q(z_l): SciPy."""
    log_w = np.asarray(LOG_PX) + (np.asarray(LOG_PZ) - np.asarray(LOG_QZ)).sum(0)
    terms = make_terms(LOG_PX, LOG_PZ, LOG_QZ)

    def log_sum_exp(log_w: np.ndarray) -> Any:
        return special.logsumexp(log_w, axis=0)

    iwae = log_sum_exp(log_w).mean() - math.log(2)
    expected = {
        MIWAE(2, 1): log_w.mean(),
        CIWAE(2, 0.5): (log_w.mean() + iwae) / 2,
        RenyiBound(2, 0.5): 2 * (log_sum_exp(log_w / 2).mean() - math.log(2)),
    }
    losses = [loss for loss, _ in results(expected, terms)]
    np.testing.assert_allclose(losses, [-value for value in expected.values()], rtol=1e-6)


def test_plain_gradients_by_central_differences():
    """In ln p(x|z), ln p(z) and ln q(z|x), which is all a plain objective sees; float64.

    PIWAE's is the gradient of no one function.
    """
    plain = [objective for name, (objective, _) in PAIRS.items() if name != "piwae"]
    generator = np.random.default_rng(2)
    with jax.enable_x64(True):
        flat, unravel = ravel_pytree([generator.normal(size=(4, 3)), *np.ones((2, 2, 4, 3))])
        flat = flat + generator.normal(size=len(flat))
        steps = 1e-5 * np.eye(len(flat))

        def losses(flat):
            terms = make_terms(*unravel(flat))
            return jnp.stack([objective(terms, STEP, tiny.model())[0] for objective in plain])

        @jax.jit
        def both(flat):
            moved = jnp.concatenate([flat + steps, flat - steps])
            return jax.jacrev(losses)(flat), jax.vmap(losses)(moved)

        gradients, values = jax.tree.map(np.asarray, both(flat))
    above, below = np.split(values, 2)
    np.testing.assert_allclose((above - below).T / 2e-5, gradients, atol=1e-9)
    assert (np.abs(gradients).max(1) > 0.05).all()


def test_no_nan_at_log_weights_ten_thousand_nats_apart():
    """Values, gradients and path weights are finite where all weights but one underflow."""
    log_px = jnp.asarray([[0.0, -1e4], [-1e4, -1e4], [-20.0, -2e4], [-1e4, 0.0]])
    q, p = Normal(jnp.zeros((2, 1)), jnp.ones((2, 1))), Normal(jnp.zeros(1), jnp.ones(1))
    z = jnp.linspace(-1.0, 1.0, 8).reshape(4, 2, 1)

    class Pixels:
        """The same log-likelihoods of all latents."""

        def log_prob(self, x):
            return log_px

    class Told(VAE):
        """Decodes to them."""

        def decode(self, zs: Any, y: Any = None) -> Any:
            return Pixels()

    model = Told(
        encoder=VANILLA.encoder,
        posterior=VANILLA.posterior,
        prior=VANILLA.prior,
        decoder=VANILLA.decoder,
        likelihood=VANILLA.likelihood,
    )

    def loss(log_px, path, objective):
        terms: Any = make_terms(log_px, p.log_prob(z)[None], q.log_prob(z)[None])
        terms = terms.replace(x=jnp.zeros((2, *SHAPE)), z=(z,), q=(q,), p=(p,), path=path)
        return inspect.unwrap(type(objective).__call__)(objective, terms, STEP, model)[0]

    @jax.jit
    def everything(log_px, path):
        return [jax.value_and_grad(loss, (0, 1))(log_px, path, each) for each in OBJECTIVES]

    results = jax.tree.leaves(everything(log_px, jnp.zeros((4, 2))))
    assert len(results) == 3 * len(OBJECTIVES)
    assert all(np.isfinite(result).all() for result in results)


# --- Exact expectations -------------------------------------------------------------------------

SHAPE, NODES = (1, 3, 1), 12


@pytest.fixture(scope="module")
def exact(fit_linear_gaussian):
    """One latent, three pixels."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(50, 1)) * [1.0, -0.7, 0.4] + 0.5 * generator.normal(size=(50, 3))
    return fit_linear_gaussian(x.reshape(50, *SHAPE), 1)


@pytest.fixture(scope="module")
def wrong(exact):
    """Its parameters, with a posterior that is off in place and width, and depends on x in both."""
    return jax.tree.map(
        lambda p, noise: p + noise,
        exact.variables["params"],
        {
            "posterior": {
                "loc": {"kernel": np.full((3, 1), 0.05), "bias": np.full(1, 0.2)},
                "log_scale": {"kernel": np.full((3, 1), 0.1), "bias": np.full(1, 0.1)},
            },
            "likelihood": {
                "loc": {"kernel": np.full((1, 3), 0.1), "bias": np.full(3, -0.1)},
                "log_scale": np.asarray(0.1),
            },
        },
    )


def terms_of_noise(model: VAE, params: Any, x: Array, eps: Array) -> tuple[Terms, Any]:
    """What the model returns if its noise is `eps` `[K, B, d]`, and the bound model."""
    bound = model.bind({"params": params})
    q: Any = bound.encode(x)
    p = bound.prior(bound)
    z = q.loc + q.scale * eps
    log_qz = q.log_prob(z)
    z, path = weigh_path(z, jnp.zeros(eps.shape[:2], eps.dtype))
    px, kl = bound.decode((z,)), exact_kl(q, p)
    unused: Any = None
    terms = Terms(
        x=x,
        y=None,
        keys=unused,
        z=(z,),
        path=path,
        log_px=px.log_prob(x),
        log_pz=p.log_prob(z)[None],
        log_qz=log_qz[None],
        kl=None if kl is None else kl[None],
        q=(q,),
        p=(p,),
        reconstruction=px.mean,
    )
    return terms, bound


def losses_and_gradients_of(model: VAE, params: Any, x: Array, eps: Array) -> Any:
    """Of all objectives, `[objectives, ...]`, by one backward pass for each of one forward pass."""

    def losses(params: Any) -> tuple[Array, Array]:
        terms, bound = terms_of_noise(model, params, x, eps)
        of_all = jnp.stack([objective(terms, STEP, bound)[0] for objective in OBJECTIVES])
        return of_all, of_all

    gradients, of_all = jax.jacrev(losses, has_aux=True)(params)
    return of_all, gradients


def by_objective(stacked: Any) -> dict[Objective, Any]:
    """Leaves `[objectives, ...]` taken apart, on the host."""
    host = jax.tree.map(np.asarray, stacked)
    return {
        objective: jax.tree.map(lambda leaf: leaf[number], host)  # noqa: B023
        for number, objective in enumerate(OBJECTIVES)
    }


def quadrature() -> tuple[np.ndarray, np.ndarray]:
    """Nodes `[N, 4]` and weights `[N]` of the mean over four independent N(0, 1)."""
    points, weights = np.polynomial.hermite_e.hermegauss(NODES)
    nodes = np.stack(np.meshgrid(*[points] * 4, indexing="ij"), -1).reshape(-1, 4)
    each = np.stack(np.meshgrid(*[weights / weights.sum()] * 4, indexing="ij"), -1)
    return nodes, each.prod(-1).ravel()


X = np.asarray([0.9, -0.2, 0.6]).reshape(1, *SHAPE)


@pytest.fixture(scope="module")
def losses_and_gradients(exact):
    """By objective: the loss at each node `[N]`, and the gradient there, leaves `[N, ...]`."""
    nodes = quadrature()[0]

    @jax.jit
    def at_nodes(params):
        def at_node(eps):
            return losses_and_gradients_of(exact.model, params, jnp.asarray(X), eps[:, None, None])

        return jax.vmap(at_node, out_axes=1)(nodes)

    def at(params):
        with jax.enable_x64(True):
            return by_objective(at_nodes(jax.tree.map(jnp.asarray, params)))

    return at


@pytest.fixture(scope="module")
def at_wrong(losses_and_gradients, wrong):
    return losses_and_gradients(wrong)


@pytest.fixture(scope="module")
def at_exact(losses_and_gradients, exact):
    return losses_and_gradients(exact.variables["params"])


def moments(gradients: Any) -> tuple[np.ndarray, np.ndarray]:
    """Exact mean and variance of each component."""
    _, weights = quadrature()
    flat = np.concatenate([leaf.reshape(len(leaf), -1) for leaf in jax.tree.leaves(gradients)], 1)
    mean = weights @ flat
    return mean, weights @ (flat - mean) ** 2


def test_bounds_are_ordered_below_the_exact_likelihood(exact, wrong, at_wrong):
    """ELBO < Rényi, CIWAE, MIWAE < IWAE < ln p(x), all exact, the last by SciPy.

    At the exact posterior all are ln p(x). With alpha > 1 the bound is below the ELBO.
    """
    _, weights = quadrature()
    bound = {objective: -weights @ losses for objective, (losses, _) in at_wrong.items()}
    names = {name: bound[plain] for name, (plain, _) in PAIRS.items()}

    decoder = wrong["likelihood"]
    w, mean = decoder["loc"]["kernel"], decoder["loc"]["bias"]
    noise = np.exp(2 * decoder["log_scale"])
    covariance = w.T @ w + noise * np.eye(3)
    log_p = type(exact)(**vars(exact) | {"mean": mean, "covariance": covariance}).log_likelihood(X)
    for between in ("renyi", "ciwae", "miwae"):
        assert names["elbo"] + 0.003 < names[between] < names["iwae"] - 0.001 < log_p
    assert names["renyi above 1"] < names["elbo"] - 0.01
    assert names["renyi below 0"] > names["iwae"] + 0.005
    assert names["piwae"] == pytest.approx(names["iwae"], abs=1e-12)
    for plain, other in PAIRS.values():
        assert bound[plain] == pytest.approx(bound[other], abs=2e-8)


def test_the_elbo_is_the_closed_form(exact, wrong, at_wrong):
    """Lucas et al. (2019): E_q ln p(x|z) of a linear decoder, less the KL, in NumPy."""
    q, decoder = wrong["posterior"], wrong["likelihood"]
    flat = X.ravel()
    mu = flat @ q["loc"]["kernel"] + q["loc"]["bias"]
    variance = np.exp(2 * (flat @ q["log_scale"]["kernel"] + q["log_scale"]["bias"]))
    w, noise = decoder["loc"]["kernel"], np.exp(2 * decoder["log_scale"])
    residual = flat - mu @ w - decoder["loc"]["bias"]
    square = residual @ residual + variance @ (w**2).sum(1)
    distortion = 0.5 * (3 * np.log(2 * np.pi * noise) + square / noise)
    rate = 0.5 * (variance + mu**2 - 1 - np.log(variance)).sum()
    for objective in PAIRS["elbo"]:
        assert quadrature()[1] @ at_wrong[objective][0] == pytest.approx(distortion + rate)


@every_pair
def test_expected_gradients_agree(name, at_wrong):
    """DReG and STL leave the mean of every gradient, of inference and generation, as it was.

    Both means are quadratures in float64, whose own error is below 1e-4.
    """
    plain, other = (moments(at_wrong[objective][1])[0] for objective in PAIRS[name])
    np.testing.assert_allclose(other, plain, atol=1e-4)
    assert (np.abs(plain) > 1e-3).all()


@every_pair
def test_inference_gradients_have_less_variance(name, at_wrong, at_exact):
    """With q near the posterior; at the posterior they have none (Roeder et al. 2017)."""
    plain, other = (moments(at_wrong[o][1]["posterior"])[1].sum() for o in PAIRS[name])
    assert other < 0.5 * plain
    plain, other = (moments(at_exact[o][1]["posterior"])[1].max() for o in PAIRS[name])
    assert other < 1e-20 < plain


# --- The same noise, sample by sample -----------------------------------------------------------

B = 3


def path_weights(bound: Bound, log_w: Array) -> Array:
    """v_k - d v_k / d ln w_k by automatic differentiation, `[K, B]`."""
    of_one = jax.vmap(lambda log_w: jax.grad(bound)(log_w), 1, 1)
    curvature = jax.vmap(lambda log_w: jnp.diag(jax.hessian(bound)(log_w)), 1, 1)
    return of_one(log_w) - curvature(log_w)


def log_mean_exp(x: Array) -> Array:
    return jnp.log(jnp.exp(x).mean())


# Each bound of ln w `[4]`, written independently; PIWAE's is that of its inference part.
BOUNDS: dict[str, Bound] = {
    "elbo": jnp.mean,
    "iwae": log_mean_exp,
    "miwae": lambda w: (log_mean_exp(w[:2]) + log_mean_exp(w[2:])) / 2,
    "piwae": lambda w: (log_mean_exp(w[:2]) + log_mean_exp(w[2:])) / 2,
    "ciwae": lambda w: 0.3 * w.mean() + 0.7 * log_mean_exp(w),
    "renyi": lambda w: log_mean_exp(0.6 * w) / 0.6,
    "renyi above 1": lambda w: -log_mean_exp(-w),
    "renyi below 0": lambda w: log_mean_exp(2 * w) / 2,
}


@pytest.fixture(scope="module")
def same_noise():
    """Gradients of all objectives for one draw of a nonlinear model's noise, in float64.

    Beside them the gradient of q's parameters by the identity in the docstring of
    `vae_jax.objectives.importance`, from a Hessian of the bound.
    """
    generator = np.random.default_rng(3)
    with jax.enable_x64(True):
        x = jnp.asarray(generator.integers(2, size=(B, *VANILLA.image_shape)), jnp.float64)
        keys = jax.random.split(jax.random.key(0), B)
        eps = jnp.asarray(generator.normal(size=(4, B, 2)))
        shapes = jax.eval_shape(VANILLA.init, keys[0], x, keys)["params"]
        params = jax.tree.map(
            lambda leaf: jnp.asarray(generator.normal(0, 0.6, leaf.shape)), shapes
        )

        @jax.jit
        def everything(params):
            _, of_objectives = losses_and_gradients_of(VANILLA, params, x, eps)
            q: Any = VANILLA.apply({"params": params}, x, method="encode")

            def log_w_along_z(inference):
                own: Any = VANILLA.apply({"params": params | inference}, x, method="encode")
                z = own.loc + own.scale * eps
                log_joint = VANILLA.apply({"params": params}, x, (z,), method="log_joint")
                return log_joint - q.log_prob(z)

            inference = {name: params[name] for name in INFERENCE if name in params}
            log_w, pullback = jax.vjp(log_w_along_z, inference)
            weights = jnp.stack([path_weights(bound, log_w) for bound in BOUNDS.values()])
            return of_objectives, jax.vmap(pullback)(-weights / B)[0]

        of_objectives, by_identity = everything(params)
    identities = {
        name: jax.tree.map(lambda leaf: np.asarray(leaf[number]), by_identity)  # noqa: B023
        for number, name in enumerate(BOUNDS)
    }
    return by_objective(of_objectives) | identities


def split(gradients: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Those of inference, and those of generation."""
    inference = {name: value for name, value in gradients.items() if name in INFERENCE}
    return inference, {name: gradients[name] for name in gradients.keys() - inference.keys()}


def assert_same(ours: Any, theirs: Any, rtol: float = 1e-9) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-13), ours, theirs)


@every_pair
def test_the_path_has_the_weight_of_the_identity(name, same_noise):
    """v_k - dv_k / d ln w_k times d ln w_k along z_k; generation keeps its gradient."""
    plain, other = (split(same_noise[objective]) for objective in PAIRS[name])
    assert_same(other[0], same_noise[name])
    if name != "elbo":  # whose plain form has the exact KL, which no decoder sees
        assert np.abs(ravel_pytree(other[0])[0] - ravel_pytree(plain[0])[0]).max() > 1e-3
    assert_same(other[1], plain[1])


@pytest.mark.parametrize("dreg", [False, True])
def test_piwae_is_miwae_for_q_and_iwae_for_p(dreg, same_noise):
    """Rainforth et al. (2018): with the same noise the gradients are equal, group by group."""
    inference, generation = split(same_noise[PIWAE(2, 2, dreg)])
    miwae, iwae = split(same_noise[MIWAE(2, 2, dreg)]), split(same_noise[IWAE(4, dreg)])
    assert_same(inference, miwae[0], rtol=0)
    assert_same(generation, iwae[1])
    assert np.abs(ravel_pytree(miwae[1])[0] - ravel_pytree(iwae[1])[0]).max() > 1e-3


# --- How noise grows with the number of samples -------------------------------------------------


@pytest.fixture(scope="module")
def ratios():
    """By (M, K): signal-to-noise ratios of a smaller toy, with enough draws for 2%."""
    toy = script("signal_to_noise").Toy.make(dim=4, images=256, offset=0.03)
    pairs = (1, 32), (1, 512), (16, 32)
    return {(m, k): toy.signal_to_noise(m, k, 2048 // (m * k)) for m, k in pairs}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "by_k"), [("generative", 0.5), ("inference", -0.5), ("inference, DReG", 0.5)]
)
def test_signal_to_noise_ratios_are_powers_of_k_and_m(name, by_k, ratios):
    """sqrt(M K) and sqrt(M / K) (Rainforth et al. 2018); with DReG sqrt(M K) (Tucker et al. 2019).

    The slopes' standard errors are below 0.01; the bound is 0.05.
    """
    one, more_samples, more_bounds = (ratios[pair][name] for pair in [(1, 32), (1, 512), (16, 32)])
    assert math.log(more_samples / one, 16) == pytest.approx(by_k, abs=0.05)
    assert math.log(more_bounds / one, 16) == pytest.approx(0.5, abs=0.05)


# --- What is refused ----------------------------------------------------------------------------


def test_a_weight_outside_of_zero_to_one_is_refused():
    for beta in (-0.1, 1.1):
        with pytest.raises(VaeJaxError, match="give a number of at least 0 and at most 1"):
            CIWAE(2, beta)


@every_pair
def test_path_estimators_need_a_path(name):
    plain, other = PAIRS[name]
    check_objective(other, VANILLA.clone(prior=VampPrior(3)))
    onehot = VANILLA.clone(posterior=Categorical(2, 3, 1.0))
    check_objective(plain, onehot)
    with pytest.raises(VaeJaxError, match="differentiable along z, which Categorical lacks"):
        check_objective(other, onehot)
    if name == "piwae":
        with pytest.raises(VaeJaxError, match="one layer of latents"):
            check_objective(other, TWO_LAYERS)
    else:
        check_objective(plain, TWO_LAYERS)
        check_objective(other, TWO_LAYERS)
