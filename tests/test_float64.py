"""Densities, divergences, bounds and their gradients in float32 against the same in float64.

At the spreads and scales that training meets, where a formula that cancels would show. That the
formulas are right is said by the tests of each part.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from scipy import special, stats

from vae_jax.distributions import (
    Concrete,
    HypersphericalUniformDistribution,
    LaplaceDistribution,
    Mixture,
    MultivariateNormal,
    Normal,
    OneHotCategorical,
    StudentT,
    VonMisesFisherDistribution,
    exact_kl,
    nearest,
)
from vae_jax.flows import (
    MADE,
    AffineCoupling,
    CouplingNetwork,
    Householder,
    InverseAutoregressive,
    MaskedAutoregressive,
    Planar,
    Sylvester,
    orthogonalize,
)
from vae_jax.likelihoods.bernoulli import BernoulliDistribution
from vae_jax.likelihoods.beta import BetaDistribution
from vae_jax.likelihoods.continuous_bernoulli import ContinuousBernoulliDistribution
from vae_jax.likelihoods.logistic import DiscretizedLogisticDistribution
from vae_jax.likelihoods.logistic_mixture import MixtureOfLogisticsDistribution
from vae_jax.objectives.renyi import renyi_bound

RNG = np.random.default_rng(0)
Arrays = tuple[np.ndarray, ...]
Case = tuple[Callable[..., Any], Arrays]


def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
    return scale * RNG.normal(size=shape)


def powers(low: float, high: float, *shape: int) -> np.ndarray:
    """Numbers of every order of magnitude from 10^low to 10^high."""
    return 10 ** RNG.uniform(low, high, shape)


def unit(*shape: int) -> np.ndarray:
    vectors = normal(*shape)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def tril(*shape: int, diagonal: np.ndarray) -> np.ndarray:
    below = np.tril(normal(*shape, shape[-1]), -1)
    return below + diagonal[..., None] * np.eye(shape[-1])


# --- Densities ----------------------------------------------------------------------------------


def mixture(spread: float, scale: float, offset: float = 0.0) -> Case:
    """Values near their components, which are far from each other."""
    loc = offset + normal(12, 5, scale=spread)
    value = loc[RNG.integers(12, size=40)] + normal(40, 5, scale=scale)
    arrays = value, loc, np.log(scale) + normal(12, 5, scale=0.1), normal(12)

    def log_prob(value: Any, loc: Any, log_scale: Any, logits: Any) -> Any:
        return Mixture(jax.nn.log_softmax(logits), Normal(loc, jnp.exp(log_scale))).log_prob(value)

    return log_prob, arrays


def continuous_bernoulli() -> Case:
    logits = np.concatenate([powers(-4, 4, 20), -powers(-4, 4, 20), [0.0, 1.0, -1.0, 9999.9]])
    x = RNG.uniform(size=(8, logits.size))
    x[0], x[1] = 0, 1
    return lambda a, x: ContinuousBernoulliDistribution(a, event_ndims=0).log_prob(x), (logits, x)


def beta() -> Case:
    k, m = powers(-4, 4.3, 60), special.expit(RNG.uniform(-7, 7, 60))
    x = stats.beta(1 + k * m, 1 + k * (1 - m)).rvs(random_state=RNG)
    arrays = m, k, np.clip(x, 2.0**-20, 1 - 2.0**-20)
    return lambda m, k, x: BetaDistribution(m, concentration=k, event_ndims=0).log_prob(x), arrays


def discretized_logistic() -> Case:
    loc, scale = RNG.uniform(0, 1, 60), powers(-4, 3, 60)
    x = np.clip(np.round(255 * (loc + scale * RNG.logistic(size=60))), 0, 255) / 255

    def log_prob(loc: Any, scale: Any, x: Any) -> Any:
        return DiscretizedLogisticDistribution(loc, scale=scale, event_ndims=0).log_prob(x)

    return log_prob, (loc, scale, x)


def mixture_of_logistics() -> Case:
    shape = (4, 4, 3)  # height, width, components
    coefficients = np.tril(RNG.uniform(-1, 1, (*shape, 3, 3)), -1)
    loc, scale = RNG.uniform(0, 1, (*shape, 3)), powers(-2.5, 0, *shape, 3)
    x = RNG.integers(256, size=(6, 4, 4, 3)) / 255

    def log_prob(logits: Any, loc: Any, scale: Any, coefficients: Any, x: Any) -> Any:
        log_weights = jax.nn.log_softmax(logits)
        return MixtureOfLogisticsDistribution(log_weights, loc, scale, coefficients).log_prob(x)

    return log_prob, (normal(*shape), loc, scale, coefficients, x)


DENSITIES: dict[str, Case] = {
    "Normal": (
        lambda x, m, s: Normal(m, s, event_ndims=0).log_prob(x),
        (normal(60, scale=3), normal(60, scale=3), powers(-2, 2, 60)),
    ),
    "Laplace": (
        lambda x, m, s: LaplaceDistribution(m, s, event_ndims=0).log_prob(x),
        (normal(60, scale=3), normal(60, scale=3), powers(-2, 2, 60)),
    ),
    "StudentT": (
        lambda x, s, dof: StudentT(jnp.zeros_like(x), s, dof, event_ndims=0).log_prob(x),
        (normal(60, scale=3), powers(-2, 2, 60), powers(-0.3, 5, 60)),
    ),
    "mixture": mixture(3, 0.01),
    "wide mixture": mixture(30, 0.1),
    "mixture far from zero": mixture(1, 0.1, offset=100),
    "mixture of neighbours": mixture(0.3, 1),
    "MultivariateNormal": (
        lambda x, *p: MultivariateNormal(*p).log_prob(x),
        (normal(7, 4, 6), normal(4, 6), tril(4, 6, diagonal=powers(-0.7, 0.3, 4, 6))),
    ),
    "Bernoulli": (
        lambda a, x: BernoulliDistribution(a, event_ndims=0).log_prob(x),
        (normal(60) * powers(-2, 4, 60), RNG.integers(2, size=60)),
    ),
    "ContinuousBernoulli": continuous_bernoulli(),
    "Beta": beta(),
    "DiscretizedLogistic": discretized_logistic(),
    "MixtureOfLogistics": mixture_of_logistics(),
    "Concrete": (
        lambda a, z: Concrete(a, 0.1).log_prob(z),
        (normal(20, 3, 5, scale=3), special.log_softmax(normal(20, 3, 5, scale=40), -1)),
    ),
    "VonMisesFisher": (
        lambda *p: VonMisesFisherDistribution(*p[:2]).log_prob(p[2]),
        (unit(30, 5), powers(-3, 3, 30), unit(6, 30, 5)),
    ),
    "OneHotCategorical": (
        lambda a, z: OneHotCategorical(a, 1.0).log_prob(z),
        (normal(20, 3, 5, scale=30), np.eye(5)[RNG.integers(5, size=(20, 3))]),
    ),
}

# --- Divergences --------------------------------------------------------------------------------

BERNOULLI_LOGITS = np.concatenate(
    [normal(40) * powers(-2, 4, 40), normal(4) + 1e4 * np.array([1, 1, -1, -1])]
)
OTHER_LOGITS = np.concatenate(
    [BERNOULLI_LOGITS[:20] + normal(20), normal(20), normal(4) + 1e4 * np.array([0.9, -1, 1, 0])]
)


def kl(q: Callable[..., Any], p: Callable[..., Any], of_q: int) -> Callable[..., Any]:
    """The exact KL as a function of the parameters of both."""
    return lambda *parameters: exact_kl(q(*parameters[:of_q]), p(*parameters[of_q:]))


def normals(m: Any, s: Any) -> Normal:
    return Normal(m, s, event_ndims=0)


def bernoulli(logits: Any) -> BernoulliDistribution:
    return BernoulliDistribution(logits, event_ndims=0)


def categorical(logits: Any) -> OneHotCategorical:
    return OneHotCategorical(logits, 1.0)


DIVERGENCES: dict[str, Case] = {
    "Normal || Normal": (
        kl(normals, normals, 2),
        (normal(60, scale=3), powers(-3, 1, 60), normal(60, scale=3), powers(-2, 1, 60)),
    ),
    "Normal || Laplace": (
        kl(normals, lambda m, s: LaplaceDistribution(m, s, event_ndims=0), 2),
        (normal(60, scale=3), powers(-3, 1, 60), normal(60, scale=3), powers(-2, 1, 60)),
    ),
    "MultivariateNormal || Normal": (
        kl(MultivariateNormal, Normal, 2),
        (
            *(normal(9, 6), tril(9, 6, diagonal=powers(-3, 1, 9, 6))),
            *(normal(9, 6), powers(-1, 1, 9, 6)),
        ),
    ),
    "MultivariateNormal || MultivariateNormal": (
        kl(MultivariateNormal, MultivariateNormal, 2),
        (
            *(normal(9, 6), tril(9, 6, diagonal=powers(-1.5, 0.5, 9, 6))),
            *(normal(9, 6), tril(9, 6, diagonal=powers(-1, 0.5, 9, 6))),
        ),
    ),
    "VonMisesFisher || uniform": (
        lambda kappa: exact_kl(
            VonMisesFisherDistribution(jnp.eye(1, 8, dtype=kappa.dtype).repeat(30, 0), kappa),
            HypersphericalUniformDistribution(8),
        ),
        (powers(-1, 4, 30),),
    ),
    "Bernoulli || Bernoulli": (
        kl(bernoulli, bernoulli, 1),
        (BERNOULLI_LOGITS, OTHER_LOGITS),
    ),
    "Categorical || Categorical": (
        kl(categorical, categorical, 1),
        (normal(20, 3, 5, scale=30), normal(20, 3, 5, scale=30)),
    ),
}

# --- Flows --------------------------------------------------------------------------------------


def network(module: nn.Module, *inputs: np.ndarray) -> Any:
    """Normals of scale 1/2 as its variables."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), *map(jnp.asarray, inputs))
    return jax.tree.map(lambda leaf: normal(*leaf.shape, scale=0.5), shapes)


X, CONTEXT, MASK = normal(6, 4), normal(6, 3), np.array([1.0, 0.0, 1.0, 0.0])
OF_X, WITH_CONTEXT, COUPLED = MADE((8,)), MADE((8,)), CouplingNetwork((8,))
FLOWS: dict[str, Case] = {
    "Planar": (
        lambda *p: Planar(*p[:-1]).forward_and_log_det(p[-1]),
        (normal(6, 4, scale=3), normal(6, 4, scale=3), normal(6), X),
    ),
    "Householder": (
        lambda v, x: Householder(v).forward_and_log_det(x)[0],
        (normal(6, 3, 4) * powers(-3, 3, 6, 3, 1), X),
    ),
    "Sylvester": (
        lambda q, *p: Sylvester(orthogonalize(q), *p[:-1]).forward_and_log_det(p[-1]),
        (normal(6, 4, 3), normal(6, 3, 3), normal(6, 2, 3, scale=2), normal(6, 3), X),
    ),
    "Sylvester of reflections": (
        lambda v, *p: Sylvester(Householder(v), *p[:-1]).forward_and_log_det(p[-1]),
        (normal(6, 3, 4), normal(6, 4, 4), normal(6, 2, 4, scale=2), normal(6, 4), X),
    ),
    "InverseAutoregressive": (
        lambda v, c, x: InverseAutoregressive(WITH_CONTEXT, v, c).forward_and_log_det(x),
        (network(WITH_CONTEXT, X, CONTEXT), CONTEXT, X),
    ),
    "MaskedAutoregressive": (
        lambda v, x: MaskedAutoregressive(OF_X, v).inverse_and_log_det(x),
        (network(OF_X, X), X),
    ),
    "AffineCoupling": (
        lambda v, x: AffineCoupling(jnp.asarray(MASK), COUPLED, v).forward_and_log_det(x),
        (network(COUPLED, X), X),
    ),
}

# --- Bounds -------------------------------------------------------------------------------------

LOG_WEIGHTS = normal(10, 8) * powers(-2, 4, 8)
BOUNDS: dict[str, Case] = {
    f"Rényi bound at {alpha!r}": (lambda w, alpha=alpha: renyi_bound(w, alpha), (LOG_WEIGHTS,))
    for alpha in (
        *(-1e8, -1e4, -1.0, 0.0, 0.5, 0.99, 0.9999, 0.999999, 1 - 1e-9),
        *(1.0, 1.000001, 1.01, 3.0, 1e4, 1e8),
    )
}

CASES = DENSITIES | DIVERGENCES | FLOWS | BOUNDS


def value_and_gradients(function: Callable[..., Any], arrays: Any) -> Any:
    """The results, and the gradients of a sum in which they have different weights."""

    def weighted(*arrays: Any) -> Any:
        results = function(*arrays)
        leaves = [leaf.ravel() for leaf in jax.tree.leaves(results)]
        return sum((leaf * jnp.cos(jnp.arange(leaf.size))).sum() for leaf in leaves), results

    every = tuple(range(len(arrays)))
    gradients, results = jax.jit(jax.grad(weighted, every, has_aux=True))(*arrays)
    return results, gradients


@pytest.mark.parametrize("name", CASES)
def test_float32_is_float64(name):
    function, arrays = CASES[name]
    arrays = jax.tree.map(lambda a: np.asarray(a, np.float32), arrays)
    single = value_and_gradients(function, arrays)
    with jax.enable_x64(True):
        double = value_and_gradients(function, jax.tree.map(np.float64, arrays))
    assert {leaf.dtype for leaf in jax.tree.leaves(double)} == {np.dtype(np.float64)}

    def same(rtol: float, path: Any, actual: Any, expected: Any) -> None:
        where = jax.tree_util.keystr(path)
        np.testing.assert_allclose(actual, expected, rtol=rtol, atol=3e-5, err_msg=where)

    for each, of_double, rtol in zip(single, double, (5e-5, 3e-4), strict=True):
        jax.tree_util.tree_map_with_path(partial(same, rtol), each, of_double)


# --- Products -----------------------------------------------------------------------------------


def products(jaxpr: Any) -> Iterator[Any]:
    """The precision of every product of matrices in a program, those in loops included."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation.params["precision"]
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda each: hasattr(each, "eqns")):
            if hasattr(inner, "eqns"):
                yield from products(getattr(inner, "jaxpr", inner))


@pytest.mark.parametrize("name", CASES)
def test_products_say_that_they_are_exact(name):
    """Elsewhere than on CPUs a product that says nothing may have the digits of TF32."""
    function, arrays = CASES[name]
    arrays = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), arrays)
    program = jax.make_jaxpr(partial(value_and_gradients, function))(arrays)
    exact = lax.Precision.HIGHEST
    assert set(products(program.jaxpr)) <= {exact, (exact, exact)}


def test_a_covariance_close_to_singular_keeps_its_digits():
    """NumPy's solution in float64; by an inverse the gradient of L was off by a part in 70."""
    generator = np.random.default_rng(1)
    diagonal = 10 ** generator.uniform(-1.5, 0.3, (8, 6))
    below = np.tril(generator.normal(size=(8, 6, 6)), -1) / 2
    factor = (below + diagonal[..., None] * np.eye(6)).astype(np.float32).astype(float)
    value = (factor @ generator.normal(size=(50, 8, 6, 1)))[..., 0].astype(np.float32)
    z = np.linalg.solve(factor, value[..., None])[..., 0]
    inverse = np.linalg.inv(factor)
    expected = np.einsum("bji,kbj,kbl->bil", inverse, z, z) - 50 * np.stack(
        [np.diag(1 / np.diag(each)) for each in factor]
    )

    @jax.jit
    @jax.grad
    def gradient(factor: Any) -> Any:
        return MultivariateNormal(jnp.zeros((8, 6)), factor).log_prob(jnp.asarray(value)).sum()

    actual = gradient(jnp.asarray(factor, jnp.float32))
    assert np.abs(actual - np.tril(expected)).max() < 1e-3 * np.abs(expected).max()


def test_a_draw_from_a_covariance_close_to_singular_has_its_own_density():
    factor = jnp.tril(jnp.ones((20, 20)), -1) + 0.1 * jnp.eye(20)  # condition 1e17
    q = MultivariateNormal(jnp.zeros(20), factor)
    eps = jax.random.normal(jax.random.key(0), (9, 20))
    _, log_q = q.sample_and_log_prob(jax.random.key(0), (9,))
    expected = stats.norm.logpdf(eps).sum(-1) - 20 * np.log(0.1)
    np.testing.assert_allclose(log_q, expected, rtol=1e-5)


def test_where_a_density_is_below_the_floats_it_is_zero_and_of_no_number_it_is_none():
    generator = np.random.default_rng(2)
    factor = np.tril(300 * generator.normal(size=(200, 200)), -1) + 1e-3 * np.eye(200)
    value = generator.normal(size=(2, 200))
    q = MultivariateNormal(jnp.zeros(200), jnp.asarray(factor, jnp.float32))
    with np.errstate(over="ignore"):
        exact = -(np.linalg.solve(factor, value.T) ** 2).sum(0) / 2
    assert (exact < np.finfo(np.float32).min).all()
    found = jax.jit(q.log_prob)(jnp.asarray(value, jnp.float32).at[1, 3].set(jnp.nan))
    np.testing.assert_array_equal(found, [-np.inf, np.nan])


@pytest.mark.parametrize("spread", [0.0, 1e3])
@pytest.mark.parametrize("offset", [0.0, 1e3, 1e5])
def test_the_nearest_vector_is_nearest_in_float64(spread, offset):
    """Clusters far from zero and far from each other, of vectors close together."""
    vectors = normal(64, 8) + offset + spread * np.repeat([-1, 1], 32)[:, None]
    x = vectors[RNG.integers(64, size=500)] + normal(500, 8, scale=0.3)
    x, vectors = x.astype(np.float32), vectors.astype(np.float32)
    distances = ((x[:, None].astype(float) - vectors) ** 2).sum(-1)
    chosen = jax.jit(nearest)(x, vectors)
    np.testing.assert_array_equal(chosen, distances.argmin(-1))


@jax.jit
def beta_log_prob(x, mode, k):
    return BetaDistribution(jnp.full(x.shape, mode), concentration=k, event_ndims=0).log_prob(x)


@pytest.mark.parametrize("k", [1e-3, 1.0, 30.0, 1e3, 1e4, np.exp(10)])
@pytest.mark.parametrize("mode", [0.001, 0.2, 0.5, 0.99])
def test_betas_density_is_scipys_and_integrates_to_one(k, mode):
    """Its integral was 1.019 at the largest concentration."""
    k, mode = np.float32(k), np.float32(mode)
    parameters = 1 + float(k) * float(mode), 1 + float(k) * (1 - float(mode))
    edges = stats.beta.ppf(np.linspace(1e-9, 1 - 1e-9, 200_001), *parameters)
    x = ((edges[1:] + edges[:-1]) / 2).astype(np.float32)
    log_p = np.asarray(beta_log_prob(x, mode, k), np.float64)
    inside = (x > 2.0**-20) & (x < 1 - 2.0**-20)
    expected = stats.beta.logpdf(x.astype(float), *parameters)
    np.testing.assert_allclose(log_p[inside], expected[inside], rtol=1e-5, atol=1e-4)
    assert abs((np.exp(log_p) * np.diff(edges)).sum() - 1) < 1e-3
