"""Objectives by hand, their gradients by equation 14 and by finite differences in float64."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from jax.flatten_util import ravel_pytree
from scipy import special

from vae_jax import (
    ELBO,
    IWAE,
    MLP,
    VAE,
    Bernoulli,
    DiagonalGaussian,
    HierarchicalVAE,
    StandardNormal,
    Terms,
    VampPrior,
)

STEP = jnp.int32(0)
SHAPE, D, B, K = (3, 2, 1), 2, 3, 4


def make_terms(log_px, log_pz, log_qz, kl=None) -> Terms:
    """Terms of the given numbers; what objectives must not look at is None."""
    unused: Any = None
    return Terms(
        x=unused,
        y=None,
        keys=unused,
        z=unused,
        path=unused,
        log_px=jnp.asarray(log_px),
        log_pz=jnp.asarray(log_pz),
        log_qz=jnp.asarray(log_qz),
        kl=None if kl is None else jnp.asarray(kl),
        q=unused,
        p=unused,
        reconstruction=unused,
    )


# K = 2 samples, B = 2 examples, L = 2 layers; all means below are done by hand.
LOG_PX = [[-1.0, -2.0], [-3.0, -6.0]]
LOG_PZ = [[[-1.0, -1.0], [-2.0, -1.0]], [[-3.0, -1.0], [-1.0, -1.0]]]
LOG_QZ = [[[-0.5, -1.0], [-1.0, 0.0]], [[-1.0, 0.0], [0.0, -1.0]]]
KL = [[0.5, 1.5], [1.0, 3.0]]
# Distortion: (2 + 4) / 2 = 3. Exact rate: (1.5 + 4.5) / 2 = 3.
# Sampled rates: layer 1 (0.5 + 0 + 1 + 1) / 4 = 0.625, layer 2 (2 + 1 + 1 + 0) / 4 = 1.


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 4.0])
def test_elbo_by_hand(beta):
    loss, metrics = ELBO(num_samples=2, beta=beta)(
        make_terms(LOG_PX, LOG_PZ, LOG_QZ, KL), STEP, tiny.model()
    )
    assert loss == pytest.approx(3 + beta * 3)
    expected = {
        "neg_elbo": 6.0,
        "beta": beta,
        "distortion": 3.0,
        "kl": 3.0,
        "kl_sampled": 1.625,
        "kl_sampled_z2": 1.0,
    }
    assert {name: float(value) for name, value in metrics.items()} == pytest.approx(expected)


def test_elbo_takes_the_sampled_rate_where_no_exact_one_exists():
    loss, metrics = ELBO(beta=2.0)(make_terms(LOG_PX, LOG_PZ, LOG_QZ), STEP, tiny.model())
    assert loss == pytest.approx(3 + 2 * 1.625)
    assert metrics["neg_elbo"] == pytest.approx(4.625)
    assert "kl" not in metrics


@pytest.mark.parametrize(("step", "beta"), [(0, 0.0), (25, 0.25), (100, 1.0), (500, 1.0)])
def test_warm_up(step, beta):
    """A linear schedule over 100 steps; the reported bound never has another weight than one."""
    objective = ELBO(beta=optax.linear_schedule(0.0, 1.0, 100))
    loss, metrics = objective(make_terms(LOG_PX, LOG_PZ, LOG_QZ, KL), jnp.int32(step), tiny.model())
    assert loss == pytest.approx(3 + beta * 3)
    assert metrics["beta"] == pytest.approx(beta)
    assert metrics["neg_elbo"] == pytest.approx(6.0)


@pytest.mark.parametrize("shift", [0.0, -1000.0])
def test_iwae_is_the_log_of_the_mean_weight(shift):
    """SciPy's logsumexp; weights as small as e^-1000 do not underflow. The exact KL is ignored."""
    log_px = np.asarray(LOG_PX) + shift
    log_w = log_px + (np.asarray(LOG_PZ) - np.asarray(LOG_QZ)).sum(0)
    expected = -(special.logsumexp(log_w, axis=0) - np.log(2)).mean()
    for kl in (KL, None):
        loss, metrics = IWAE(2)(make_terms(log_px, LOG_PZ, LOG_QZ, kl), STEP, tiny.model())
        assert loss == pytest.approx(expected, rel=1e-6)
        assert metrics["neg_elbo"] == pytest.approx(-log_w.mean(), rel=1e-6)
        assert metrics["distortion"] == pytest.approx(-log_px.mean(), rel=1e-6)
    assert loss < metrics["neg_elbo"]


def test_the_bounds_are_one_at_one_sample():
    """L_1 is the ELBO with the sampled rate."""
    one = [np.asarray(LOG_PX)[:1], np.asarray(LOG_PZ)[:, :1], np.asarray(LOG_QZ)[:, :1]]
    terms = make_terms(*one)
    assert IWAE(1)(terms, STEP, tiny.model())[0] == pytest.approx(
        ELBO()(terms, STEP, tiny.model())[0]
    )


# --- Gradients ----------------------------------------------------------------------------------

VANILLA = VAE(
    encoder=MLP((4,)),
    posterior=DiagonalGaussian(D),
    prior=StandardNormal(D),
    decoder=MLP((4,)),
    likelihood=Bernoulli(),
    image_shape=SHAPE,
)
TWO_LAYERS = HierarchicalVAE(
    encoders=[MLP((4,)), MLP((4,))],
    posteriors=[DiagonalGaussian(D), DiagonalGaussian(D)],
    prior=StandardNormal(D),
    decoders=[MLP((4,)), MLP((4,))],
    conditionals=[DiagonalGaussian(D)],
    likelihood=Bernoulli(),
    image_shape=SHAPE,
)


MODELS = {
    "standard": VANILLA,
    "vamp": VANILLA.clone(prior=VampPrior(3)),
    "two layers": TWO_LAYERS,
}
OBJECTIVES = {"elbo": ELBO(K, beta=0.7), "iwae": IWAE(K)}
H = 1e-4


@pytest.fixture(scope="module", params=MODELS.values(), ids=list(MODELS))
def derivatives(request):
    """Losses, gradients and weights of one model in float64, with fixed noise, on the host.

    `losses` are at the parameters moved by -2h, -h, h and 2h along three directions, `[4, 3, 2]`;
    `gradients` are of both losses, `[2, P]`, `jacobian` is of log_w, `[K, B, P]`.
    """
    with jax.enable_x64(True):
        params, terms = flat_problem(request.param)
        directions = np.random.default_rng(0).normal(size=(3, len(params)))

        def values(params):
            of_params = terms(params)
            losses = [
                objective(of_params, STEP, tiny.model())[0] for objective in OBJECTIVES.values()
            ]
            return jnp.stack(losses), of_params.log_w

        @jax.jit
        def everything(params):
            gradients, jacobian = jax.jacrev(values)(params)
            moved = jnp.array([-2, -1, 1, 2])[:, None, None] * H * directions
            losses, _ = jax.vmap(jax.vmap(values))(params + moved)
            log_w = values(params)[1]
            return {"gradients": gradients, "jacobian": jacobian, "losses": losses, "log_w": log_w}

        return jax.tree.map(np.asarray, everything(params)) | {"directions": directions}


def flat_problem(model):
    """Parameters as one vector, and the Terms as a function of it."""
    generator = np.random.default_rng(1)
    keys = jax.random.split(jax.random.key(0), B)
    x = jnp.asarray(generator.integers(2, size=(B, *SHAPE)), jnp.float64)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x, keys)["params"]
    # Larger weights than at the start, so that no term of the gradient is small by chance.
    params = jax.tree.map(lambda leaf: generator.normal(0, 0.6, leaf.shape), shapes)
    flat, unravel = ravel_pytree(params)
    return flat, lambda flat: model.apply({"params": unravel(flat)}, x, keys, K)


def test_iwae_weights_favour_the_best_samples_held_fixed_without_an_analytic_kl(derivatives):
    """Burda et al. (2015), eq. 14: sum_k w_k / sum w . grad log w_k, the weights held fixed.

    The gradients of each log_w come from a Jacobian and the softmax from SciPy. Weights that are
    reversed, not held fixed or mixed with an analytic KL give another vector.
    """
    weights = special.softmax(derivatives["log_w"], axis=0)
    expected = -np.einsum("kb,kbp->p", weights, derivatives["jacobian"]) / B
    np.testing.assert_allclose(derivatives["gradients"][1], expected, rtol=1e-9, atol=1e-11)
    assert np.ptp(weights, axis=0).min() > 0.05  # or a plain mean would pass


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_gradients_by_central_differences(derivatives, objective):
    """[8 (f(p + hv) - f(p - hv)) - f(p + 2hv) + f(p - 2hv)] / 12h against grad f . v.

    In float64, the noise fixed, along three directions v; the truncation error is O(h⁴).
    """
    number = list(OBJECTIVES).index(objective)
    gradient = derivatives["gradients"][number]
    assert gradient.dtype == np.float64
    expected = derivatives["directions"] @ gradient
    differences = np.array([1, -8, 8, -1]) @ derivatives["losses"][..., number] / (12 * H)
    np.testing.assert_allclose(differences, expected, rtol=1e-6)
