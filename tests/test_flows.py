"""Invertible maps: Jacobians, inverses, implicit gradients, masks, and the priors made of them."""

import itertools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import linen as nn
from jax.test_util import check_grads
from scipy import linalg, optimize, stats

import vae_jax as vj
from vae_jax import MaskedAutoregressiveFlow, RealNVP
from vae_jax.distributions import Normal, Transformed
from vae_jax.flows import (
    MADE,
    AffineCoupling,
    CouplingNetwork,
    Householder,
    InverseAutoregressive,
    MaskedAutoregressive,
    Planar,
    Reverse,
    Sylvester,
    orthogonalize,
)
from vae_jax.flows.base import monotone_root

N, D, C = 64, 3, 2  # points, dimensions, context


def normal(seed: int, *shape: int, scale: float = 1.0) -> jax.Array:
    draws = np.random.default_rng(seed).normal(size=shape) * scale
    return jnp.asarray(draws, jnp.float32)


def spread(variables: Any, seed: int, scale: float) -> Any:
    """Parameters far from where training starts, for variables or their shapes."""
    leaves, structure = jax.tree.flatten(variables)
    drawn = [normal(seed + i, *leaf.shape, scale=scale) for i, leaf in enumerate(leaves)]
    return jax.tree.unflatten(structure, drawn)


def parameters(network: nn.Module, *example: jax.Array, scale: float = 0.7) -> Any:
    return spread(jax.eval_shape(network.init, jax.random.key(0), *example), 1, scale)


def sylvester(m: int, diagonals: jax.Array) -> Sylvester:
    q = jnp.asarray(np.linalg.qr(normal(0, D, m))[0])
    return Sylvester(q, normal(1, m, m, scale=2), diagonals, normal(3, m))


X = jnp.zeros(D)
CONTEXT = normal(4, C)
MADE_NETWORK = MADE((8, 7))
COUPLING_NETWORK = CouplingNetwork((8,))

FLOWS: dict[str, Any] = {
    "reverse": Reverse(),
    "planar": Planar(normal(0, D, scale=2), normal(1, D, scale=2), normal(2)),
    "planar_at_its_limit": Planar(-50 * normal(1, D), normal(1, D), normal(2)),
    "householder": Householder(normal(0, 2, D)),
    "sylvester": sylvester(2, normal(2, 2, 2)),
    "sylvester_without_q": Sylvester(None, normal(1, D, D, scale=2), normal(2, 2, D), normal(3, D)),
    "sylvester_of_reflections": Sylvester(
        Householder(normal(0, 2, D)), normal(1, D, D, scale=2), normal(2, 2, D), normal(3, D)
    ),
    "sylvester_at_its_limit": sylvester(D, jnp.outer(jnp.array([1, -1]), 1e4 * normal(2, D))),
    "iaf": InverseAutoregressive(
        MADE_NETWORK, parameters(MADE_NETWORK, X, CONTEXT, scale=0.5), CONTEXT
    ),
    "maf": MaskedAutoregressive(MADE_NETWORK, parameters(MADE_NETWORK, X, scale=0.5)),
    "coupling": AffineCoupling(
        jnp.array([1.0, 0.0, 1.0]), COUPLING_NETWORK, parameters(COUPLING_NETWORK, X)
    ),
}


@pytest.fixture(scope="module", params=FLOWS)
def mapped(request) -> dict[str, np.ndarray]:
    """Both directions of a flow at N points, in float32, with Jacobians."""

    @jax.jit
    def everything(flow, x):
        y, log_det = flow.forward_and_log_det(x)
        back, log_det_back = flow.inverse_and_log_det(y)
        inverse, inverse_log_det = flow.inverse_and_log_det(x)
        again, _ = flow.forward_and_log_det(inverse)
        forwards = jax.vmap(jax.jacfwd(lambda x: flow.forward_and_log_det(x)[0]))(x)
        inverses = jax.vmap(jax.jacfwd(lambda x: flow.inverse_and_log_det(x)[0]))(x)
        return {
            "x": x,
            "y": y,
            "log_det": log_det,
            "back": back,
            "log_det_back": log_det_back,
            "inverse_log_det": inverse_log_det,
            "again": again,
            "jacobian": forwards,
            "inverse_jacobian": inverses,
        }

    return jax.tree.map(np.asarray, everything(FLOWS[request.param], normal(9, N, D, scale=2)))


# --- Every flow ---------------------------------------------------------------------------------


def test_log_determinants_are_those_of_the_jacobians(mapped):
    """NumPy's slogdet of the Jacobians of the map and of its inverse."""
    forward = np.linalg.slogdet(mapped["jacobian"].astype(np.float64))[1]
    inverse = np.linalg.slogdet(mapped["inverse_jacobian"].astype(np.float64))[1]
    assert mapped["log_det"].shape == mapped["inverse_log_det"].shape == (N,)
    np.testing.assert_allclose(mapped["log_det"], forward, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(mapped["inverse_log_det"], inverse, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(mapped["log_det_back"], -mapped["log_det"], rtol=1e-3, atol=1e-3)


def test_inverses_invert(mapped):
    """To float32's precision, times a condition number of up to 100."""
    assert mapped["y"].shape == (N, D)
    np.testing.assert_allclose(mapped["back"], mapped["x"], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(mapped["again"], mapped["x"], rtol=1e-4, atol=1e-4)


def test_a_flow_moves_its_points(mapped):
    """The identity would pass the tests above."""
    assert np.abs(mapped["y"] - mapped["x"]).mean() > 0.1


@pytest.mark.parametrize("name", ["planar", "planar_at_its_limit", "sylvester"])
def test_implicit_gradients_are_finite_differences(name):
    """Of the numerical inverse and its log-determinant, along y and along every parameter."""

    @jax.jit
    def of_inverse(flow, y):
        x, log_det = flow.inverse_and_log_det(y)
        return (jnp.cos(jnp.arange(D)) * x).sum(-1) + log_det

    with jax.enable_x64(True):
        flow, y = jax.tree.map(
            lambda leaf: jnp.asarray(leaf, jnp.float64), (FLOWS[name], normal(8, 4, D))
        )
        check_grads(of_inverse, (flow, y), order=1, modes=["rev"], rtol=1e-5, atol=1e-5)


# --- The scalar equation ------------------------------------------------------------------------


def test_monotone_root_is_brents():
    """x + a tanh(b x + c) = y, slopes from 0.01 to 10^6, against SciPy's brentq."""
    cases = np.array(
        [
            (a, b, c, y)
            for (a, b), c, y in itertools.product(
                [(-0.99, 1.0), (0.5, 2.0), (1e3, 1.0), (1e3, 1e3)],
                [0.0, -3.0, 40.0],
                [0.0, 0.7, -500.0, 1e3],
            )
        ]
    )
    expected: Any = [
        optimize.brentq(
            lambda x, a=a, b=b, c=c, y=y: x + a * np.tanh(b * x + c) - y, y - abs(a), y + abs(a)
        )
        for a, b, c, y in cases
    ]
    a, b, c, y = jnp.asarray(cases.T, jnp.float32)
    root = jax.jit(monotone_root, static_argnums=0)(
        lambda x: x + a * jnp.tanh(b * x + c) - y, y - jnp.abs(a), y + jnp.abs(a)
    )
    scale = np.abs(cases[:, 3]) + np.abs(cases[:, 0])
    np.testing.assert_array_less(np.abs(np.subtract(root, expected)) / scale, 2e-5)


# --- Each flow's own -----------------------------------------------------------------------------


def test_planar_is_the_papers_map_where_its_constraint_holds():
    """z + û tanh(wᵀz + b) by hand; u differs from û along w alone, and wᵀû > -1 whatever u."""
    flow = FLOWS["planar_at_its_limit"]
    u_hat, wu = flow.constrained()
    w, u, x = np.asarray(flow.w), np.asarray(flow.u), np.asarray(normal(9, N, D))
    assert w @ u < -10
    assert -1 < wu < -0.9
    np.testing.assert_allclose(u_hat @ w, wu, rtol=1e-4)
    parallel = (u_hat - u) @ w / (w @ w)
    np.testing.assert_allclose(u_hat - u, parallel * w, rtol=1e-4, atol=1e-4)
    expected = x + np.outer(np.tanh(x @ w + flow.b), u_hat)
    np.testing.assert_allclose(flow.forward_and_log_det(x)[0], expected, rtol=1e-4, atol=1e-5)


def test_planar_and_sylvester_start_at_the_identity():
    x = normal(9, N, D)
    planar = Planar(jnp.zeros(D), normal(1, D), normal(2))
    q = orthogonalize(normal(0, D, 2))
    still = Sylvester(q, jnp.zeros((2, 2)), jnp.zeros((2, 2)), normal(1, 2))
    for flow in (planar, still, Planar(jnp.ones(D), jnp.zeros(D), jnp.zeros(()))):
        y, log_det = flow.forward_and_log_det(x)
        np.testing.assert_allclose(y, x, atol=1e-6)
        np.testing.assert_allclose(log_det, np.zeros(N), atol=1e-6)


def test_sylvester_is_the_papers_map():
    """z + Q R tanh(R̃ Qᵀz + b), with triangles built from the entries by hand."""
    flow = FLOWS["sylvester"]
    q, entries, diagonals, b = (
        np.asarray(a, np.float64) for a in (flow.q, flow.r, flow.diagonals, flow.b)
    )
    diagonal = np.sqrt(0.99) * np.tanh(diagonals)
    r = np.array([[diagonal[0, 0], entries[0, 1]], [0, diagonal[0, 1]]])
    r_tilde = np.array([[diagonal[1, 0], entries[1, 0]], [0, diagonal[1, 1]]])
    x = np.asarray(normal(9, N, D))
    expected = [z + q @ r @ np.tanh(r_tilde @ q.T @ z + b) for z in x]
    np.testing.assert_allclose(flow.forward_and_log_det(x)[0], expected, rtol=1e-5, atol=1e-5)


def dense_sylvester(
    flow: Sylvester, q: np.ndarray, z: np.ndarray, n: int
) -> tuple[np.ndarray, np.ndarray]:
    """z + Q R tanh(R̃ Qᵀz + b) of an example and its Jacobian, in NumPy, float64."""
    r, r_tilde, b = (np.asarray(each[n], np.float64) for each in (*flow.triangles(), flow.b))
    a = r_tilde @ q.T @ z + b
    jacobian = np.eye(len(z)) + q @ r @ np.diag(np.cosh(a) ** -2.0) @ r_tilde @ q.T
    return z + q @ r @ np.tanh(a), jacobian


@pytest.mark.others_slow
@pytest.mark.parametrize("d", [1, 5])
def test_the_sylvester_flows_of_full_width_have_dense_determinants(d: int) -> None:
    """Q the identity and the reversal in turn, or the product of reflections, written out."""
    features = normal(0, 6, 4)
    for posterior in (vj.TriangularSylvesterFlow(d, 3), vj.HouseholderSylvesterFlow(d, 4, 3)):
        shapes = jax.eval_shape(posterior.init, jax.random.key(0), features)
        variables = spread(shapes, 1, 0.8)

        @jax.jit
        def passed(variables: Any, features: Any, posterior: Any = posterior) -> Any:
            q = posterior.apply(variables, features)
            z0, log_q0 = q.base.sample_and_log_prob(jax.random.key(1))
            z, log_det = q._forward(z0)
            return q.flows, z0, log_q0, z, log_det, q.log_prob(z)

        all_flows, z0, log_q0, z, log_det, log_q = passed(variables, features)
        flows = [flow for flow in all_flows if isinstance(flow, Sylvester)]
        assert len(flows) == 3
        head: Any = variables["params"].get("v")
        for n in range(len(features)):
            expected, total = np.asarray(z0[n], np.float64), 0.0
            for t, flow in enumerate(flows):
                if flow.q is None:
                    matrix = np.eye(d)[:: -1 if t % 2 else 1]
                else:
                    kernel, bias = (
                        np.asarray(head[each], np.float64) for each in ("kernel", "bias")
                    )
                    vectors = np.einsum("f,fthd->thd", np.asarray(features[n]), kernel) + bias
                    matrix = np.eye(d)
                    for v in vectors[t]:
                        matrix = (np.eye(d) - 2 * np.outer(v, v) / (v @ v)) @ matrix
                expected, jacobian = dense_sylvester(flow, matrix, expected, n)
                sign, log_abs = np.linalg.slogdet(jacobian)
                assert sign > 0
                total += log_abs
            np.testing.assert_allclose(z[n], expected, rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(log_det[n], total, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(log_q, log_q0 - log_det, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("shape", [(5, 1), (8, 3), (32, 32)])
@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_orthogonalize_is_scipys_polar_factor(shape, scale):
    """Eight Gaussian matrices of each shape, in float32."""
    matrices = normal(0, 8, *shape, scale=scale)
    q = np.asarray(jax.jit(orthogonalize)(matrices))
    np.testing.assert_allclose(
        q.mT @ q, np.broadcast_to(np.eye(shape[1]), (8, shape[1], shape[1])), atol=1e-5
    )
    for mine, matrix in zip(q, np.asarray(matrices, np.float64), strict=True):
        np.testing.assert_allclose(mine, linalg.polar(matrix)[0], atol=1e-3)


@pytest.mark.parametrize("shape", [(5, 1), (32, 16), (8, 8)])
def test_orthogonalizes_derivative_is_that_of_scipys_polar_factor(shape):
    """Forwards and backwards, by central differences in float64."""
    a, direction, weight = np.random.default_rng(3).normal(size=(3, *shape))
    step = 1e-5
    ends = (linalg.polar(a + sign * step * direction)[0] for sign in (1, -1))
    expected = np.subtract(*ends) / (2 * step)
    a, direction, weight = (jnp.asarray(each, jnp.float32) for each in (a, direction, weight))
    _, moved = jax.jit(lambda a, da: jax.jvp(orthogonalize, (a,), (da,)))(a, direction)
    np.testing.assert_allclose(moved, expected, atol=1e-4)
    gradient = jax.jit(jax.grad(lambda a: (orthogonalize(a) * weight).sum()))(a)
    along = float((gradient * direction).sum())
    np.testing.assert_allclose(along, (expected * weight).sum(), rtol=1e-3, atol=1e-4)


def test_householder_is_the_product_of_reflections():
    """H_2 H_1 in NumPy; no reflection has a zero axis."""
    flow = FLOWS["householder"]
    first, second = (np.eye(D) - 2 * np.outer(v, v) / (v @ v) for v in np.asarray(flow.v))
    x = normal(9, N, D)
    expected = np.asarray(x) @ (second @ first).T
    np.testing.assert_allclose(flow.forward_and_log_det(x)[0], expected, rtol=1e-4, atol=1e-5)

    def moved(v):
        return Householder(v).forward_and_log_det(x)[0].sum()

    value, gradient = jax.jit(jax.value_and_grad(moved))(jnp.zeros((1, D)))
    np.testing.assert_allclose(value, (x * jnp.array([-1, 1, 1])).sum(), rtol=1e-5)
    assert np.isfinite(gradient).all()


def test_reflections_of_vectors_whose_squares_are_no_floats():
    """|v|² under- or overflows; only the direction of v counts, in float64 NumPy."""
    rng = np.random.default_rng(4)
    v, x = rng.normal(size=(4, D)), rng.normal(size=(4, D)).astype(np.float32)
    expected = x - 2 * v * (v * x).sum(-1, keepdims=True) / (v**2).sum(-1, keepdims=True)

    @jax.jit
    @jax.value_and_grad
    def weighted(v, weight):
        return (Householder(v[:, None]).forward_and_log_det(jnp.asarray(x))[0] * weight).sum()

    for size in (1e-30, 1e-20, 1.0, 1e20, 1e36):
        scaled = jnp.asarray(size * v, jnp.float32)
        reflected = Householder(scaled[:, None]).forward_and_log_det(jnp.asarray(x))[0]
        np.testing.assert_allclose(reflected, expected, rtol=1e-4, atol=1e-5)
        of_one = weighted(jnp.asarray(v, jnp.float32), x)[1]
        np.testing.assert_allclose(size * weighted(scaled, x)[1], of_one, rtol=1e-3, atol=1e-5)


def test_orthogonalize_of_singular_matrices_and_of_extreme_ones():
    """Zeros, a column of zeros, equal columns: still orthonormal, with finite gradients."""
    a = np.random.default_rng(5).normal(size=(5, 3))
    matrices = jnp.asarray(
        [0 * a, a * [1, 0, 1], np.repeat(a[:, :1], 3, 1), 1e-30 * a, 1e30 * a], jnp.float32
    )

    def columns(matrices):
        q = orthogonalize(matrices)
        return (q * jnp.arange(5)[:, None]).sum(), q

    (_, q), gradient = jax.jit(jax.value_and_grad(columns, has_aux=True))(matrices)
    np.testing.assert_allclose(q.mT @ q, np.broadcast_to(np.eye(3), (5, 3, 3)), atol=1e-5)
    np.testing.assert_allclose(q[3:], [linalg.polar(a)[0]] * 2, atol=1e-4)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("features", [(1,), (2,), (3, 8), (8, 3), (128,)])
@pytest.mark.parametrize("given", [False, True])
def test_a_narrow_made_drops_no_input(features, given):
    """Every input but the last moves a later output, however narrow the hidden layers are."""
    dim = 200 if features == (128,) else 9
    network, x = MADE(features), normal(0, dim)
    inputs = (x, normal(1, C)) if given else (x,)
    variables = parameters(network, *inputs, scale=1.0)
    of_first, of_second = jax.jit(jax.jacfwd(partial(network.apply, variables)))(*inputs)
    for jacobian in np.abs(of_first), np.abs(of_second):
        assert np.all(jacobian.max(0)[:-1] > 0)
        assert np.all(np.triu(jacobian) == 0)


@pytest.mark.parametrize(("dim", "features"), [(1, (4,)), (5, (9, 11))])
def test_made_sees_earlier_components_alone(dim, features):
    """The Jacobians of both outputs are strictly lower triangular, with no zero below."""
    network = MADE(features)
    x, context = normal(0, dim), normal(1, C)
    variables = parameters(network, x, context, scale=1.0)

    @jax.jit
    def jacobians(x, context):
        return jax.jacfwd(lambda *a: network.apply(variables, *a), (0, 1))(x, context)

    for of_x, of_context in jacobians(x, context):
        below = np.tri(dim, k=-1, dtype=bool)
        assert np.all(np.asarray(of_x)[~below] == 0)
        assert np.all(np.asarray(of_x)[below] != 0)
        assert np.all(np.asarray(of_context) != 0)


def test_gates_are_bounded():
    """A context of 10^4 leaves log-determinants, the inverse and its gradients finite."""
    flow = FLOWS["iaf"]

    @jax.jit
    def gradients(flow, y):
        def total(flow, y):
            x, log_det = flow.inverse_and_log_det(y)
            return (x + log_det[:, None]).sum(), x

        return jax.grad(total, (0, 1), has_aux=True)(flow, y)

    found = gradients(flow.replace(context=1e4 * CONTEXT), normal(9, 4, D))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


# --- Priors ---------------------------------------------------------------------------------------

PRIORS = {
    "realnvp": RealNVP(2, num_flows=3, features=(5,)),
    "maf": MaskedAutoregressiveFlow(2, num_flows=2, features=(5,)),
}


@pytest.fixture(scope="module", params=PRIORS)
def prior(request) -> tuple[Any, Any]:
    """A prior over two dimensions: as training starts, and with other parameters."""
    module = PRIORS[request.param]

    @jax.jit
    def make(key):
        return module.init_with_output(key, tiny.model())

    start, variables = make(jax.random.key(0))
    return start, module.apply(spread(variables, 2, 0.4), tiny.model())


def grid(limit: float, count: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Midpoints of one axis, the points of the square `[count², 2]`, the area of one cell."""
    edges = np.linspace(-limit, limit, count + 1)
    axis = (edges[1:] + edges[:-1]) / 2
    points = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    return axis, points.astype(np.float32), float((edges[1] - edges[0]) ** 2)


def test_a_flow_prior_starts_near_the_standard_normal(prior):
    z = normal(0, N, 2)
    expected = stats.norm.logpdf(z).sum(-1)
    np.testing.assert_allclose(prior[0].log_prob(z), expected, atol=0.1)


def test_a_flow_prior_integrates_to_one_and_is_what_is_sampled(prior):
    """Midpoint rule over a square; Kolmogorov-Smirnov of both marginals at 1e-4."""
    axis, points, cell = grid(20, 400)

    @jax.jit
    def everything(p, points, keys):
        draws = jax.vmap(lambda key: p.sample_and_log_prob(key))(keys)
        return p.log_prob(points), draws, p.log_prob(draws[0])

    keys = jax.random.split(jax.random.key(1), 4000)
    log_p, (z, log_pz), log_pz_by_inverses = everything(prior[1], points, keys)
    mass = np.exp(np.asarray(log_p, np.float64)).reshape(400, 400) * cell
    assert mass.sum() == pytest.approx(1, abs=2e-3)
    np.testing.assert_allclose(log_pz, log_pz_by_inverses, rtol=1e-4, atol=1e-3)
    assert np.abs(mass - np.outer(mass.sum(1), mass.sum(0))).sum() > 0.05  # components depend
    step = axis[1] - axis[0]
    for d in range(2):
        cumulative = np.append(0, mass.sum(1 - d).cumsum()) / mass.sum()
        cdf = np.interp(z[:, d], np.append(axis - step / 2, axis[-1] + step / 2), cumulative)
        assert stats.kstest(cdf, "uniform").pvalue > 1e-4


def test_the_density_of_a_flow_prior_trains_every_layer(prior):
    """Shared parameters, all of them with a gradient where the stops are not set."""

    @jax.jit
    def gradients(p, z):
        stopped = lambda p: jax.tree.map(jax.lax.stop_gradient, p).log_prob(z).sum()  # noqa: E731
        return jax.grad(lambda p: p.log_prob(z).sum())(p), jax.grad(stopped)(p)

    free, held = gradients(prior[1], normal(9, 4, 2))
    for flow in free.flows:
        if not isinstance(flow, Reverse):
            assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(flow.variables))
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(held))


def test_transformed_by_known_maps():
    """Draws are the base's, through the flows in order; either way to the density agrees."""
    flows = (FLOWS["householder"], Reverse(), FLOWS["planar"])
    p = Transformed(Normal(normal(0, D), jnp.exp(normal(1, D))), flows)
    x = p.base.sample(jax.random.key(0), (5,))
    y = x
    for flow in flows:
        y = flow.forward_and_log_det(y)[0]
    z, log_p = p.sample_and_log_prob(jax.random.key(0), (5,))
    np.testing.assert_array_equal(z, y)
    np.testing.assert_array_equal(z, p.sample(jax.random.key(0), (5,)))
    np.testing.assert_allclose(p.log_prob(z), log_p, rtol=1e-4, atol=1e-4)
    assert not p.exact_mean
