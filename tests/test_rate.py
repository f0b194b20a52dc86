"""Floors, targets and prices of the rate: by hand, and GECO against the paper's algorithm."""

import dataclasses
import math
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from gradients import assert_close, loss_and_metrics, norm, params_of
from jax import Array, lax
from running import on_devices
from scipy import stats
from test_objectives import KL, LOG_PX, LOG_PZ, LOG_QZ, TWO_LAYERS, make_terms

from vae_jax import (
    DIPVAE,
    ELBO,
    GECO,
    WAE,
    BetaTC,
    Capacity,
    FreeBits,
    InfoVAE,
    Multiplier,
    Terms,
    VaeJaxError,
    VampPrior,
    WakeSleep,
    cyclical_schedule,
    train,
)
from vae_jax.compatibility import check_objective, notes
from vae_jax.distributions import Normal
from vae_jax.optimizers import by_group
from vae_jax.step import loss_at_terms

STEP = jnp.int32(0)
B = 6
X = jnp.asarray(tiny.images(B, 0), jnp.float32) / 255
KEYS = jax.random.split(jax.random.key(1), B)


def terms_of(loc: Array, exact: bool = True) -> Terms:
    """q = N(loc, 1) and p = N(0, 1), `loc` `[B, d]`; z is loc + 1, K = 1; the distortion is 3."""
    q, p = Normal(loc, jnp.ones_like(loc)), Normal(jnp.zeros(loc.shape[1]), jnp.ones(loc.shape[1]))
    z = loc[None] + 1
    terms = make_terms(
        jnp.full((1, len(loc)), -3.0),
        p.log_prob(z)[None],
        q.log_prob(z)[None],
        0.5 * (loc**2).sum(-1)[None] if exact else None,
    )
    return terms.replace(q=(q,), p=(p,), z=(z,))  # pyright: ignore[reportAttributeAccessIssue]


# Free bits


@partial(jax.jit, static_argnames=("per", "exact"))
def free_bits(floor: Any, loc: Array, per: Any = "dimension", exact: bool = True) -> Any:
    return FreeBits(floor, per)(terms_of(loc, exact), STEP, tiny.model())


def test_free_bits_take_the_batch_mean_before_the_maximum() -> None:
    """KL of N(m, 1) from N(0, 1) is m²/2: the means are 0.5 and 1, of 0 and 2, by hand."""
    loc = jnp.array([[1.0, 0.0], [1.0, 2.0]])
    for floor, rate in ((0.0, 1.5), (0.75, 1.75), (2.0, 4.0)):
        loss, metrics = free_bits(floor, loc)
        assert loss == pytest.approx(3 + rate)
        assert metrics["neg_elbo"] == pytest.approx(4.5)


def test_free_bits_of_layers_by_hand() -> None:
    """The layers' exact KLs are 1 and 2, the sampled ones 0.625 and 1 (see test_objectives)."""
    exact = make_terms(LOG_PX, LOG_PZ, LOG_QZ, KL)
    sampled = make_terms(LOG_PX, LOG_PZ, LOG_QZ)
    assert FreeBits(1.5, per="layer")(exact, STEP, tiny.model())[0] == pytest.approx(3 + 1.5 + 2)
    assert FreeBits(0.8, per="layer")(sampled, STEP, tiny.model())[0] == pytest.approx(3 + 0.8 + 1)


def test_free_bits_sample_where_there_is_no_exact_kl() -> None:
    """SciPy's densities at the given z; a dimension below the floor costs the floor."""
    loc = np.array([[0.5, -0.4], [1.0, -0.7]])
    rates = (stats.norm.logpdf(loc + 1, loc) - stats.norm.logpdf(loc + 1)).mean(0)
    assert rates[1] < 0.3 < rates[0]
    loss, _ = free_bits(0.3, jnp.asarray(loc, jnp.float32), exact=False)
    assert loss == pytest.approx(3 + rates[0] + 0.3, rel=1e-6)


def test_no_gradient_passes_to_a_dimension_below_the_floor() -> None:
    """m²/2 has the gradient m / B above it, 0 below."""
    loc = jnp.array([[1.0, 0.3], [2.0, -0.4]])
    gradient, _ = jax.grad(free_bits, 1, has_aux=True)(0.5, loc)
    np.testing.assert_allclose(gradient, [[0.5, 0.0], [1.0, 0.0]], rtol=1e-6)
    # The layer's KL is 1.3125.
    gradient, _ = jax.grad(free_bits, 1, has_aux=True)(1.5, loc, per="layer")
    np.testing.assert_array_equal(gradient, 0.0)


def test_without_a_floor_the_dimensions_of_every_layer_add_up() -> None:
    """To the ELBO of a model of two layers with two dimensions each; a high floor counts four."""
    model = TWO_LAYERS
    no_floor, high_floor = FreeBits(0.0), FreeBits(100.0)
    object.__setattr__(no_floor, "floor", -math.inf)  # which the constructor refuses

    @jax.jit
    def losses() -> Any:
        x, keys = jnp.ones((B, *model.image_shape)), KEYS
        terms, _ = model.init_with_output(jax.random.key(0), x, keys, 2)
        free = [objective(terms, STEP, tiny.model())[0] for objective in (no_floor, high_floor)]
        return free, ELBO()(terms, STEP, tiny.model())[0], -terms.log_px.mean()

    (none, high), elbo, distortion = losses()
    assert none == pytest.approx(float(elbo), rel=1e-5)
    assert high == pytest.approx(float(distortion) + 400, rel=1e-6)


# Capacity and schedules


@pytest.mark.parametrize(("step", "capacity"), [(0, 0.0), (50, 2.5), (100, 5.0), (900, 5.0)])
def test_capacity_by_hand(step: int, capacity: float) -> None:
    """The mean KL is 3, the images' are 1.5 and 4.5: not the mean of their distances from C."""
    objective = Capacity(gamma=10.0, capacity=optax.linear_schedule(0.0, 5.0, 100))
    loss, metrics = objective(make_terms(LOG_PX, LOG_PZ, LOG_QZ, KL), jnp.int32(step), tiny.model())
    assert loss == pytest.approx(3 + 10 * abs(3 - capacity))
    assert metrics["capacity"] == pytest.approx(capacity)
    assert metrics["neg_elbo"] == pytest.approx(6.0)


@pytest.mark.parametrize(("total", "cycles", "ratio"), [(40, 4, 0.5), (100, 3, 0.8), (10, 1, 1.0)])
def test_cyclical_schedule_is_the_papers(total: int, cycles: int, ratio: float) -> None:
    """Fu et al. (2019) in Python, t = 1, ..., T: tau = mod(t - 1, ceil(T/M)) / (T/M)."""
    schedule = cyclical_schedule(total, cycles, ratio)
    expected = []
    for t in range(1, total + 1):
        tau = ((t - 1) % math.ceil(total / cycles)) / (total / cycles)
        expected.append(tau / ratio if tau <= ratio else 1.0)
    np.testing.assert_allclose(schedule(jnp.arange(total)), expected, atol=1e-6)
    loss, metrics = ELBO(beta=schedule)(
        make_terms(LOG_PX, LOG_PZ, LOG_QZ, KL), jnp.int32(3), tiny.model()
    )
    assert loss == pytest.approx(3 + 3 * expected[3])
    assert metrics["neg_elbo"] == pytest.approx(6.0)


# GECO

PLAYER = tiny.model().clone(critic=Multiplier(initial=0.4))


def initial() -> Any:
    """Parameters at which lambda is the player's 0.4."""
    params = params_of(PLAYER, GECO(7.0), X, KEYS)
    return params | {"critic": {"log_multiplier": np.log(np.float32(0.4))}}


@jax.jit
def gradients_of(params: Any, tolerance: Array | float) -> Any:
    """GECO's, and its metrics."""
    of_params = jax.grad(loss_and_metrics, has_aux=True)
    return of_params(params, PLAYER, GECO(tolerance), X, KEYS)  # pyright: ignore[reportArgumentType]


def test_geco_is_a_game_of_two() -> None:
    """The model has the gradient of KL + 0.4 C, ln lambda that of -C: from the Terms alone."""

    @jax.jit
    @partial(jax.grad, has_aux=True)
    def lagrangian(params: Any) -> tuple[Array, Array]:
        terms: Any = PLAYER.apply({"params": params}, X, KEYS)
        constraint = -terms.log_px.mean() - 7.0
        return terms.kl.sum() / B + 0.4 * constraint, constraint

    (actual, metrics), (expected, constraint) = gradients_of(initial(), 7.0), lagrangian(initial())
    assert actual["critic"].pop("log_multiplier") == pytest.approx(-float(constraint), rel=1e-6)
    assert norm(expected["critic"]) == 0
    assert_close(actual, expected | {"critic": {}}, 1e-5)
    assert metrics["multiplier"] == pytest.approx(0.4)
    assert metrics["constraint"] == pytest.approx(float(constraint), rel=1e-6)


@pytest.mark.parametrize("tolerance", [5.0, 20.0])
def test_the_multiplier_follows_algorithm_1(tolerance: float) -> None:
    """The optimizer of the docstring against Rezende & Viola's update of lambda, in NumPy.

    The model is held, so that C stays as it is: above 0 lambda rises, below it falls. Then C
    changes at once, and lambda goes with its moving average.
    """
    optimizer = by_group(optax.set_to_zero(), critic=optax.chain(optax.ema(0.7), optax.sgd(0.02)))
    params = initial()
    state, found, constraints = optimizer.init(params), [], []
    for each in [tolerance] * 3 + [tolerance - 30.0] * 3:
        gradients, metrics = gradients_of(params, each)
        updates, state = optimizer.update(gradients, state, params)
        params: Any = optax.apply_updates(params, updates)
        found.append(float(np.exp(params["critic"]["log_multiplier"])))
        constraints.append(float(metrics["constraint"]))

    multiplier, average, expected = 0.4, 0.0, []
    for t, constraint in enumerate(constraints):
        average = 0.7 * average + 0.3 * constraint
        multiplier *= math.exp(0.02 * average / (1 - 0.7 ** (t + 1)))
        expected.append(multiplier)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert (constraints[0] > 0) == (found[0] > 0.4) == (tolerance == 5.0)


def test_geco_reaches_its_tolerance() -> None:
    """On 64 bars: the last distortions average to the tolerance, and lambda has risen and fallen.

    The distortion at the start is 16 ln 2 = 11.1, at the end of training for it alone below 9.
    """
    tolerance, steps = 9.6, 1500
    objective, model = GECO(tolerance), tiny.model(hidden=16).clone(critic=Multiplier())
    x = jnp.asarray(tiny.images(64, 0), jnp.float32) / 255
    optimizer = by_group(optax.adam(1e-2), critic=optax.chain(optax.ema(0.9), optax.sgd(0.02)))

    @jax.jit
    def trained() -> Any:
        keys = jax.random.split(jax.random.key(1), (steps, len(x)))
        params = nn.init(loss_at_terms, model)(keys[0, 0], objective, x, keys[0], None, STEP)

        def step(carry: Any, keys: Array) -> tuple[Any, Any]:
            params, state = carry
            of_params = jax.grad(loss_and_metrics, has_aux=True)
            gradients, metrics = of_params(params, model, objective, x, keys)
            updates, state = optimizer.update(gradients, state, params)
            return (optax.apply_updates(params, updates), state), metrics

        return lax.scan(step, (params["params"], optimizer.init(params["params"])), keys)[1]

    metrics = jax.tree.map(np.asarray, trained())
    multiplier = metrics["multiplier"]
    assert metrics["constraint"][0] > 1.0
    assert metrics["distortion"][-200:].mean() == pytest.approx(tolerance, abs=0.05)
    assert multiplier.max() > 1.5
    assert multiplier[-200:].mean() < 0.9 * multiplier.max()
    assert multiplier.min() > 0


@pytest.mark.slow
def test_training_says_that_a_multiplier_has_no_optimizer_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
    own = optax.chain(optax.clip(1.0), by_group(plain, critic=optax.sgd(1e-3)))
    params = initial()
    assert not list(notes(GECO(7.0), own.init(params)))
    assert not list(notes(ELBO(), plain.init(params)))
    (sentence,) = notes(GECO(7.0), plain.init(params))
    assert "The multiplier of GECO is moved by the model's optimizer" in sentence
    experiment = dataclasses.replace(
        tiny.experiment(num_steps=5), model=PLAYER, objective=GECO(7.0), optimizer=plain
    )
    with on_devices(1):
        train(experiment, tmp_path / "run")
    assert sentence in capsys.readouterr().err


# What holds for all


def test_the_reported_bound_has_one_weight() -> None:
    """Whatever the rate costs in training, `neg_elbo` is the ELBO's: validation compares them."""
    objectives = [
        ELBO(beta=4.0),
        FreeBits(2.0),
        Capacity(10.0, 3.0),
        GECO(2.0),
        BetaTC(6.0, 50, alpha=0.5, gamma=2.0),
        DIPVAE(3.0, 5.0),
        InfoVAE(0.5, 100.0),
        WAE(10.0),
        WakeSleep(),
    ]

    def all_metrics(model: Any) -> Any:
        terms = model(X, KEYS)
        results = [objective(terms, STEP, model) for objective in (ELBO(), *objectives)]
        return [(loss, metrics["neg_elbo"]) for loss, metrics in results]

    apply = jax.jit(nn.apply(all_metrics, PLAYER))
    (_, expected), *rest = apply({"params": initial()})
    for objective, (loss, neg_elbo) in zip(objectives, rest, strict=True):
        assert neg_elbo == pytest.approx(float(expected), rel=1e-6), objective
        assert abs(loss - neg_elbo) > 1e-3, objective


def test_refusals() -> None:
    vamp = tiny.model().clone(prior=VampPrior(3))
    with pytest.raises(VaeJaxError, match="FreeBits needs a prior with independent components"):
        check_objective(FreeBits(0.1), vamp)
    check_objective(FreeBits(0.1, per="layer"), vamp)
    with pytest.raises(VaeJaxError, match=r"GECO plays against a critic: .*critic=Multiplier"):
        check_objective(GECO(3.0), vamp)
