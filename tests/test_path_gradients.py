"""Gradients along several layers of latents with the parameters of q held fixed in ln q(z|x).

Against the same gradient put together from Jacobians, an exact posterior, and the expectation of
the plain gradient.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from perturbation import normals
from scipy import special
from test_deep_training import deep
from test_hierarchical import keys
from test_hierarchical import make as bottom_up
from test_ladder import make as ladder
from test_skip import make as skip

from vae_jax import (
    CIWAE,
    ELBO,
    IWAE,
    MIWAE,
    MLP,
    Bernoulli,
    DiagonalGaussian,
    Gaussian,
    HierarchicalVAE,
    LabelEmbedding,
    RenyiBound,
    StandardNormal,
    VampPrior,
)

B, K = 2, 4
MODELS: dict[str, Callable[[], Any]] = {
    "bottom-up": lambda: bottom_up(2, (4,), Bernoulli()).clone(labels=LabelEmbedding(2, 2)),
    "ladder": lambda: ladder((3, 2), (4,), Bernoulli()),
    "skip": lambda: skip(VampPrior(2)),
    "deep": deep,
}
Y = jnp.asarray([0, 1])


def softmax(log_w: Any) -> Any:
    return special.softmax(log_w, axis=0)


# With the derivative of the bound by ln w_k, and the weight of the gradient through z_k: the
# papers' formulas.
OBJECTIVES: dict[str, tuple[Any, Callable[[Any], tuple[Any, ...]]]] = {
    "elbo": (ELBO(K, sticking_the_landing=True), lambda w: (0 * w + 1 / K, 0 * w + 1 / K)),
    "iwae": (
        IWAE(K, doubly_reparameterized=True),
        lambda w: (softmax(w), softmax(w) ** 2),
    ),
    "miwae": (
        MIWAE(2, 2, doubly_reparameterized=True),
        lambda w: tuple(
            np.concatenate([softmax(each) ** power / 2 for each in (w[:2], w[2:])])
            for power in (1, 2)
        ),
    ),
    "ciwae": (
        CIWAE(K, 0.3, doubly_reparameterized=True),
        lambda w: tuple(0.3 / K + 0.7 * softmax(w) ** power for power in (1, 2)),
    ),
    "renyi": (
        RenyiBound(K, 0.4, doubly_reparameterized=True),
        lambda w: (softmax(0.6 * w), 0.4 * softmax(0.6 * w) + 0.6 * softmax(0.6 * w) ** 2),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_the_gradient_is_that_of_its_parts(name: str) -> None:
    """Of p's parameters at the drawn z, weighed by v_k; and through z alone, weighed otherwise.

    The parameters are given three times: to the draws, to p and, fixed, to q. In float64, but for
    some products of the deep hierarchy.
    """
    model, generator = MODELS[name](), np.random.default_rng(0)
    x = generator.integers(0, 2, (B, *model.image_shape)).astype(float)
    y = None if model.labels is None else Y
    noise = keys(1, B)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x, noise, y=y)["params"]
    flat, unravel = ravel_pytree(normals(shapes))
    held = model.clone()

    def log_qz(params: Any, zs: Any) -> Any:
        """As in evaluation, where q is made again for given latents."""
        if name == "deep":
            return held.apply({"params": params}, x, zs, y, method="_log_posteriors").sum(0)
        qs = held.apply({"params": params}, x, zs, y, method="_inferred")
        return sum(q.log_prob(z) for q, z in zip(qs, zs, strict=True))

    def log_w(of_draws: Any, of_p: Any, of_q: Any) -> Any:
        terms = model.apply({"params": unravel(of_draws)}, x, noise, K, y)
        log_p = model.apply({"params": unravel(of_p)}, x, terms.z, y, method="log_joint")
        return log_p - log_qz(unravel(of_q), terms.z)

    def losses(flat: Any) -> Any:
        terms = model.apply({"params": unravel(flat)}, x, noise, K, y)
        bound = model.bind({"params": unravel(flat)})
        return jnp.stack([each(terms, jnp.asarray(0), bound)[0] for each, _ in OBJECTIVES.values()])

    with jax.enable_x64(True):
        flat = jnp.asarray(flat, jnp.float64)

        @jax.jit
        def everything(flat: Any) -> Any:
            parts = jax.jacrev(log_w, (0, 1))(flat, flat, flat)
            return log_w(flat, flat, flat), parts, jax.jacrev(losses)(flat)

        values, (through_z, of_p), gradients = jax.tree.map(np.asarray, everything(flat))
    for (case, (_, weights)), found in zip(OBJECTIVES.items(), gradients, strict=True):
        v, path = weights(values)
        expected = -np.einsum("kb,kbn->n", v / B, of_p)
        expected -= np.einsum("kb,kbn->n", path / B, through_z)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=3e-6, err_msg=case)
        assert np.abs(expected).max() > 0.01


def test_nothing_moves_an_exact_posterior() -> None:
    """Two linear-Gaussian layers: each draw's gradient of q vanishes, the plain one does not.

    z_2 ~ N(0, 1), z_1 = a z_2 + s e, x = b z_1 + t e in two pixels; q by the rules of Gaussians.
    """
    a, s, t, b = 0.8, 0.6, 0.5, np.array([0.7, -0.4])
    model = HierarchicalVAE(
        encoders=[MLP(()), MLP(())],
        posteriors=[DiagonalGaussian(1), DiagonalGaussian(1)],
        prior=StandardNormal(1),
        decoders=[MLP(()), MLP(())],
        conditionals=[DiagonalGaussian(1)],
        likelihood=Gaussian(scale=t, squash=lambda x: x),
        image_shape=(1, 2, 1),
    )
    variance = a**2 + s**2  # of z_1
    of_z1 = 1 / (1 / variance + (b**2).sum() / t**2)
    of_z2 = 1 / (1 + a**2 / s**2)

    def head(kernel: Any, variance: float) -> Any:
        kernel = np.atleast_2d(kernel).astype(np.float32)
        bias = np.full(1, np.log(variance) / 2, np.float32)
        zero = np.zeros(1, np.float32)
        return {
            "loc": {"kernel": kernel, "bias": zero},
            "log_scale": {"kernel": 0 * kernel, "bias": bias},
        }

    params = {
        "posteriors_0": head((of_z1 * b / t**2)[:, None], of_z1),
        "posteriors_1": head(of_z2 * a / s**2, of_z2),
        "conditionals_0": head(a, s**2),
        "likelihood": {
            "loc": {
                "kernel": b[None].astype(np.float32),
                "bias": np.zeros(2, np.float32),
            }
        },
    }
    x = np.random.default_rng(0).normal(size=(3, 1, 2, 1)).astype(np.float32)

    def gradient(params: Any, objective: Any) -> Any:
        def loss(params: Any) -> Any:
            terms = model.apply({"params": params}, x, keys(2, 3), objective.num_samples)
            bound = model.bind({"params": params})
            return objective(terms, jnp.asarray(0), bound)[0]

        return jax.grad(loss)(params)

    for still, moved in (
        (ELBO(5, sticking_the_landing=True), ELBO(5)),
        (IWAE(5, doubly_reparameterized=True), IWAE(5)),
    ):
        largest = []
        for objective in (still, moved):
            gradients = jax.jit(gradient, static_argnums=1)(params, objective)
            of_q = [gradients[name] for name in ("posteriors_0", "posteriors_1")]
            largest.append(np.abs(ravel_pytree(of_q)[0]).max())
        assert largest[0] < 1e-5 < 0.05 < largest[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bottom-up", "ladder"])
def test_its_expectation_is_that_of_the_plain_gradient(name: str) -> None:
    """IWAE's, every parameter, over 20,000 draws of the noise; at five standard errors."""
    model = MODELS[name]()
    x = np.random.default_rng(0).integers(0, 2, (1, *model.image_shape)).astype(np.float32)
    y = None if model.labels is None else Y[:1]
    shapes = jax.eval_shape(model.init, jax.random.key(0), x, keys(0, 1), y=y)["params"]
    params = normals(shapes)

    def gradient(key: Any, objective: Any) -> Any:
        def loss(params: Any) -> Any:
            terms = model.apply({"params": params}, x, key[None], 3, y)
            return objective(terms, jnp.asarray(0), model.bind({"params": params}))[0]

        return ravel_pytree(jax.grad(loss)(params))[0]

    @jax.jit
    def moments(noise: Any) -> Any:
        pair = [jax.vmap(lambda key, o=o: gradient(key, o))(noise) for o in (plain, doubly)]
        difference = pair[1] - pair[0]
        return difference.mean(0), difference.std(0), *(each.var(0).sum() for each in pair)

    plain, doubly = IWAE(3), IWAE(3, doubly_reparameterized=True)
    mean, deviation, _, _ = map(np.asarray, moments(keys(3, 20_000)))
    assert (np.abs(mean) <= 5 * deviation / 20_000**0.5 + 1e-6).all()
    assert (deviation > 1e-3).any()  # they do differ
