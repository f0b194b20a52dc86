"""Regularized autoencoders against exact Jacobians and NumPy's norms."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from gradients import assert_close, gradients_of, loss_and_metrics, params_of
from jax import Array

from vae_jax import (
    MLP,
    RAE,
    VAE,
    ConvDecoder,
    Deterministic,
    Gaussian,
    SpectralNorm,
    StandardNormal,
    VaeJaxError,
)
from vae_jax.compatibility import check_objective
from vae_jax.networks.spectral import spectral_norm
from vae_jax.objectives.regularized import gradient_penalty

B, D = 3, 2
KEYS = jax.random.split(jax.random.key(1), B)


DECODER = MLP((5,))


def autoencoder(image_shape: tuple[int, int, int], decoder: nn.Module = DECODER) -> VAE:
    return VAE(
        encoder=MLP((4,)),
        posterior=Deterministic(D),
        prior=StandardNormal(D),
        decoder=decoder,
        likelihood=Gaussian(scale=0.5**0.5),  # a squared error, up to a constant
        image_shape=image_shape,
    )


def problem(model: Any) -> tuple[Any, Array]:
    x = jax.random.uniform(jax.random.key(0), (B, *model.image_shape))
    return params_of(model, RAE(), x, KEYS), x


def jacobian_norms(model: Any, params: Any, z: Array) -> Array:
    """|dD/dz|² of each example by forward differentiation, `[B]`."""

    def decode(z: Array) -> Array:
        return model.apply({"params": params}, (z[None],), method="decode").mean[0]

    return jax.vmap(lambda z: (jax.jacfwd(decode)(z) ** 2).sum())(z)


def test_the_gradient_penalty_is_the_jacobians_norm_on_average() -> None:
    """2000 draws of the signs for each of 3 examples with 12 pixels, within 4 standard errors.

    The squared gradient of the summed image, which is one of the draws, lies far from it.
    """
    model = autoencoder((3, 4, 1))
    params, _ = problem(model)
    z = jax.random.normal(jax.random.key(3), (B, D))

    @jax.jit
    def estimates() -> Any:
        def one(key: Array) -> Any:
            keys = jax.random.split(key, B)
            return model.apply({"params": params}, z, keys, method=gradient_penalty)

        draws = jax.lax.map(one, jax.random.split(jax.random.key(4), 2000))
        return draws, jacobian_norms(model, params, z)

    draws, exact = (np.asarray(each) for each in estimates())
    error = draws.std(0) / np.sqrt(len(draws))
    assert (np.abs(draws.mean(0) - exact) < 4 * error).all()
    assert (error < 0.05 * exact).all()
    assert (draws >= 0).all()


def test_rae_is_its_four_terms() -> None:
    """With one pixel the estimate of the penalty is exact, and so is the loss and its gradient.

    Weights by NumPy's rules from the parameters: kernels of decoder and likelihood, no biases.
    """
    model = autoencoder((1, 1, 1))
    params, x = problem(model)
    objective = RAE(beta=0.3, l2=0.2, gradient_penalty=0.7)

    def by_hand(params: Any) -> Array:
        z: Any = model.apply({"params": params}, x, method="encode").mean  # pyright: ignore
        image: Any = model.apply({"params": params}, (z,), method="decode").mean  # pyright: ignore
        error = ((x - image) ** 2).sum((1, 2, 3)) + 0.5 * jnp.log(jnp.pi)
        kernels = [params["decoder"]["Dense_0"]["kernel"], params["likelihood"]["loc"]["kernel"]]
        loss = error.mean() + 0.3 * 0.5 * (z**2).sum(-1).mean()
        loss += 0.2 * sum((kernel**2).sum() for kernel in kernels)
        return loss + 0.7 * jacobian_norms(model, params, z).mean()

    @jax.jit
    def everything(params: Any) -> Any:
        ours = jax.value_and_grad(loss_and_metrics, has_aux=True)
        plain = loss_and_metrics(params, model, RAE(), x, KEYS)
        return ours(params, model, objective, x, KEYS), jax.value_and_grad(by_hand)(params), plain

    ((loss, metrics), gradient), (expected, expected_gradient), plain = everything(params)
    assert loss == pytest.approx(float(expected), rel=1e-5)
    assert_close(gradient, expected_gradient, 1e-4)
    assert metrics["gradient_penalty"] > 1e-3
    assert "neg_elbo" not in metrics

    assert plain[0] == plain[1]["distortion"]


def test_rae_takes_deterministic_posteriors_alone() -> None:
    check_objective(RAE(), autoencoder((4, 4, 1)))
    with pytest.raises(
        VaeJaxError, match=r"RAE has no use for .*; of posteriors, these do: Deterministic; or"
    ):
        check_objective(RAE(), tiny.model())


# Spectral normalization


@pytest.mark.parametrize("shape", [(7, 4), (4, 7), (3, 3, 2, 5), (1, 6)])
def test_spectral_norm_is_numpys(shape: tuple[int, ...]) -> None:
    """And its gradient is u v', the outer product of the singular vectors."""
    kernel = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    matrix = kernel.reshape(-1, shape[-1])
    sigma, gradient = jax.value_and_grad(spectral_norm)(jnp.asarray(kernel))
    assert sigma == pytest.approx(np.linalg.norm(matrix, 2), rel=1e-5)
    u, _, vt = np.linalg.svd(matrix)
    np.testing.assert_allclose(
        gradient.reshape(matrix.shape), np.outer(u[:, 0], vt[0]), rtol=1e-3, atol=1e-4
    )


def test_equal_singular_values_have_a_finite_gradient() -> None:
    sigma, gradient = jax.value_and_grad(spectral_norm)(2 * jnp.eye(4))
    assert sigma == pytest.approx(2.0)
    assert np.isfinite(gradient).all()
    assert np.trace(gradient) == pytest.approx(1.0, rel=1e-5)


def test_a_wrapped_network_divides_its_weights_and_keeps_its_parameters() -> None:
    """The same network with kernels divided by NumPy's norm; the parameters are those of the bare
    network. Its ReLU layers of norm one do not expand distances."""
    network = MLP((5, 6), activation=jax.nn.relu)
    z = jax.random.normal(jax.random.key(0), (4, 3))
    wrapped = SpectralNorm(network)
    variables = jax.tree.map(lambda p: 3 * p + 0.1, wrapped.init(jax.random.key(1), z, (2, 2, 1)))
    params = variables["params"]["network"]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(
        jnp.shape, network.init(jax.random.key(1), z)["params"]
    )
    divided = jax.tree.map(lambda p: p / np.linalg.norm(p, 2) if p.ndim == 2 else p, params)
    expected: Any = network.apply({"params": divided}, z)
    actual: Any = wrapped.apply(variables, z, (2, 2, 1))
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)

    def distance(h: Any) -> Any:
        return np.linalg.norm(h[:, None] - h[None], axis=-1)

    assert (distance(np.asarray(actual)) <= distance(np.asarray(z)) + 1e-6).all()


@pytest.mark.parametrize("decoder", [MLP((5,)), ConvDecoder((4, 3), dense=6)], ids=["mlp", "conv"])
def test_an_autoencoder_with_a_wrapped_decoder_learns(decoder: nn.Module) -> None:
    """Every parameter has a gradient, of the penalty too, and along a kernel it is zero: only
    the direction of a kernel enters (Miyato et al. 2018)."""
    model = autoencoder((4, 4, 1), SpectralNorm(decoder))
    params, x = problem(model)

    gradient, _ = gradients_of(params, model, RAE(0.1, 0.0, 0.1), x, KEYS)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert np.abs(jax.tree.leaves(gradient["encoder"])[1]).max() > 1e-5

    def along(kernel: Array, gradient: Array) -> None:
        if kernel.ndim > 1:
            norms = np.linalg.norm(kernel) * np.linalg.norm(gradient)
            assert norms > 1e-5
            assert abs(np.vdot(kernel, gradient)) < 1e-3 * norms

    jax.tree.map(along, params["decoder"], gradient["decoder"])
