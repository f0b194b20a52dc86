"""The hierarchy whose layers all reach the image, with a VampPrior on top: NumPy and quadrature."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from scipy import special, stats
from test_hierarchical import dense, gaussian, keys, log_normal

import vae_jax as vj
from vae_jax import (
    MLP,
    Bernoulli,
    DiagonalGaussian,
    SkipVAE,
    StandardNormal,
    VampPrior,
    generate,
)
from vae_jax.standard_figures import plot_standard_figures

SHAPE, B, K = (1, 2, 1), 3, 5
WIDTHS = (2, 3)


def make(prior: Any, widths: tuple[int, ...] = WIDTHS, hidden: tuple[int, ...] = (5,)) -> SkipVAE:
    return SkipVAE(
        encoders=[MLP(hidden) for _ in widths],
        posteriors=[DiagonalGaussian(d) for d in widths],
        prior=prior,
        decoders=[MLP(hidden) for _ in widths],
        conditionals=[DiagonalGaussian(d) for d in widths[:-1]],
        likelihood=Bernoulli(),
        image_shape=SHAPE,
    )


def spread(model: SkipVAE) -> dict[str, Any]:
    """Parameters far from where training starts; pseudo-inputs from -0.2 to 1.2, to be clipped."""
    init = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *SHAPE)), keys(0, 1))
    generator = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: (0.7 * generator.normal(size=leaf.shape)).astype(np.float32), init["params"]
    )
    if "prior" in params:
        shape = params["prior"]["pseudo_inputs"].shape
        params["prior"]["pseudo_inputs"] = generator.uniform(-0.2, 1.2, shape).astype(np.float32)
    return params


class Written:
    """The densities of two layers in NumPy, float64 (Tomczak & Welling 2018, section 4)."""

    def __init__(self, params: Any):
        self.params: Any = jax.tree.map(np.float64, params)

    def q_2(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return gaussian(self.params, "encoders_1", "posteriors_1", x)

    def q_1(self, x: np.ndarray, z_2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x = np.broadcast_to(x, (*z_2.shape[:-1], x.shape[-1]))
        return gaussian(self.params, "encoders_0", "posteriors_0", np.concatenate([x, z_2], -1))

    def p_1(self, z_2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return gaussian(self.params, "decoders_1", "conditionals_0", z_2)

    def probabilities(self, z_1: np.ndarray, z_2: np.ndarray) -> np.ndarray:
        z = np.concatenate([z_1, z_2], -1)
        hidden = np.tanh(dense(self.params["decoders_0"]["Dense_0"], z))
        return special.expit(dense(self.params["likelihood"]["logits"], hidden))

    def log_p_2(self, z_2: np.ndarray) -> np.ndarray:
        if "prior" not in self.params:
            return log_normal(z_2)
        u = np.clip(self.params["prior"]["pseudo_inputs"], 0, 1)
        loc, scale = self.q_2(u.reshape(len(u), -1))
        each = log_normal(z_2[..., None, :], loc, scale)
        return special.logsumexp(each, -1) - np.log(len(u))


PRIORS = {"standard": StandardNormal, "vamp": lambda d: VampPrior(4)}


@pytest.mark.others_slow
@pytest.mark.parametrize("prior", PRIORS)
def test_terms_in_numpy(prior: str) -> None:
    model = make(PRIORS[prior](WIDTHS[-1]))
    params = spread(model)
    x = np.random.default_rng(1).integers(0, 2, (B, *SHAPE)).astype(np.float32)
    terms: Any = jax.jit(model.apply, static_argnums=3)({"params": params}, x, keys(1, B), K)
    z_1, z_2 = (np.asarray(z, np.float64) for z in terms.z)
    assert (z_1.shape, z_2.shape) == ((K, B, 2), (K, B, 3))
    own, flat = Written(params), x.reshape(B, -1)
    log_qz = [log_normal(z_1, *own.q_1(flat, z_2)), log_normal(z_2, *own.q_2(flat))]
    log_pz = [log_normal(z_1, *own.p_1(z_2)), own.log_p_2(z_2)]
    probabilities = own.probabilities(z_1, z_2)
    log_px = stats.bernoulli.logpmf(flat, probabilities).sum(-1)
    log_prior: Any = model.apply({"params": params}, terms.z, method="log_prior")
    for found, expected in (
        (terms.log_qz, log_qz),
        (terms.log_pz, log_pz),
        (terms.log_px, log_px),
        (terms.log_w, log_px + np.sum(log_pz, 0) - np.sum(log_qz, 0)),
        (terms.reconstruction.reshape(K, B, -1), probabilities),
        (log_prior, np.sum(log_pz, 0)),
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    if prior == "vamp":
        assert terms.kl is None
        return
    (loc_1, scale_1), (loc, scale) = own.q_1(flat, z_2), own.p_1(z_2)
    ratio = (scale_1**2 + (loc_1 - loc) ** 2) / scale**2
    kl_1 = (np.log(scale / scale_1) + ratio / 2 - 0.5).sum(-1).mean(0)
    loc_2, scale_2 = own.q_2(flat)
    kl_2 = (-np.log(scale_2) + (scale_2**2 + loc_2**2) / 2 - 0.5).sum(-1)
    np.testing.assert_allclose(terms.kl, [kl_1, kl_2], rtol=1e-4, atol=1e-4)


def test_layers_below_those_that_are_given_are_at_the_means_of_their_priors() -> None:
    model = make(StandardNormal(WIDTHS[-1]))
    params = spread(model)
    z_2 = np.random.default_rng(1).normal(size=(K, B, WIDTHS[-1])).astype(np.float32)
    found: Any = model.apply({"params": params}, (z_2,), method="decode_top")
    own = Written(params)
    expected = own.probabilities(own.p_1(z_2)[0], z_2)
    np.testing.assert_allclose(found.mean.reshape(K, B, -1), expected, rtol=1e-4, atol=1e-4)
    whole = z_2[..., : WIDTHS[0]], z_2
    both: Any = model.apply({"params": params}, whole, method="decode_top")
    decoded: Any = model.apply({"params": params}, whole, method="decode")
    np.testing.assert_array_equal(both.mean, decoded.mean)
    with pytest.raises(vj.VaeJaxError, match="give"):
        model.apply({"params": params}, (z_2[..., :2],), method="decode_top")


@pytest.mark.slow
def test_every_figure_of_a_run_is_drawn(tmp_path: Path) -> None:
    """Traversals move the top layer, or another below which layers follow."""
    experiment = tiny.experiment(num_steps=2, log_every=1, checkpoint_every=2)
    model = make(VampPrior(4), (3, 2)).clone(image_shape=())
    run = vj.train(dataclasses.replace(experiment, model=model), tmp_path / "run")
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (2, *tiny.IMAGE_SHAPE)).astype(np.uint8)
    means = run.posterior_means(images)
    top = run.reconstruct(images, top=1)
    np.testing.assert_array_equal(top, run.decode((means[1],)))
    assert np.abs(top - run.reconstruct(images)).max() > 0
    for layer in (None, 1, 2):
        moved, _, which = generate.traverse(run, "valid", layer=layer, points=3)
        assert moved.shape == (len(which), 3, *tiny.IMAGE_SHAPE)
    assert "manifold.png" not in {path.name for path in plot_standard_figures(run)}
    with pytest.raises(vj.VaeJaxError, match="two latents with a standard normal prior"):
        generate.manifold(run, 2)


@pytest.mark.parametrize("prior", PRIORS)
def test_weights_average_to_the_likelihood_of_quadrature(prior: str) -> None:
    """E_q[w] = p(x) = ∫∫ p(x|z_1, z_2) p(z_1|z_2) p(z_2), for every image; they sum to one."""
    model = make(PRIORS[prior](1), (1, 1))
    params = spread(model)
    for name, log_scale in {
        "posteriors_0": 0.3,
        "posteriors_1": 0.5,
        "conditionals_0": -0.5,
    }.items():
        params[name]["log_scale"]["kernel"] *= 0.1  # so that q is wider than p: weights have a sd
        params[name]["log_scale"]["bias"][:] = log_scale
    images = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float32)
    own = Written(params)
    points, weights = np.polynomial.legendre.leggauss(400)
    z, weights = 12 * points, 12 * weights
    z_2 = z[:, None]
    loc, scale = own.p_1(z_2)  # the grid of z_1 moves with p(z_1|z_2)
    z_1 = (loc + scale * z)[..., None]
    joint = np.exp(own.log_p_2(z_2) + np.log(weights))[:, None] * weights
    joint = joint * stats.norm.pdf(z)
    both = own.probabilities(z_1, np.broadcast_to(z_2[:, None], z_1.shape))
    likelihoods = [(joint * np.prod(np.where(x, both, 1 - both), -1)).sum() for x in images]
    assert sum(likelihoods) == pytest.approx(1, abs=1e-6)
    count = 50_000
    x = images.reshape(4, *SHAPE)
    terms: Any = jax.jit(model.apply, static_argnums=3)({"params": params}, x, keys(2, 4), count)
    ratios = np.exp(np.asarray(terms.log_w, np.float64) - np.log(likelihoods))
    errors = ratios.std(0) / np.sqrt(count)
    assert errors.max() < 0.05
    assert (np.abs(ratios.mean(0) - 1) < 4.5 * errors).all()
    # The same images come out of the prior.
    sample = jax.jit(lambda keys: model.apply({"params": params}, keys, method="sample"))
    drawn: Any = sample(keys(3, 20_000))[1].mean
    drawn = np.asarray(drawn, np.float64).reshape(-1, 2)
    for x_0, expected in zip(images, likelihoods, strict=True):
        found = np.prod(np.where(x_0, drawn, 1 - drawn), -1)
        assert abs(found.mean() - expected) < 4.5 * found.std() / np.sqrt(len(found))


def test_all_layers_are_decoded_and_inferred() -> None:
    """Three layers: means of q top-down, and a picture that depends on each layer."""
    model = make(StandardNormal(2), (2, 3, 2))
    params = spread(model)
    x = np.random.default_rng(1).integers(0, 2, (B, *SHAPE)).astype(np.float32)
    layers: Any = model.apply({"params": params}, x, method="infer")
    assert [q.mean.shape for q in layers] == [(B, 2), (B, 3), (B, 2)]
    zs = tuple(q.mean for q in layers)
    px: Any = model.apply({"params": params}, zs, method="decode")
    for layer in range(3):
        other = tuple(z + (n == layer) for n, z in enumerate(zs))
        moved: Any = model.apply({"params": params}, other, method="decode")
        assert np.abs(moved.mean - px.mean).min() > 0
    with pytest.raises(vj.VaeJaxError):
        model.apply({"params": params}, zs[:1], method="decode")
